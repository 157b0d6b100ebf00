"""Print what a run did: steps, checkpoints, restarts, skipped updates, goodput.

    biomedlm inspect RUN
    biomedlm inspect RUN --verify --plot

Writes nothing, and may be used while the run trains; --plot draws RUN/loss.png with the restarts.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags()
FLAGS.define("run", None, "Run directory; --run= may be left out.", required=True)
FLAGS.define("verify", False, "Read all files and compare them with their hashes, too.")
FLAGS.define("plot", False, "Draw RUN/loss.png.")
FLAGS.add("json")
BY_POSITION = "run"


def run(options: Flags) -> None:
    """Print the lines."""
    from biomedlm_jax.interop import inspection

    facts = inspection.inspect_run(options.run, verify=options.verify)
    options.write_json(facts)
    print("\n".join(inspection.describe(facts)))
    if options.plot:
        print(f"drawn: {inspection.draw(options.run)}")
