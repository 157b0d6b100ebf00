"""Continue prompts: one, a file of them, or line by line as you type.

    biomedlm generate --model=run --prompt="Myocardial infarction is" --max_new_tokens=64
    biomedlm generate --model=run --prompts=in.txt --out=out.jsonl --beams=5 --length_penalty=-0.5
    biomedlm generate --model=run
    biomedlm generate --model=run --score="The heart has four chambers." --html=score.html

Defaults come from the model's generation_config.json. A file of prompts is resumed by the same
command. All devices work: each answers its share of the prompts with a copy of the model, or with
--tensor=N with a part of it. BioMedLM's answers are not medical advice.
"""

import dataclasses
import typing

from absl import flags as absl_flags

from biomedlm_jax.generation.options import Options

FLAGS = absl_flags.FlagValues()
for name, meaning in (
    ("model", "run directory or Hugging Face directory"),
    ("prompt", "one prompt; without it and --prompts, type them"),
    ("prompts", "file of prompts: JSON lines, or .txt with one prompt a line"),
    ("out", "file to append the answers to --prompts to, as JSON lines"),
    ("score", "show how probable each token of this text is, instead of continuing it"),
    ("html", "file to write the coloured view of --score to"),
):
    absl_flags.DEFINE_string(name, None, meaning, required=name == "model", flag_values=FLAGS)
absl_flags.DEFINE_string("field", "prompt", "field of the prompt in --prompts", flag_values=FLAGS)
absl_flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "dtype of computation; auto: float32 on a "
    "CPU, else bfloat16", flag_values=FLAGS,
)  # fmt: skip
absl_flags.DEFINE_enum(
    "truncate", "error", ["error", "left"], "a prompt that does not fit with its answer is an "
    "error, or loses tokens on its left", flag_values=FLAGS,
)  # fmt: skip
absl_flags.DEFINE_integer("batch_size", 16, "prompts decoded at once", 1, flag_values=FLAGS)
for name, size, meaning in (
    ("data", -1, "copies of the model, each with a share of the prompts; -1: the other devices"),
    ("fsdp", 1, "devices that shard the weights, gathered before use, and the prompts"),
    ("tensor", 1, "devices that split heads, MLP and vocabulary"),
):
    absl_flags.DEFINE_integer(name, size, meaning, flag_values=FLAGS)
absl_flags.DEFINE_bool("stats", False, "print the speed, without streaming", flag_values=FLAGS)
absl_flags.DEFINE_bool("notice", True, "print that this is no medical advice", flag_values=FLAGS)

DEFINE = {int: absl_flags.DEFINE_integer, float: absl_flags.DEFINE_float}
OPTIONS = {f.name: f for f in dataclasses.fields(Options) if f.name != "ends"}
HINTS = typing.get_type_hints(Options)
for name, field in OPTIONS.items():
    default = f" (default {field.default})" if isinstance(field.default, int | float) else ""
    meaning = field.metadata["help"]
    if field.metadata["choices"]:
        choices = [str(choice).lower() for choice in field.metadata["choices"]]
        absl_flags.DEFINE_enum(name, None, choices, meaning, flag_values=FLAGS)
    elif HINTS[name] in DEFINE:
        DEFINE[HINTS[name]](name, None, meaning + default, flag_values=FLAGS)
    else:
        absl_flags.DEFINE_multi_string(name, None, f"{meaning}; repeatable", flag_values=FLAGS)


def run(flags: absl_flags.FlagValues) -> None:
    """Continue the prompts, or score the text."""
    from biomedlm_jax.generation import terminal

    terminal.check_flags(flags)
    if flags.score is not None:
        terminal.print_scores(flags)
        return
    given = {}
    for name, field in OPTIONS.items():
        value = flags[name].value
        by_name = {str(choice).lower(): choice for choice in field.metadata["choices"] or ()}
        given[name] = by_name.get(str(value), tuple(value) if isinstance(value, list) else value)
    terminal.answer(flags, given)
