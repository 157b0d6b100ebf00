"""Print what a run did: steps, checkpoints, restarts, skipped updates, goodput.

    biomedlm inspect RUN
    biomedlm inspect RUN --verify --plot
    biomedlm inspect RUN --html=FILE

Writes nothing else, and may be used while the run trains; --plot draws RUN/loss.png with the
restarts, --html writes a page of curves and tables.
"""

from pathlib import Path

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError

FLAGS = Flags()
FLAGS.define("run", None, "Run directory; --run= may be left out.", required=True)
FLAGS.define("verify", False, "Read all files and compare them with their hashes, too.")
FLAGS.define("plot", False, "Draw RUN/loss.png.")
HTML = "Write a page to this file: loss, learning rate, gradient norm, speed, restarts, goodput."
FLAGS.define("html", None, HTML)
FLAGS.define("overwrite", False, "Replace the file that --html names.")
FLAGS.add("json")
BY_POSITION = "run"


def run(options: Flags) -> None:
    """Print the lines."""
    from biomedlm_jax.files import write_text
    from biomedlm_jax.interop import inspection
    from biomedlm_jax.interop.run_page import run_page

    if options.html and Path(options.html).is_dir():
        raise InputError(f"{options.html} is a directory; name a file")
    if options.html and Path(options.html).is_file() and not options.overwrite:
        raise InputError(f"{options.html} exists; name another file, or pass --overwrite")
    if options["overwrite"].present and not options.html:
        raise InputError("got --overwrite without --html; expected both")
    facts = inspection.inspect_run(options.run, verify=options.verify)
    options.write_json(facts)
    print("\n".join(inspection.describe(facts)))
    if options.plot:
        print(f"drawn: {inspection.draw(options.run)}")
    if options.html:
        write_text(Path(options.html), run_page(options.run, facts))
        print(f"wrote {options.html}")
