"""Write a model as a Hugging Face directory, with its tokenizer and a model card, and check it.

    biomedlm export-hf --model=run/ --out=release/
    biomedlm export-hf --model=run/ --out=for-vllm/ --fold_attention_scale

A fine-tuned model is written with its head, or with its generation settings. The directory appears
after every tensor was read back and compared with the model's.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags()
FLAGS.define_model()
FLAGS.define_out("the export")
FLAGS.define("step", None, "Step of the checkpoint; default: the newest.", kind=int, least=0)
FOLD = "Fold the inverse-layer attention scale into the weights, for vLLM and SGLang."
FLAGS.define("fold_attention_scale", False, FOLD)
FLAGS.define("max_shard_size", "5GB", "Largest file of weights, such as 500MB; else several files.")
FLAGS.define_mesh()


def run(options: Flags) -> None:
    """Load the model, write it and print the directory."""
    from biomedlm_jax.files import check_output, read_json
    from biomedlm_jax.interop import directories, finetuned, huggingface, modelcard, shards
    from biomedlm_jax.model.families import family
    from biomedlm_jax.training.checkpoint import latest_step

    check_output(options.out, replaceable=directories.is_hugging_face, overwrite=options.overwrite)
    shards.parse_size(options.max_shard_size)
    export = options.pick("overwrite", "fold_attention_scale", "max_shard_size")
    directories.read_config(options.model)  # that it is a directory of a model
    path, step = directories.model_directory(options.model), options.step
    mesh = options.make_mesh()
    if finetuned.read_head(path) is None:
        generation = path / directories.GENERATION_CONFIG
        export["generation"] = read_json(generation) if generation.exists() else None
        model, tokenizer = huggingface.load(path, step=step, mesh=mesh)
    else:
        if step is not None:
            raise ValueError(f"got step={step}; {path} has one checkpoint, leave out --step")
        model, tokenizer, export["head"] = finetuned.load_finetuned(path, mesh=mesh)
    if directories.kind_of(path) == directories.RUN:
        step = latest_step(path) if step is None else step
        export["training_facts"] = modelcard.training_facts(path, step=step)
    out = huggingface.export_hf(model, tokenizer, options.out, **export)
    warning = family(model.config.model_type).export_warning(model.config, folded=False)
    if warning and not options.fold_attention_scale:
        print(warning)
    print(f"wrote {out}; compare it with transformers: biomedlm verify-hf --model={out}")
