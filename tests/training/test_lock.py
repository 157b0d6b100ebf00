"""lock.py: one writer of a run directory, on a file system and in a bucket."""

import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from cases import mostly_slow
from gcs import bucket, gcs_server  # noqa: F401

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError
from biomedlm_jax.training import lock
from biomedlm_jax.training.lock import LOCK, LockError, lock_run


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    for name, seconds in (("HEARTBEAT", 0.1), ("STALE", 1.5), ("SETTLE", 0.1), ("SEEN", 0.2)):
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)


PLACES = ["local", "bucket"]


@pytest.fixture(params=PLACES)
def run(request, tmp_path):
    if request.param == "bucket":
        return as_path(request.getfixturevalue("bucket")) / "run"
    return tmp_path / "run"


def write_lock(run, **facts) -> None:
    run.mkdir(exist_ok=True)
    (run / LOCK).write_text(json.dumps({"key": "other", "heartbeat": 0, "pid": 1, **facts}))


def content(run) -> dict:
    return json.loads((run / LOCK).read_text())


@pytest.fixture
def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_lock_is_there_in_the_block_only(run):
    with lock_run(run):
        assert content(run)["host"] == socket.gethostname()
        beat = content(run)["heartbeat"]
        time.sleep(0.5)
        assert content(run)["heartbeat"] > beat
    assert not (run / LOCK).exists()
    assert [*run.glob(f"*{LOCK}*")] == []


def test_a_living_holder_is_refused_and_keeps_its_lock(run):
    with lock_run(run):
        key = content(run)["key"]
        with pytest.raises(LockError, match="is being written by process"), lock_run(run):
            pass
        assert content(run)["key"] == key
    with lock_run(run):  # free again
        pass


@pytest.mark.parametrize("run", mostly_slow(PLACES, ["bucket"]), indirect=True)
def test_only_one_of_two_that_start_together_gets_it(run):
    begin, got = threading.Barrier(4), []

    def hold():
        begin.wait()
        try:
            with lock_run(run):
                got.append("held")
                time.sleep(1)
        except LockError:
            got.append("refused")

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["held", "refused", "refused", "refused"]


def test_a_lock_of_an_ended_process_is_replaced_at_once(run, ended_process, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 3600.0)
    write_lock(run, machine=lock._machine(), pid=ended_process, pid_started="1")
    with lock_run(run):
        assert content(run)["key"] != "other"


def test_a_number_that_another_process_got_is_no_holder(run, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 3600.0)
    write_lock(run, machine=lock._machine(), pid=1, pid_started="an earlier start")
    with lock_run(run):
        assert content(run)["key"] != "other"


@pytest.mark.parametrize("run", mostly_slow(PLACES, ["bucket"]), indirect=True)
def test_a_silent_holder_of_another_host_is_replaced_after_a_while(run):
    write_lock(run, host="elsewhere")
    start = time.monotonic()
    with lock_run(run):
        assert time.monotonic() - start >= 1.5
        assert content(run)["key"] != "other"


@pytest.mark.parametrize("run", mostly_slow(PLACES, ["bucket"]), indirect=True)
def test_a_beating_holder_of_another_host_is_refused(run):
    write_lock(run, host="elsewhere")
    beat = threading.Timer(0.5, lambda: write_lock(run, host="elsewhere", heartbeat=1))
    beat.start()
    with pytest.raises(LockError, match="process 1 on elsewhere"), lock_run(run):
        pass
    beat.join()
    assert content(run)["heartbeat"] == 1


@pytest.mark.parametrize("run", mostly_slow(PLACES, ["local"]), indirect=True)
def test_a_container_with_this_hosts_name_and_other_processes_is_watched(run, ended_process):
    facts = {"host": socket.gethostname(), "machine": "of another container"}
    write_lock(run, **facts, pid=ended_process, pid_started="1")
    beat = threading.Timer(0.5, lambda: write_lock(run, **facts, pid=ended_process, heartbeat=1))
    beat.start()
    with pytest.raises(LockError, match="is being written by process"), lock_run(run):
        pass
    beat.join()


def test_of_two_that_found_the_same_stale_lock_one_gets_it(tmp_path, ended_process):
    run = tmp_path / "run"
    write_lock(run, machine=lock._machine(), pid=ended_process, pid_started="1")
    stale = content(run)
    with lock_run(run):  # the first has taken it over, and the second still holds it for stale
        mine = content(run)["key"]
        with pytest.raises(LockError, match="is being written by process"):
            lock._Lock(run / LOCK)._take_over(stale)
        assert content(run)["key"] == mine


@pytest.mark.slow
def test_a_beat_that_is_being_written_does_not_bring_a_lock_back(tmp_path, monkeypatch):
    def write_slowly(*arguments, original=lock.write_text):
        time.sleep(0.3)
        original(*arguments)

    monkeypatch.setattr(lock, "write_text", write_slowly)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.2)
    for _ in range(3):
        with lock_run(tmp_path / "run"):
            time.sleep(0.3)
        time.sleep(0.4)
        assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("run", mostly_slow(PLACES, ["local"]), indirect=True)
@pytest.mark.parametrize("torn", mostly_slow(["", '{"host": "elsewh', "[]"], ['{"host": "elsewh']))
def test_a_torn_lock_counts_as_one_of_an_unknown_host(run, torn):
    run.mkdir(exist_ok=True)
    (run / LOCK).write_text(torn)
    start = time.monotonic()
    with lock_run(run):
        assert time.monotonic() - start >= 1.5
        assert content(run)["pid"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lock_of_another_is_not_removed(run):
    """As if this process had been suspended, and its lock had been taken over."""
    ended = []
    with pytest.MonkeyPatch.context() as patch, lock_run(run):
        patch.setattr(lock.os, "_exit", lambda code: ended.append(code) or sys.exit(code))
        write_lock(run, host="elsewhere")
        time.sleep(0.3)
    assert ended == [1]
    assert content(run)["key"] == "other"


def test_a_directory_that_is_not_shared_is_refused(run, monkeypatch):
    """Another process, simulated by what it answers, does not see the lock."""
    monkeypatch.setattr(lock, "all_gather", lambda seen: [seen, False])
    with (
        pytest.raises(InputError, match=f"process 1 does not find {run / LOCK}, which process 0"),
        lock_run(run),
    ):
        pass
    assert not (run / LOCK).exists()
    assert not lock._sees(run / LOCK, "key")


def test_a_repeated_request_finds_its_own_lock(bucket, monkeypatch):  # noqa: F811
    """The answer of a request was lost, and the client sent it again."""
    run = as_path(bucket) / "run"
    original = type(run).create

    def twice(self, data):
        original(self, data)
        original(self, data)

    monkeypatch.setattr(type(run), "create", twice)
    with lock_run(run):
        assert content(run)["pid"]
