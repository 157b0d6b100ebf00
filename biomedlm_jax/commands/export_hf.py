"""Write a model as a Hugging Face directory, with its tokenizer and a model card, and check it.

    biomedlm export-hf --model=run/ --out=release/
    biomedlm export-hf --model=run/ --out=for-vllm/ --fold_attention_scale

A fine-tuned model is written with its head, or with its generation settings. The directory appears
after every tensor was read back and compared with the model's.
"""

from typing import Any

from absl import flags as absl_flags

FLAGS = absl_flags.FlagValues()
MODEL = "run, fine-tuned or Hugging Face directory"
absl_flags.DEFINE_string("model", None, MODEL, required=True, flag_values=FLAGS)
absl_flags.DEFINE_string("out", None, "directory to write", required=True, flag_values=FLAGS)
STEP = "step of the checkpoint; the newest by default"
absl_flags.DEFINE_integer("step", None, STEP, lower_bound=0, flag_values=FLAGS)
absl_flags.DEFINE_bool("overwrite", False, "replace the export in --out", flag_values=FLAGS)
FOLD = "fold the inverse-layer attention scale into the weights, for vLLM and SGLang"
absl_flags.DEFINE_bool("fold_attention_scale", False, FOLD, flag_values=FLAGS)
SIZE = "largest file of weights, such as 500MB; larger weights are written in shards"
absl_flags.DEFINE_string("max_shard_size", "5GB", SIZE, flag_values=FLAGS)


def run(flags: absl_flags.FlagValues) -> None:
    """Load the model, write it and print the directory."""
    from biomedlm_jax.files import check_output, read_json
    from biomedlm_jax.interop import directories, heads, huggingface, modelcard, shards
    from biomedlm_jax.model.families import family
    from biomedlm_jax.training.checkpoint import latest_step

    check_output(flags.out, replaceable=directories.is_hugging_face, overwrite=flags.overwrite)
    shards.parse_size(flags.max_shard_size)
    names = ("overwrite", "fold_attention_scale", "max_shard_size")
    options: dict[str, Any] = {name: flags[name].value for name in names}
    directories.read_config(flags.model)  # that it is a directory of a model
    path, step = directories.model_directory(flags.model), flags.step
    if heads.read_head(path) is None:
        generation = path / directories.GENERATION_CONFIG
        options["generation"] = read_json(generation) if generation.exists() else None
        model, tokenizer = huggingface.load(path, step=step)
    else:
        if step is not None:
            raise ValueError(f"got step={step}; {path} has one checkpoint, leave out --step")
        model, tokenizer, options["head"] = heads.load_finetuned(path)
    if directories.kind_of(path) == directories.RUN:
        step = latest_step(path) if step is None else step
        options["training_facts"] = modelcard.training_facts(path, step=step)
    out = huggingface.export_hf(model, tokenizer, flags.out, **options)
    warning = family(model.config.model_type).export_warning(model.config, folded=False)
    if warning and not flags.fold_attention_scale:
        print(warning)
    print(f"wrote {out}; compare it with transformers: biomedlm verify-hf --model={out}")
