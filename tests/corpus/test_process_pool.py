import multiprocessing
import os
import subprocess
import sys
import time

import pytest
from pool_tasks import fail_at, kill_itself, slow_square, wait_for_file

from biomedlm_jax.corpus.process_pool import worker_processes
from biomedlm_jax.errors import InputError


def assert_that_all_have_ended():
    """A thread of the pool and this one wait for the same process; one of them learns it late."""
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


def test_results_come_in_the_order_of_the_tasks():
    for workers in (1, 2):
        with worker_processes(workers) as run:
            tasks = ((number,) for number in range(8))
            assert [*run(slow_square, tasks)] == [number * number for number in range(8)]
            assert [*run(slow_square, [])] == []
            assert [*run(slow_square, [(3,)])] == [9]
    assert_that_all_have_ended()


def test_a_long_task_does_not_stop_the_others(tmp_path):
    with worker_processes(2) as run:
        tasks = ((str(tmp_path / "last"), number, 19) for number in range(20))
        assert next(run(wait_for_file, tasks))


def test_an_error_ends_all_processes():
    for workers in (1, 2):
        with pytest.raises(InputError, match="3 is bad"), worker_processes(workers) as run:
            list(run(fail_at, ((n, 3) for n in range(9))))
    assert_that_all_have_ended()
    with pytest.raises(OSError, match="a worker process was killed"), worker_processes(2) as run:
        list(run(kill_itself, [(1,)]))


def test_processes_end_with_their_parent():
    """Also if the parent cannot end them."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from biomedlm_jax.corpus.process_pool import worker_processes\n"
        "import os\n"
        "if __name__ == '__main__':\n"
        "    with worker_processes(2) as run:\n"
        "        for pid in run(os.getpid, ((),) * 4):\n"
        "            print(pid, flush=True)\n"
        "            time.sleep(60)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parent = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{worker}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the worker lives on")
