"""Orbax checkpoints: the model, the optimizer and the data position, restored onto any mesh.

`<run>/checkpoints/<step>/` holds three items: `model` (what is trained), `optimizer` (moments and
step) and `data` (JSON: the position in the data). A model alone lacks the other two. LoRA in
pre-training adds the item `trained`, the factors; `model` has them merged then.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from biomedlm_jax.errors import InputError
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.training.state import TrainState

FOLDER = "checkpoints"
MODEL, TRAINED = "model", "trained"  # items
# Orbax buffers whole chunks and files of up to 2 GiB, which doubles a large model's memory. Much
# smaller chunks would too: glibc keeps freed blocks of less than 32 MiB.
CHUNK_BYTES, FILE_BYTES, PART_BYTES = 2**26, 2**26, 2**30


def steps(run_directory: str | Path) -> list[int]:
    """Return the steps of a run's finished checkpoints, ascending."""
    # Orbax itself would count an empty folder `7`; it writes this metadata last.
    done = (Path(run_directory) / FOLDER).glob("*/_CHECKPOINT_METADATA")
    return sorted(int(path.parent.name) for path in done if path.parent.name.isdigit())


def latest_step(run_directory: str | Path) -> int | None:
    """Return the step of the newest finished checkpoint, or None."""
    return max(steps(run_directory), default=None)


class Checkpointer:
    """Writes a run's checkpoints in the background and restores the newest. Close it."""

    def __init__(self, run_directory: str | Path, *, keep: int):
        self.run_directory = Path(run_directory).absolute()
        for empty in (self.run_directory / FOLDER).glob("[0-9]*"):
            if empty.is_dir() and not any(empty.iterdir()):
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    empty.rmdir()  # Orbax would count it as a checkpoint
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.run_directory / FOLDER, options=options)

    def save(self, state: TrainState, position: dict, *, merged: Any = None) -> None:
        """Start to write `state` under its step; raises if an earlier write failed.

        `merged`, if any, is written as the model, and what is trained as an item of its own.
        """
        models = {MODEL: state.model} if merged is None else {MODEL: merged, TRAINED: state.model}
        items = ocp.args.Composite(
            **{k: ocp.args.StandardSave(m, save_args=_in_chunks(m)) for k, m in models.items()},
            optimizer=ocp.args.StandardSave({"step": state.step, "opt": state.opt_state}),
            data=ocp.args.JsonSave(position),
        )
        self._manager.save(int(state.step), args=items, force=True)

    def restore(self, abstract: TrainState, *, item: str = MODEL) -> tuple[TrainState, dict] | None:
        """Return the newest checkpoint, sharded as `abstract`, and its data position, or None.

        `item` has what is trained.
        """
        step = latest_step(self.run_directory)
        if step is None:
            return None
        check_shapes(self.run_directory / FOLDER / str(step) / item, abstract.model)
        optimizer = {"step": abstract.step, "opt": abstract.opt_state}
        items = ocp.args.Composite(
            **{item: ocp.args.StandardRestore(abstract.model)},
            optimizer=ocp.args.StandardRestore(optimizer),
            data=ocp.args.JsonRestore(),
        )
        saved = self._manager.restore(step, args=items)
        optimizer = saved["optimizer"]
        return TrainState(optimizer["step"], saved[item], optimizer["opt"]), saved["data"]

    def wait(self) -> None:
        """Block until every checkpoint is on disk; raises if one could not be written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release the background threads."""
        self._manager.close()


def check_shapes(item: Path, model: Any) -> None:
    """Raise InputError unless the saved item has exactly this model's tensors and dtypes."""
    saved = _flat(ocp.PyTreeCheckpointHandler().metadata(epath.Path(item)).tree)
    wanted = _flat(model)
    if saved == wanted:
        return
    name = next(n for n in sorted({*saved, *wanted}) if saved.get(n) != wanted.get(n))
    raise InputError(
        f"the checkpoint {item.parent} is of another model: {name} is {saved.get(name, 'absent')} "
        f"there and {wanted.get(name, 'absent')} in this config; use the run's own config"
    )


def _flat(tree) -> dict[str, str]:
    # Orbax's metadata has dictionaries where the model has attributes; the names are the same.
    return {n: f"{np.dtype(x.dtype).name}{[*x.shape]}" for n, x in named_leaves(tree).items()}


def save_model(run_directory: str | Path, model: Any, *, step: int = 0) -> None:
    """Write `model` alone as a run's checkpoint and wait until it is on disk."""
    folder = Path(run_directory).absolute() / FOLDER
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    args = ocp.args.PyTreeSave(
        model, save_args=_in_chunks(model), ocdbt_target_data_file_size=FILE_BYTES
    )
    with ocp.CheckpointManager(folder, options=options) as manager:
        manager.save(step, args=ocp.args.Composite(model=args))


def load_tree(run_directory: str | Path, abstract, *, step: int | None = None):
    """Read a saved model, the newest by default, sharded as `abstract` is.

    Raises InputError if there is no such checkpoint, or it is of another config.
    """
    finished = steps(run_directory)
    step = max(finished, default=None) if step is None else step
    if step not in finished:
        raise InputError(
            f"{run_directory} has no finished checkpoint"
            f"{'' if step is None else f' of step {step}'}; finished: {finished or 'none'}"
        )
    item = Path(run_directory).absolute() / FOLDER / str(step) / "model"
    check_shapes(item, abstract)
    leaves, structure = jax.tree.flatten(abstract)
    restored = [ocp.PLACEHOLDER] * len(leaves)
    how = structure.unflatten([ocp.ArrayRestoreArgs(sharding=leaf.sharding) for leaf in leaves])
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        for part in _parts(leaves):
            wanted = [leaf if i in part else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
            args = ocp.args.PyTreeRestore(structure.unflatten(wanted), restore_args=how)
            # Until a leaf is ready, what it is copied from is in memory too.
            got = jax.block_until_ready(jax.tree.leaves(checkpointer.restore(item, args=args)))
            for i in part:
                restored[i] = got[i]
    return structure.unflatten(restored)


def _in_chunks(model: Any):
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), model)


def _parts(leaves: list) -> list[list[int]]:
    """Group the numbers of leaves to read at once, largest first, up to PART_BYTES."""
    # While it is read a leaf exists twice on a CPU.
    parts, room = [], 0
    for i in sorted(range(len(leaves)), key=lambda i: -leaves[i].size):
        size = leaves[i].size * leaves[i].dtype.itemsize
        if not parts or size > room:
            parts.append([])
            room = PART_BYTES
        parts[-1].append(i)
        room -= size
    return parts
