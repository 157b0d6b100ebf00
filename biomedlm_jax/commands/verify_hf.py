"""Compare the outputs of a Hugging Face directory here and in transformers, in float32.

    biomedlm verify-hf --model=release/ --run=run/ --json=verify.json

Outputs are logits, or the scores of a fine-tuned model. Fails (exit code 2) above --tolerance, and
warns if the installed transformers computes another function by default. Needs torch and
transformers: pip install 'biomedlm-jax[hf]'.
"""

import sys
import warnings

from absl import flags as absl_flags

FLAGS = absl_flags.FlagValues()
MODEL = "Hugging Face directory"
absl_flags.DEFINE_string("model", None, MODEL, required=True, flag_values=FLAGS)
absl_flags.DEFINE_string("run", None, "run directory to compare as well", flag_values=FLAGS)
absl_flags.DEFINE_integer("batch", 2, "rows of random tokens", lower_bound=1, flag_values=FLAGS)
absl_flags.DEFINE_integer(
    "length",
    None,
    "tokens of a row; default 64, or all positions of a smaller model",
    lower_bound=1,
    flag_values=FLAGS,
)
absl_flags.DEFINE_integer("seed", 0, "seed of the random tokens", flag_values=FLAGS)
TOLERANCE = "largest allowed absolute difference of two outputs"
absl_flags.DEFINE_float("tolerance", 1e-4, TOLERANCE, lower_bound=0, flag_values=FLAGS)
absl_flags.DEFINE_string("json", None, "JSON file to write the figures to", flag_values=FLAGS)


def run(flags: absl_flags.FlagValues) -> None:
    """Verify the directory and print the largest differences."""
    from biomedlm_jax import verify_hf
    from biomedlm_jax.files import write_json

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", RuntimeWarning)
        report = verify_hf(
            flags.model,
            run=flags.run,
            batch=flags.batch,
            length=flags.length,
            seed=flags.seed,
            tolerance=flags.tolerance,
        )
    for name in ("eager", "default", "run"):
        if name in report:
            other = f"the run {flags.run}" if name == "run" else f"transformers, {name} attention"
            print(f"{other:30} max |difference| {report[name]['max']:.2e}")
    for warning in warned:
        if warning.category is RuntimeWarning:
            print(f"WARNING: {warning.message}", file=sys.stderr)
    if flags.json:
        write_json(flags.json, report)
