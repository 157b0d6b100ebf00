"""BioMedLM in JAX: a GPT trained on PubMed, from raw text to a checked Hugging Face release.

The public names below are imported on first use, so `import biomedlm_jax` stays instant:

    load(path)                     -> (model, tokenizer), from a run or a Hugging Face directory
    pretrain(config, workdir)      -> trains, checkpoints and resumes
    finetune(config, model, workdir), evaluate(models, out, task=...), score(model, ...)
    plan(config, topology)         -> compiles the step for a pod that need not be here
    generate(model, tokenizer, prompts, ...) -> texts
    export_directory(source, path, ...)     -> what `biomedlm export-hf` writes, settings included
    export_hf(model, tokenizer, path, ...), import_hf(source, path), verify_hf(path, ...)
    export_gguf(source, path, dtype="q8_0") -> a file for llama.cpp
    make_model(GPT2Config(...), key=key)    -> LanguageModel: model(tokens_BxL) -> logits_BxLxV
"""

import importlib

__version__ = "0.2.0"

_PUBLIC = {
    "GPT2Config": "model.gpt2",
    "InputError": "errors",
    "LanguageModel": "model.language_model",
    "ModelConfig": "model.config",
    "make_model": "model.families",
    "generate": "generation.generator",
    "load": "interop.huggingface",
    "export_directory": "interop.huggingface",
    "export_hf": "interop.huggingface",
    "export_gguf": "interop.gguf_files",
    "import_hf": "interop.huggingface",
    "verify_hf": "interop.verify",
    "plan": "planning.planner",
    "pretrain": "training.pretrain",
    "score": "qa.scoring",
    "finetune": "finetuning.finetune",
    "evaluate": "qa.evaluation",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
