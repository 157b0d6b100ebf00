"""Orbax checkpoints: the model, the optimizer and the data position, restored onto any mesh.

`<run>/checkpoints/<step>/` holds three items: `model` (what is trained), `optimizer` (moments and
step) and `data` (JSON: the position in the data). A model alone lacks the other two. LoRA in
pre-training adds the item `trained`, the factors; `model` has them merged then.

Orbax writes a step under another name and renames it when it is complete; in a bucket, it writes
commit_success.txt last. Just before, the hashes of all its files are written as SHA256SUMS. What is
restored is compared with it.
"""

import contextlib
import logging
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from biomedlm_jax import mesh as meshes
from biomedlm_jax.agreement import all_gather
from biomedlm_jax.buckets import as_path, is_bucket
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import write_sums
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.training.narrowing import Narrowing
from biomedlm_jax.training.saved_steps import (
    FOLDER,
    advice_on,
    delete_step,
    is_committed,
    is_finished,
    problems_of,
    step_folders,
    steps,
)
from biomedlm_jax.training.state import TrainState

MODEL, TRAINED, OPTIMIZER = "model", "trained", "optimizer"  # items
# Orbax buffers whole chunks and files of up to 2 GiB, which doubles a large model's memory. Much
# smaller chunks would too: glibc keeps freed blocks of less than 32 MiB.
CHUNK_BYTES, FILE_BYTES, PART_BYTES = 2**26, 2**26, 2**27
# Of an array that several devices have, each writes a slice. For less than this, making the slices
# takes longer than writing: a save of a small model on eight devices blocked three times as long.
SLICE_BYTES = 2**20


def _tree_handler() -> ocp.PyTreeCheckpointHandler:
    """The handler of a tree of arrays."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES)
    others = ((np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays), *others)
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class _HashingHandler(ocp.CompositeCheckpointHandler):
    """The handler of a checkpoint's items, which adds SHA256SUMS before the step is committed."""

    def __init__(self, **options: Any):
        trees: dict[str, Any] = {item: _tree_handler() for item in (MODEL, TRAINED, OPTIMIZER)}
        super().__init__(**trees, data=ocp.JsonCheckpointHandler(), **options)

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        write_sums(as_path(directory))


@ocp.args.register_with_handler(_HashingHandler, for_save=True, for_restore=True)
class _Items(ocp.args.Composite):
    """The items of a step, by name."""


def _without_traceback(record: logging.LogRecord) -> bool:
    """Drop tracebacks, one for each array that cannot be written: SaveError names the first."""
    return not record.exc_info or bool(os.environ.get("BIOMEDLM_TRACEBACK"))


class SaveError(OSError):
    """A checkpoint could not be written."""


class Checkpointer:
    """Writes a run's checkpoints in the background, and keeps the newest. Close it.

    Args:
      keep: how many of the newest finished steps stay.
      keep_every: steps that are multiples of it stay, too; 0: none.
    """

    def __init__(self, run_directory: str | Path, *, keep: int, keep_every: int = 0):
        self.run_directory = as_path(run_directory).absolute()
        self._folder = self.run_directory / FOLDER
        self._keep, self._keep_every = keep, keep_every
        self._saving: int | None = None
        self._last: int | None = None
        self._pruned: int | None = None
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_without_traceback)
        # By default threads make the directories. If that fails, others wait ten minutes for them,
        # and the process cannot end before.
        made_at_once = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        handler = _HashingHandler(
            composite_options=ocp.CompositeOptions(async_options=made_at_once)
        )
        self._orbax = ocp.AsyncCheckpointer(handler, async_options=made_at_once)

    def save(self, state: TrainState, position: dict, *, merged: Any = None) -> None:
        """Start to write `state` under its step, once the write before has ended.

        `merged`, if any, is written as the model, and what is trained as an item of its own.
        Raises SaveError if this or the write before failed.
        """
        step = int(state.step)
        models = {MODEL: state.model} if merged is None else {MODEL: merged, TRAINED: state.model}
        trees = {**models, OPTIMIZER: {"step": state.step, "opt": state.opt_state}}
        saved = {k: ocp.args.PyTreeSave(x, save_args=_in_chunks(x)) for k, x in trees.items()}
        items = _Items(**saved, data=ocp.args.JsonSave(position))
        self.wait()
        self._saving = step
        with self._named_errors():
            self._orbax.save(_orbax_path(self._folder / str(step)), args=items, force=True)

    def restore(
        self, abstract: TrainState, step: int, *, item: str = MODEL
    ) -> tuple[TrainState, dict]:
        """Return a checkpoint, sharded as `abstract`, and its data position.

        `item` has what is trained. The files are those that `choose_step` verified.
        """
        folder = self._folder / str(step)
        check_shapes(folder / item, abstract.model)
        optimizer = {"step": abstract.step, "opt": abstract.opt_state}
        wanted = {item: abstract.model, OPTIMIZER: optimizer}
        trees = {k: ocp.args.PyTreeRestore(x, restore_args=_as(x)) for k, x in wanted.items()}
        items = _Items(**trees, data=ocp.args.JsonRestore())
        with storage_errors(folder):
            saved = self._orbax.restore(_orbax_path(folder), args=items)
        self._last = step
        optimizer = saved[OPTIMIZER]
        return TrainState(optimizer["step"], saved[item], optimizer["opt"]), saved["data"]

    @property
    def last_step(self) -> int | None:
        """The newest step that is finished or being written."""
        return self._last if self._saving is None else self._saving

    def prune(self) -> None:
        """Delete the steps that are not kept, once the newest is finished; cheap otherwise.

        An error of the storage leaves them for the next call.
        """
        if jax.process_index() or self._saving in (None, self._pruned):
            return
        with contextlib.suppress(OSError):
            if not is_finished(self._folder / str(self._saving)):
                return
            for step in steps(self.run_directory)[: -self._keep]:
                if not self._keep_every or step % self._keep_every:
                    delete_step(self._folder / str(step))
            self._pruned = self._saving

    def wait(self) -> None:
        """Block until every checkpoint is on disk; raises SaveError if one could not be written."""
        with self._named_errors():
            self._orbax.wait_until_finished()
        self.prune()
        self._last, self._saving = self.last_step, None

    def close(self) -> None:
        """Wait and release the background threads; raises SaveError as `wait` does."""
        with self._named_errors():
            self._orbax.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Generator[None]:
        try:
            yield
        except Exception as error:  # TensorStore and Orbax raise many kinds for a full disk
            text = " ".join(str(error).split())[:300]
            last = "none is finished" if self._last is None else f"step {self._last} is intact"
            raise SaveError(
                f"cannot write the checkpoint of step {self._saving} to {self._folder}: "
                f"{type(error).__name__}: {text}; of the earlier ones {last}"
            ) from error


def check_shapes(item: Path, model: Any) -> None:
    """Raise InputError unless the saved item has exactly this model's tensors and dtypes."""
    saved, wanted = saved_shapes(item), _shapes(model)
    if saved == wanted:
        return
    name = next(n for n in sorted({*saved, *wanted}) if saved.get(n) != wanted.get(n))
    raise InputError(
        f"the checkpoint {item.parent} is of another model: {name} is {saved.get(name, 'absent')} "
        f"there and {wanted.get(name, 'absent')} in this config; use the run's own config"
    )


def saved_shapes(item: Path) -> dict[str, str]:
    """Return dtype and shape of each tensor in a saved item, such as "float32[3, 4]"."""
    with storage_errors(item):
        return _shapes(ocp.PyTreeCheckpointHandler().metadata(_orbax_path(item)).tree)


@contextlib.contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Raise what Orbax and TensorStore raise for a bucket that fails as OSError."""
    try:
        yield
    except (OSError, InputError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if not is_bucket(path):
            raise
        text = " ".join(str(error).split())[:300]
        raise OSError(f"cannot read {path}: {type(error).__name__}: {text}") from error


def _orbax_path(path: Path) -> epath.Path:
    return epath.Path(str(path))


def _shapes(tree) -> dict[str, str]:
    # Orbax's metadata has dictionaries where the model has attributes; the names are the same.
    return {n: f"{np.dtype(x.dtype).name}{[*x.shape]}" for n, x in named_leaves(tree).items()}


def save_model(run_directory: str | Path, model: Any, *, step: int = 0) -> None:
    """Write `model` alone as a run's checkpoint and wait until it is on disk."""
    folder = as_path(run_directory).absolute() / FOLDER
    args = ocp.args.PyTreeSave(
        model, save_args=_in_chunks(model), ocdbt_target_data_file_size=FILE_BYTES
    )
    with ocp.Checkpointer(_HashingHandler()) as checkpointer:
        checkpointer.save(_orbax_path(folder / str(step)), args=_Items(model=args))


def load_tree(run_directory: str | Path, abstract, *, step: int | None = None, item: str = MODEL):
    """Read a saved model, the newest by default, or another item, sharded as `abstract` is.

    A warning has how many numbers are rounded, if `abstract` has bfloat16 where the checkpoint has
    float32. Raises InputError if there is no such checkpoint, its files are damaged, or it is of
    another config.
    """
    folder = as_path(run_directory).absolute() / FOLDER
    there = [number for number, path in step_folders(run_directory) if is_committed(path)]
    step = max(there, default=None) if step is None else step
    if step not in there:
        raise InputError(
            f"{run_directory} has no finished checkpoint"
            f"{'' if step is None else f' of step {step}'}; finished: {there or 'none'}"
        )
    share = {"share": (jax.process_index(), jax.process_count())}
    model_files = problems_of(folder / str(step), of=lambda name: name.startswith(item), **share)
    if problems := [one for some in all_gather(model_files) for one in some]:
        others = [one for one in there if one != step]
        advice = advice_on(problems[0], others, run_directory)
        raise InputError(f"the checkpoint {folder / str(step)}: {problems[0]}; {advice}")
    saved = folder / str(step) / item
    check_shapes(saved, jax.tree.map(_as_saved, abstract))
    leaves, structure = jax.tree.flatten(abstract)
    restored, where, how = [ocp.PLACEHOLDER] * len(leaves), _orbax_path(saved), _as(abstract)
    narrowing = Narrowing(run_directory)
    with storage_errors(saved), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        for part in _parts(leaves):
            wanted = [leaf if i in part else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
            args = ocp.args.PyTreeRestore(structure.unflatten(wanted), restore_args=how)
            # Until a leaf is ready, what it is copied from is in memory too.
            got = jax.block_until_ready(jax.tree.leaves(checkpointer.restore(where, args=args)))
            for i in part:
                restored[i] = got[i]
                if isinstance(got[i], np.ndarray):
                    values = narrowing.cast(got[i], leaves[i].dtype)
                    restored[i] = jax.block_until_ready(meshes.place(values, leaves[i].sharding))
            del got
    narrowing.warn()
    return structure.unflatten(restored)


def _in_chunks(model: Any):
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), model)


def _as(abstract: Any):
    """Restore with these dtypes and shardings; what is narrower than its file, on the host."""

    def like(leaf):
        if _as_saved(leaf) is not leaf:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.dtype(np.float32))
        return ocp.ArrayRestoreArgs(dtype=leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(like, abstract)


def _as_saved(leaf):
    """Return the leaf as checkpoints have it: parameters are float32."""
    if leaf.dtype != jax.numpy.bfloat16:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=leaf.sharding)


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
