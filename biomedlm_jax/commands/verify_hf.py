"""Compare the logits of a Hugging Face directory here and in transformers, in float32.

    biomedlm verify-hf --model=release/ --run=run/ --json=verify.json

Fails (exit code 2) above --tolerance, and warns when the installed transformers computes another
function by default. Needs torch and transformers: pip install 'biomedlm-jax[hf]'.
"""

import json
import sys
import warnings
from pathlib import Path

from absl import flags as absl_flags

FLAGS = absl_flags.FlagValues()
MODEL = "Hugging Face directory"
absl_flags.DEFINE_string("model", None, MODEL, required=True, flag_values=FLAGS)
absl_flags.DEFINE_string("run", None, "compare with this run directory too", flag_values=FLAGS)
absl_flags.DEFINE_integer("batch", 2, "rows of random tokens", lower_bound=1, flag_values=FLAGS)
absl_flags.DEFINE_integer("length", None, "tokens in a row; 64", lower_bound=1, flag_values=FLAGS)
absl_flags.DEFINE_integer("seed", 0, "of the random tokens", flag_values=FLAGS)
TOLERANCE = "largest allowed difference of two logits"
absl_flags.DEFINE_float("tolerance", 1e-4, TOLERANCE, lower_bound=0, flag_values=FLAGS)
absl_flags.DEFINE_string("json", None, "file to write the figures to", flag_values=FLAGS)


def run(flags: absl_flags.FlagValues) -> None:
    """Verify, and show the figures."""
    from biomedlm_jax import verify_hf

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
            what = f"the run {flags.run}" if name == "run" else f"transformers, {name} attention"
            print(f"{what:30} max |Δlogit| {report[name]['max']:.2e}")
    for warning in warned:
        if warning.category is RuntimeWarning:
            print(f"WARNING: {warning.message}", file=sys.stderr)
    if flags.json:
        Path(flags.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
