"""Compare a directory's token ids and outputs here and in transformers.

    biomedlm verify-hf --model=release/ --run=run/ --json=verify.json

Outputs are logits, or the scores of a fine-tuned model, in float32, of short rows, of rows padded
on the left, and of one longer than the model's sliding window, if it has one. Hidden states are
compared layer by layer, too. Fails (exit code 2) above --tolerance and names the first layer that
differs, and warns if the installed transformers computes another function by default. Needs torch
and transformers: pip install 'biomedlm-jax[hf]'.
"""

import sys
import warnings

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import counted
from biomedlm_jax.outputs import local_copy

FLAGS = Flags()
FLAGS.define("model", None, "Hugging Face directory to verify.", required=True)
FLAGS.define("run", None, "Run directory to compare as well.")
FLAGS.define("batch", 2, "Rows of random tokens.", least=1)
FLAGS.define("length", None, "Tokens of a row; default 64, or all positions.", kind=int, least=1)
FLAGS.define("seed", 0, "Seed of the random tokens.")
FLAGS.define("tolerance", 1e-4, "Largest allowed absolute difference of two outputs.", least=0)
FLAGS.define("eos_token_id", None, "End of text in place of config.json's.", kind=int, least=0)
FLAGS.add("mesh", "json")


def run(options: Flags) -> None:
    """Verify the directory and print the largest differences."""
    from biomedlm_jax import verify_hf
    from biomedlm_jax.interop.verify import DiffersError

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", RuntimeWarning)
        given = options.pick("run", "batch", "length", "seed", "tolerance")
        if options.eos_token_id is not None:
            given["eos_token_id"] = options.eos_token_id
        with local_copy(options.model) as model:  # transformers reads local files only
            try:
                report = verify_hf(model, **given, **options.loading())
            except DiffersError as error:
                _print_figures(error.report, options)
                options.write_json(error.report)
                raise
    _print_figures(report, options)
    messages = [str(one.message) for one in warned if one.category is RuntimeWarning]
    for message in dict.fromkeys(messages):
        print(f"WARNING: {message}", file=sys.stderr)
    options.write_json(report)


def _print_figures(report: dict, options: Flags) -> None:
    if texts := report.get("texts_with_equal_ids"):
        print(f"{counted(texts, 'text has', 'texts have')} the token ids of transformers")
    for name in ("eager", "default", "run"):
        if name in report:
            other = f"the run {options.run}" if name == "run" else f"transformers, {name} attention"
            print(f"{other:30} max |difference| {report[name]['max']:.2e}")
            for kind, most in report[name].get("max_per_kind", {}).items():
                print(f"  {kind + ' rows':28} max |difference| {most:.2e}")
            for layer in report[name].get("layers", ()):
                after = f"hidden states after {layer['after']}"
                print(f"  {after} differ by {layer['relative']:.1e} of their size")
