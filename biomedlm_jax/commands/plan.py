"""Compile a step for a TPU pod, without the pod: memory, time, collectives.

    biomedlm plan --config=configs/pretrain.py:biomedlm_2_7b --topology=v5e:16x16 --out=plan

Needs the extra `tpu` (libtpu, the compiler). --topology=local compiles for this machine's devices
and prints memory and FLOPs. The mesh is that of the config (--config.mesh.data=8
--config.mesh.fsdp=32); --search compiles and ranks every sensible mesh. On several slices
(--topology=2xv5e:16x16) the mesh axis `data` lies between them. All times are estimates.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags("config", "json")
TOPOLOGY = "TPU slice, GENERATION:SHAPE in chips (v5e:16x16, v4:4x4x8; 2xv5e:16x16 is two slices), "
TOPOLOGY += "or local: these devices."
FLAGS.define("topology", "local", TOPOLOGY)
FLAGS.define("search", False, "Compile every sensible mesh (about 20 for 256 chips) and rank them.")
FLAGS.define_sizes("tensor", (1, 2, 4), "Sizes of the tensor axis that --search tries, in devices.")
STEP = "train: one update; score: the loss of one batch; decode: one token for each of its rows, "
STEP += "with a full cache."
FLAGS.define("step", "train", STEP, choices=("train", "score", "decode"))
FLAGS.define("out", None, "Directory to write plan.json, plan.md and plan.png to.")
FLAGS.define("hlo", None, "Directory to write the optimised HLO to, one text file for each mesh.")


def run(options: Flags) -> None:
    """Compile the step, print the table, and write the files that the flags name."""
    import os
    import sys

    if options.topology != "local":
        # Nothing runs: no TPU or GPU is needed. jax reads this when it is imported.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from biomedlm_jax import plan
    from biomedlm_jax.outputs import check_output
    from biomedlm_jax.planning.report import as_dict, markdown, write_report

    for folder in filter(None, (options.out, options.hlo)):
        check_output(folder, replaceable=lambda path: False, overwrite=False)
    result = plan(
        options.config,
        options.topology,
        **options.pick("search", "tensor", "step", "hlo"),
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(markdown(result))
    if options.out:
        print("wrote", ", ".join(map(str, write_report(result, options.out))))
    options.write_json(as_dict(result))
    if options.json:
        print("wrote", options.json)
