"""A full disk, a read-only one, and logs that cannot be written.

A run ends with exit code 1 if a checkpoint cannot be written, and keeps those before; it never ends
because of a log.
"""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import biomedlm_jax
from biomedlm_jax.cli import main
from biomedlm_jax.integrity import SUMS
from biomedlm_jax.training import fit
from biomedlm_jax.training.checkpoint import Checkpointer

PACKAGE = Path(biomedlm_jax.__file__).parent
SETTINGS = {
    "training.steps": 6,
    "training.evaluate_every": 3,
    "checkpoint.every": 2,
    "checkpoint.keep": 9,
}
# As root, permissions count only without two capabilities.
WITHOUT_PRIVILEGES = """
import ctypes
if os.geteuid() == 0:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    for number in (0, 1):  # effective and permitted: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        data[number] &= ~0b110
    assert libc.capset(header, data) == 0
"""
READ_ONLY_AFTER_TWO_STEPS = """
def restrict(self, state, *arguments, original=checkpoint.Checkpointer.save, **options):
    if int(state.step) == 4:
        self._orbax.wait_until_finished()
        for folder in (self.run_directory, self.run_directory / "checkpoints"):
            folder.chmod(0o555)
    original(self, state, *arguments, **options)
checkpoint.Checkpointer.save = restrict
"""


LIMITED_AFTER_TWO_STEPS = """
import asyncio
import resource
def if_open(self, *arguments, original=asyncio.BaseEventLoop.call_soon_threadsafe, **options):
    return None if self.is_closed() else original(self, *arguments, **options)
def restrict(self, state, *arguments, original=checkpoint.Checkpointer.save, **options):
    if int(state.step) == 4:
        self._orbax.wait_until_finished()
        # stderr is a file, too. TensorStore could fill it: its threads print a traceback for each
        # array whose write ends after the loop was closed.
        asyncio.BaseEventLoop.call_soon_threadsafe = if_open
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    original(self, state, *arguments, **options)
checkpoint.Checkpointer.save = restrict
"""


def start(faults, arguments, records, *, patch, **options):
    """As `faults.start`, but as the installed program calls the command."""
    program = f"{patch}\nfrom biomedlm_jax.cli import main\nsys.exit(main())"
    return faults.start(arguments, records, patch=program, **options)


def assert_failed(text, run):
    """One line, the last, names the step and what is left."""
    # TensorStore's threads print tracebacks of their own after a write that failed.
    assert f'File "{PACKAGE}' not in text
    last = text.splitlines()[-1]
    start = "biomedlm pretrain: error: cannot write the checkpoint of step 4 to "
    assert last.startswith(f"{start}{run / 'checkpoints'}: "), text
    assert last.endswith("; of the earlier ones step 3 is intact")
    assert text.count("biomedlm pretrain: error: ") == 1


@pytest.fixture(scope="module")
def undisturbed(faults, dataset, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("disk") / "run"
    assert main(faults.pretrain_arguments(dataset, run, **SETTINGS)) == 0
    return run


@pytest.fixture
def begun(undisturbed, tmp_path) -> Path:
    """A run that has saved two steps."""
    run = shutil.copytree(undisturbed, tmp_path / "run")
    for path in (run / "checkpoints").iterdir():
        if path.name != "2":
            shutil.rmtree(path)
    return run


@contextlib.contextmanager
def file_sizes_limited_to(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class SmallDisk:
    """A file system of 64 MiB, with 16 KiB left while it is `full`."""

    def __init__(self, folder):
        self.folder = folder

    @contextlib.contextmanager
    def full(self):
        ballast = self.folder / "ballast"
        try:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(2**14)):
                    pass
            os.truncate(ballast, ballast.stat().st_size - 2**14)
            yield
        finally:
            ballast.unlink()


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"{error}; a limit of file sizes stands for a full disk")
    if done.returncode:
        pytest.skip(f"{done.stderr.strip()}; a limit of file sizes stands for a full disk")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def assert_as_undisturbed(faults, run, undisturbed):
    faults.assert_same_state(faults.saved_state(run), faults.saved_state(undisturbed))
    assert faults.lines_of(run) == faults.lines_of(undisturbed)


def test_a_full_disk(faults, dataset, undisturbed, disk, monkeypatch, capsys):
    run, original = disk.folder / "run", Checkpointer.save
    arguments = faults.pretrain_arguments(dataset, run, **SETTINGS)
    with contextlib.ExitStack() as full:

        def save(self, state, *others, **options):
            if int(state.step) == 4:
                self.wait()
                full.enter_context(disk.full())
            original(self, state, *others, **options)

        monkeypatch.setattr(Checkpointer, "save", save)
        assert main(arguments) == 1
        monkeypatch.undo()
        text = capsys.readouterr().err
        assert_failed(text, run)
        assert faults.steps(run) == [2, 3]
        assert main(arguments) == 1  # a restart cannot help yet
        assert faults.steps(run) == [2, 3]
    capsys.readouterr()
    assert main(arguments) == 0
    assert_as_undisturbed(faults, run, undisturbed)
    assert faults.steps(run) == faults.steps(undisturbed)
    assert not [path for path in (run / "checkpoints").iterdir() if not path.name.isdecimal()]


@pytest.mark.slow
def test_a_limit_of_file_sizes(faults, dataset, undisturbed, tmp_path):
    """Arrays, but not directories, cannot be written; the process ends at once and silently."""
    run, records = tmp_path / "run", tmp_path / "records"
    arguments = faults.pretrain_arguments(dataset, run, **SETTINGS)
    process = start(faults, arguments, records, patch=LIMITED_AFTER_TWO_STEPS, devices=8)
    (text,) = faults.ended(process)
    assert process.returncode == 1, text
    assert_failed(text, run)
    assert faults.steps(run) == [2, 3]
    assert main(arguments) == 0
    assert_as_undisturbed(faults, run, undisturbed)


@pytest.mark.slow
def test_a_directory_that_becomes_read_only(faults, dataset, tmp_path):
    run, records = tmp_path / "run", tmp_path / "records"
    arguments = faults.pretrain_arguments(dataset, run, **SETTINGS)
    try:
        patch = WITHOUT_PRIVILEGES + READ_ONLY_AFTER_TWO_STEPS
        process = start(faults, arguments, records, patch=patch)
        (text,) = faults.ended(process)
        assert process.returncode == 1, text
        assert_failed(text, run)
        process = faults.start(arguments, records, patch=WITHOUT_PRIVILEGES)
        (text,) = faults.ended(process)
        assert process.returncode == 1, text
        assert text.splitlines()[-1].startswith("biomedlm pretrain: error: Permission denied: ")
        assert str(run) in text.splitlines()[-1]
        assert "Traceback" not in text
    finally:
        for folder in (run, run / "checkpoints"):
            folder.chmod(0o755)
    assert faults.steps(run) == [2, 3]
    process = faults.start(arguments, records, patch=WITHOUT_PRIVILEGES)
    (text,) = faults.ended(process)
    assert process.returncode == 0, text
    assert faults.steps(run)[-1] == 6
    assert [line["step"] for line in faults.lines_of(run)] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_logs_that_cannot_be_written(faults, dataset, undisturbed, begun, capsys):
    """Directories in the place of two files, and a full device in the place of another."""
    for name in ("metrics.jsonl", "loss.png"):
        (begun / name).unlink(missing_ok=True)
        (begun / name).mkdir()
    if Path("/dev/full").exists():
        (begun / "events.jsonl").unlink()
        (begun / "events.jsonl").symlink_to("/dev/full")
    assert main(faults.pretrain_arguments(dataset, begun, **SETTINGS)) == 0
    text = capsys.readouterr().err
    assert text.count("cannot write metrics.jsonl (") == 1
    assert text.count("cannot write events.jsonl (") == Path("/dev/full").exists()
    assert text.count("cannot draw loss.png (") == 1
    assert "finished 6 steps" in text
    faults.assert_same_state(faults.saved_state(begun), faults.saved_state(undisturbed))
    assert main(["inspect", str(begun)]) == 0


def test_lines_that_had_to_wait_are_written_once(
    faults, dataset, undisturbed, begun, monkeypatch, capsys
):
    """No file may grow by more than ten bytes between the third step and the fifth."""
    original, full = fit.jit_step, contextlib.ExitStack()

    def jit_step(*arguments, **options):
        update = original(*arguments, **options)

        def step(state, *values, **named):
            if int(state.step) == 4:
                while not (begun / "checkpoints" / "3" / SUMS).exists():
                    time.sleep(0.01)
                size = (begun / "metrics.jsonl").stat().st_size
                full.enter_context(file_sizes_limited_to(size + 10))
            if int(state.step) == 5:
                full.close()
            return update(state, *values, **named)

        return step

    monkeypatch.setattr(fit, "jit_step", jit_step)
    settings = {**SETTINGS, "checkpoint.every": 6}
    with full:
        assert main(faults.pretrain_arguments(dataset, begun, **settings)) == 0
    assert capsys.readouterr().err.count("cannot write metrics.jsonl (") == 1
    assert_as_undisturbed(faults, begun, undisturbed)


def test_standard_error_on_a_full_disk(faults, dataset, undisturbed, begun, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        code = main(faults.pretrain_arguments(dataset, begun, **SETTINGS))
    monkeypatch.undo()
    assert code == 0
    assert_as_undisturbed(faults, begun, undisturbed)


def test_without_tensorboard_and_after_a_line_that_a_crash_cut_off(
    faults, dataset, undisturbed, begun, monkeypatch, capsys
):
    file, before = begun / "events.jsonl", faults.read_events(begun)
    file.write_bytes(file.read_bytes()[:-9])
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    settings = {**SETTINGS, "logging.trackers": ("tensorboard",)}
    assert main(faults.pretrain_arguments(dataset, begun, **settings)) == 0
    assert capsys.readouterr().err.count("cannot write TensorBoard's events (") == 1
    assert_as_undisturbed(faults, begun, undisturbed)
    after = faults.read_events(begun)
    assert after[: len(before) - 1] == before[:-1]
    assert after[len(before) - 1]["event"] == "start"
    assert main(["verify", str(begun)]) == 0


@pytest.mark.slow
def test_tensorboard_on_a_full_disk(faults, dataset, tmp_path):
    """TensorBoard's own thread ends with the first error; its queue is full soon after."""
    patch = f"""
from tensorboardX.event_file_writer import EventsWriter
def flush(self, visits=[]):
    visits.append(1)
    if len(visits) > 1:
        raise OSError({errno.ENOSPC}, "No space left on device")
EventsWriter.flush = flush
"""
    settings = {**SETTINGS, "logging.trackers": ("tensorboard",), "faults.hang_minutes": 1}
    arguments = faults.pretrain_arguments(dataset, tmp_path / "run", **settings)
    process = faults.start(arguments, tmp_path / "records", patch=patch)
    (text,) = faults.ended(process)
    assert process.returncode == 0, text
    assert text.count("cannot write TensorBoard's events (") == 1
    assert faults.steps(tmp_path / "run")[-1] == 6
