import json

import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.corpus.tokenizer import tokenizer_hash
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.interop.initial import initial_weights
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.training.provenance import weights_hash


@pytest.mark.parametrize("kind", ["run", "hugging_face"])
def test_a_directory_gives_weights_straight_onto_the_mesh(kind, make_model, tokenizer, tmp_path):
    model, generation = make_model(), {"do_sample": True, "temperature": 0.5}
    if kind == "run":
        save_finetuned(
            tmp_path / "it", model, tokenizer, files={"generation_config.json": generation}
        )
    else:
        export_hf(model, tokenizer, tmp_path / "it", generation=generation)
    init = initial_weights(tmp_path / "it")
    assert init.config.architecture() == model.config.architecture()
    assert tokenizer_hash(init.tokenizer) == tokenizer_hash(tokenizer)
    assert init.files["generation_config.json"].items() >= generation.items()
    mesh = meshes.make_mesh(data=2, fsdp=4)
    abstract = abstract_model(init.config, mesh)
    loaded = init.read(abstract)
    assert weights_hash(loaded) == weights_hash(model)
    embedding = loaded.wte[...]
    assert {np.prod(shard.data.shape) for shard in embedding.addressable_shards} == {
        embedding.size // 4
    }


def test_what_no_run_can_start_from_is_refused(make_model, tmp_path):
    save_finetuned(tmp_path / "silent", make_model(), None)
    with pytest.raises(ValueError, match=r"silent has no tokenizer; add the tokenizer.json"):
        initial_weights(tmp_path / "silent")
    with pytest.raises(InputError, match="no such directory"):
        initial_weights(tmp_path / "nowhere")
    file = tmp_path / "silent" / "config.json"
    head = {"kind": "choice", "task": "medqa"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "head": head}))
    with pytest.raises(ValueError, match="a fine-tuned model with a choice head"):
        initial_weights(tmp_path / "silent")
