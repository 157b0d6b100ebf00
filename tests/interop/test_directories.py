import json

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import (
    HUGGING_FACE,
    RUN,
    is_hugging_face,
    is_run,
    kind_of,
    model_config,
    model_directory,
    read_tokenizer,
    refuse_heads,
    training_record,
)

MODEL = {"model_type": "gpt2", "vocab_size": 300, "layers": 2, "width": 8, "heads": 2}


def fill(path, **config):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_kinds(tmp_path):
    run, other = fill(tmp_path / "a", model={}), fill(tmp_path / "b", model_type="gpt2")
    assert (kind_of(run), is_run(run), is_hugging_face(run)) == (RUN, True, False)
    assert (kind_of(other), is_run(other), is_hugging_face(other)) == (HUGGING_FACE, False, True)
    with pytest.raises(ValueError, match="neither a model group"):
        kind_of(fill(tmp_path / "c", other=1))
    with pytest.raises(InputError, match=r"no config\.json"):
        kind_of(tmp_path)
    assert not is_run(tmp_path)
    with pytest.raises(InputError, match="hf download stanford-crfm/BioMedLM --local-dir"):
        kind_of("stanford-crfm/BioMedLM")
    (tmp_path / "c" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"c/config\.json: expected a JSON object"):
        kind_of(tmp_path / "c")


def test_a_fine_tuning_run_is_its_model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(InputError, match="has no model yet"):
        kind_of(run)
    fill(run / "model", model=MODEL, head={"kind": "choice"})
    assert model_directory(run) == run / "model"
    assert kind_of(run) == RUN
    assert model_config(run).layers == 2
    with pytest.raises(ValueError, match="with a choice head, not a language model"):
        refuse_heads(run)
    (run / "config.json").write_text("{}")  # a pre-training run, with a folder of that name
    assert model_directory(run) == run


def test_execution_is_not_taken_from_the_directory(tmp_path):
    run = fill(tmp_path / "run", model={**MODEL, "attention": "splash"})
    assert model_config(run).attention == "auto"
    assert model_config(run, remat="full", attention_dropout=0.0).remat == "full"
    with pytest.raises(ValueError, match=r"expected settings of execution: .*compute_dtype"):
        model_config(run, layers=3)
    with pytest.raises(ValueError, match=r"odd: got model\.depth, which is unknown"):
        model_config(fill(tmp_path / "odd", model={**MODEL, "depth": 2}))
    with pytest.raises(ValueError, match="model_type='other'; the known model families are gpt2"):
        model_config(fill(tmp_path / "other", model={**MODEL, "model_type": "other"}))


def test_models_of_other_libraries_with_a_head_are_refused(tmp_path):
    path = fill(tmp_path / "x", model_type="gpt2", architectures=["GPT2ForSequenceClassification"])
    with pytest.raises(ValueError, match="GPT2ForSequenceClassification from another library"):
        refuse_heads(path)


@pytest.mark.parametrize("name", ["facts", "started_from", "task"])
def test_a_record_that_is_no_object_names_its_file(tmp_path, name):
    path = fill(tmp_path / "export", model_type="gpt2")
    (path / "training.json").write_text(json.dumps({name: ["x"]}))
    with pytest.raises(ValueError, match=rf"training\.json has {name} of type list; expected an o"):
        training_record(path)
    (path / "training.json").write_text(json.dumps({"facts": None, "recipe": "text"}))
    assert training_record(path)["recipe"] == "text"


def test_tokenizer_that_is_required(tmp_path):
    config = model_config(fill(tmp_path / "run", model=MODEL))
    assert read_tokenizer(tmp_path / "run", config) is None
    with pytest.raises(ValueError, match="has no tokenizer"):
        read_tokenizer(tmp_path / "run", config, required=True)
