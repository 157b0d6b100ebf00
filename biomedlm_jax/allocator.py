"""The C allocator of the host: let loops on a CPU reuse the memory of freed arrays."""

import ctypes
import glob
import platform

# The constants of glibc's <malloc.h>.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8

ACCELERATORS = ("/dev/nvidia*", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")


def keep_freed_memory() -> None:
    """Keep what later arrays can reuse; call it before jax makes its devices.

    XLA on a CPU allocates a program's temporaries anew at each call. glibc takes blocks that large
    from the kernel and gives them back, so all their pages are faulted in and zeroed each time: a
    third of a training step. Afterwards freed memory stays with the process, for its next arrays;
    the peak may grow by another program's temporaries. Beside an accelerator, and elsewhere than
    under glibc, nothing is changed.
    """
    if not _applies():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(ARENA_MAX, 1)  # the heap of a thread of its own ends at 64 MiB; the main one grows
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)  # never


def return_freed_memory() -> None:
    """Give the system what lies free now; for the end of a phase whose arrays had other sizes."""
    if _applies():
        ctypes.CDLL(None).malloc_trim(0)


def _applies() -> bool:
    beside = any(glob.glob(pattern) for pattern in ACCELERATORS)
    return platform.libc_ver()[0] == "glibc" and not beside
