import ctypes
import platform
import subprocess
import sys

import pytest

from biomedlm_jax import allocator

# Allocate two blocks of 100 MB in turn; print the page faults of the second one.
PROGRAM = """
import resource
import numpy as np
from biomedlm_jax import allocator

if {keep}:
    allocator.ACCELERATORS = {accelerators}
    allocator.keep_freed_memory()
np.ones(100_000_000, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(100_000_000, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool, accelerators=()) -> int:
    program = PROGRAM.format(keep=keep, accelerators=accelerators)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_used_again():
    # at least 48 pages, even with huge pages of 2 MiB
    assert page_faults(keep=False) >= 48
    assert page_faults(keep=True) < 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_nothing_changes_with_an_accelerator():
    assert page_faults(keep=True, accelerators=("/dev/null",)) >= 48


def test_nothing_changes_without_glibc(monkeypatch):
    calls = []
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", calls.append)
    allocator.keep_freed_memory()
    allocator.return_freed_memory()
    assert calls == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_can_be_returned():
    program = PROGRAM.replace("before =", "allocator.return_freed_memory()\nbefore =")
    done = subprocess.run(
        [sys.executable, "-c", program.format(keep=True, accelerators=())],
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) >= 48
