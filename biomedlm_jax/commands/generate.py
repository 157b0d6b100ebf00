"""Continue prompts: one, a file of them, or line by line as you type.

    biomedlm generate --model=run --prompt="Myocardial infarction is" --max_new_tokens=64
    biomedlm generate --model=run --prompts=in.jsonl --out=out.jsonl --beams=5 --length_penalty=-0.5
    biomedlm generate --model=run
    biomedlm generate --model=run --score="The heart has four chambers." --html=score.html

Options begin from the model's generation_config.json. A file of {"prompt": ..} lines is resumed by
the same command. All devices work: each answers its share of the prompts with a copy of the model,
or with --tensor=N a part of it. BioMedLM's answers are not medical advice.
"""

from absl import flags as absl_flags

FLAGS = absl_flags.FlagValues()
MODEL = "run directory or Hugging Face directory"
absl_flags.DEFINE_string("model", None, MODEL, required=True, flag_values=FLAGS)
for name, meaning in (
    ("prompt", "one prompt; without it and --prompts, type them"),
    ("prompts", "JSONL file of prompts"),
    ("out", "JSONL file of answers, for --prompts"),
    ("score", "show how probable each token of this text is, instead of continuing it"),
    ("html", "file for the coloured view of --score"),
    ("early_stopping", "beams: false, true or never"),
):
    absl_flags.DEFINE_string(name, None, meaning, flag_values=FLAGS)
absl_flags.DEFINE_string("field", "prompt", "the prompt's field in --prompts", flag_values=FLAGS)
absl_flags.DEFINE_string("dtype", "auto", "float32, bfloat16 or auto", flag_values=FLAGS)
for name in ("max_new_tokens", "top_k", "no_repeat_ngram_size", "min_length", "min_new_tokens"):
    absl_flags.DEFINE_integer(name, None, "see the README", flag_values=FLAGS)
for name in ("samples", "beams", "seed"):
    absl_flags.DEFINE_integer(name, None, "see the README", flag_values=FLAGS)
for name in ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"):
    absl_flags.DEFINE_float(name, None, "see the README", flag_values=FLAGS)
for name, meaning in (("stop", "string that ends an answer"), ("bad_words", "text never said")):
    absl_flags.DEFINE_multi_string(name, None, f"{meaning}; repeatable", flag_values=FLAGS)
absl_flags.DEFINE_enum("truncate", "error", ["error", "left"], "long prompts", flag_values=FLAGS)
absl_flags.DEFINE_integer("batch_size", 16, "prompts at once", 1, flag_values=FLAGS)
for name, size in (("data", -1), ("fsdp", 1), ("tensor", 1)):
    absl_flags.DEFINE_integer(name, size, "mesh, as in configs; -1: the rest", flag_values=FLAGS)
absl_flags.DEFINE_bool("stats", False, "say how fast it was, answers whole", flag_values=FLAGS)
absl_flags.DEFINE_bool("notice", True, "say that this is no medical advice", flag_values=FLAGS)


def run(flags: absl_flags.FlagValues) -> None:
    """Continue, or score."""
    from biomedlm_jax.generation import terminal

    terminal.check(flags)
    if flags.score is not None:
        terminal.show_score(flags)
        return
    terminal.generate(flags, {name: flags[name].value for name in terminal.OPTIONS})
