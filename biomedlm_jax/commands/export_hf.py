"""Write a model as a Hugging Face directory, with its tokenizer and a model card, and check it.

    biomedlm export-hf --model=run/ --out=release/
    biomedlm export-hf --model=run/ --out=for-vllm/ --fold_attention_scale

A fine-tuned model (a run of finetune, or its best) is written with its head, one of
finetune-longform with its decoding. The directory appears when every tensor has been read back and
found equal to the model's.
"""

from absl import flags as absl_flags

FLAGS = absl_flags.FlagValues()
MODEL = "run, fine-tuned or Hugging Face directory"
absl_flags.DEFINE_string("model", None, MODEL, required=True, flag_values=FLAGS)
absl_flags.DEFINE_string("out", None, "directory to write", required=True, flag_values=FLAGS)
STEP = "checkpoint of the run; the newest by default"
absl_flags.DEFINE_integer("step", None, STEP, lower_bound=0, flag_values=FLAGS)
absl_flags.DEFINE_bool("overwrite", False, "replace the export in --out", flag_values=FLAGS)
FOLD = "put the inverse-layer attention scale into the weights, as vLLM and SGLang need it"
absl_flags.DEFINE_bool("fold_attention_scale", False, FOLD, flag_values=FLAGS)
SIZE = "cut the weights into files of at most this size"
absl_flags.DEFINE_string("max_shard_size", "5GB", SIZE, flag_values=FLAGS)


def run(flags: absl_flags.FlagValues) -> None:
    """Load, write, read back, and say where."""
    from biomedlm_jax.generation.options import read_settings
    from biomedlm_jax.interop import directories, heads, huggingface, modelcard, shards
    from biomedlm_jax.qa import setup, tuned
    from biomedlm_jax.training.checkpoint import latest_step

    kind = directories.HUGGING_FACE
    directories.check_output(flags.out, kind=kind, overwrite=flags.overwrite)
    shards.parse_size(flags.max_shard_size)
    names = ("overwrite", "fold_attention_scale", "max_shard_size")
    options = {name: flags[name].value for name in names}
    path = tuned.best_of(flags.model)
    if setup.read_head(path) is not None:
        if flags.step is not None:
            raise ValueError(f"got step={flags.step}; {path} has one checkpoint, leave out --step")
        model, tokenizer, head = tuned.load_tuned(path)
        options |= {"head": head.to_json(), "training_facts": tuned.card_facts(path)}
        out = heads.export_head(model, tokenizer, flags.out, **options)
        config, advice = model.gpt.config, "its README.md has the code that scores with it in torch"
    else:
        options["generation"] = read_settings(path)
        model, tokenizer = huggingface.load(path, step=flags.step)
        if directories.kind_of(path) == directories.RUN:
            step = latest_step(path) if flags.step is None else flags.step
            options["training_facts"] = modelcard.training_facts(path, step=step)
        out = huggingface.export_hf(model, tokenizer, flags.out, **options)
        config = model.config
        advice = f"compare it with transformers: biomedlm verify-hf --model={out}"
    if config.scale_attn_by_inverse_layer_idx and not flags.fold_attention_scale:
        print(modelcard.BEWARE)
    print(f"wrote {out}; {advice}")
