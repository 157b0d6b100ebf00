"""Write a model as a GGUF file for llama.cpp, Ollama and LM Studio.

    biomedlm export-gguf --model=run/ --out=model.gguf
    biomedlm export-gguf --model=release/ --out=model-q8.gguf --dtype=q8_0

The file has the tokenizer, its chat template and the licence that the model's directory states. A
model or tokenizer that llama.cpp would read otherwise is refused. Every tensor is read back before
--out is created. Needs the extra gguf: pip install 'biomedlm-jax[gguf]'.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags("model")
FLAGS.define("out", None, "File to write, such as model.gguf.", required=True)
FLAGS.define("overwrite", False, "Replace the file --out.")
DTYPE = "Format of the matrices: 32, 16, 8, 5 or 4 bits; embedding and head have at least 8."
CHOICES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
FLAGS.define("dtype", "f16", DTYPE, choices=CHOICES)
FLAGS.define("step", None, "Step of the checkpoint; default: the newest.", kind=int, least=0)


def run(options: Flags) -> None:
    """Write the file and print its size."""
    from biomedlm_jax.interop.gguf_files import export_gguf

    given = options.pick("dtype", "step", "overwrite")
    out = export_gguf(options.model, options.out, **given)
    print(f"wrote {out}, {out.stat().st_size / 1e6:,.1f} MB; try it: llama-cli -m {out}")
