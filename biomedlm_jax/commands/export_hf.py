"""Write a model as a Hugging Face directory with a model card, and check it.

    biomedlm export-hf --model=run/ --out=release/
    biomedlm export-hf --model=run/ --out=for-vllm/ --fold_attention_scale
    biomedlm export-hf --model=run/ --out=adapter/ --adapter        (LoRA factors alone, for peft)

A fine-tuned model is written with its head or its generation settings. Every tensor is read back
and compared with the model's before --out is created.
"""

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError

FLAGS = Flags("model", "out")
FLAGS.define("step", None, "Step of the checkpoint; default: the newest.", kind=int, least=0)
FOLD = "Fold the inverse-layer attention scale into the weights, for vLLM and SGLang."
FLAGS.define("fold_attention_scale", False, FOLD)
DTYPE = "Dtype of the tensors; source: that of each tensor in the files that were imported."
FLAGS.define("dtype", "float32", DTYPE, choices=("float32", "bfloat16", "float16", "source"))
FLAGS.define("adapter", False, "Write the LoRA factors of a run, not the model.")
FLAGS.define("base", None, "Base that the adapter names; default: where the run started from.")
FLAGS.define("max_shard_size", "5GB", "Maximum size of a file of weights, such as 500MB.")
FLAGS.add("mesh")


def run(options: Flags) -> None:
    """Export the directory and print where it is."""
    from biomedlm_jax.interop.huggingface import export_directory
    from biomedlm_jax.interop.lora_files import export_adapter

    if options.adapter:
        for name in ("fold_attention_scale", "dtype", "max_shard_size"):
            if options[name].value != options[name].default:
                raise InputError(f"got --{name} with --adapter, which writes float32 factors")
        given = options.pick("base", "step", "overwrite")
        print(f"wrote {export_adapter(options.model, options.out, **given)}")
        return
    if options.base is not None:
        raise InputError("got --base without --adapter; leave it out")
    export = options.pick("step", "overwrite", "fold_attention_scale", "max_shard_size", "dtype")
    mesh = options.loading()["mesh"]
    out = export_directory(options.model, options.out, **export, mesh=mesh)
    print(f"wrote {out}; compare it with transformers: biomedlm verify-hf --model={out}")
