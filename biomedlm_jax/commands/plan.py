"""Compile a run's step for a TPU pod from a machine without one, and say what it would take.

    biomedlm plan --config=configs/biomedlm_2_7b.py --topology=v5e:16x16 --search --out=plan

Needs the extra `tpu` (libtpu, the compiler); with --topology=local it compiles for the devices here
and reports memory and FLOPs. The mesh is the config's (--config.mesh.data=8 ...), or with --search
every sensible one, ranked.
"""

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file("config", None, "The run's config file.", flag_values=FLAGS)
flags.DEFINE_string("topology", "local", "v5e:16x16, v4:4x4x8 ..., or local.", flag_values=FLAGS)
flags.DEFINE_bool("search", False, "Compile every sensible mesh.", flag_values=FLAGS)
flags.DEFINE_list("tensor", ["1", "2", "4"], "Tensor axes to search.", flag_values=FLAGS)
steps = ["train", "score", "decode"]
flags.DEFINE_enum("step", "train", steps, "The step to plan.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "Directory for JSON, Markdown and a plot.", flag_values=FLAGS)
flags.DEFINE_string("hlo", None, "Directory that keeps the optimised HLO.", flag_values=FLAGS)
flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=FLAGS)
flags.mark_flag_as_required("config", flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Plan, print the table, and write what was asked for."""
    import json
    import os
    import sys
    from pathlib import Path

    if options.topology != "local":
        # Nothing runs: do not look for a TPU or a GPU. Before jax is imported, or it is too late.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from biomedlm_jax.planning.topology import check_topology

    if options.topology != "local":
        check_topology(options.topology)
    if not all(size.isdigit() and int(size) for size in options.tensor):
        raise ValueError(f"--tensor={','.join(options.tensor)}; give sizes such as 1,2,4")

    from biomedlm_jax import plan
    from biomedlm_jax.planning.report import as_dict, markdown, write_report

    made = plan(
        options.config,
        options.topology,
        search=options.search,
        tensor=tuple(map(int, options.tensor)),
        step=options.step,
        hlo=options.hlo,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(markdown(made))
    if options.out:
        print("wrote", ", ".join(map(str, write_report(made, options.out))))
    if options.json:
        Path(options.json).write_text(json.dumps(as_dict(made), indent=2) + "\n", encoding="utf-8")
