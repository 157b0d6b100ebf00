"""The C allocator of the host: reuse the memory of freed arrays in loops on a CPU."""

import ctypes
import glob
import platform

# The constants of glibc's <malloc.h>.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8

ACCELERATORS = ("/dev/nvidia*", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")


def keep_freed_memory() -> None:
    """Keep freed memory in the process, for its next arrays; call it before jax makes its devices.

    XLA on a CPU allocates a program's temporaries at each call. By default glibc maps blocks of
    that size and unmaps them when they are freed, so the kernel zeroes all their pages each time: a
    third of a training step. The peak may grow by another program's temporaries. With an
    accelerator, or without glibc, nothing is changed.
    """
    if not _applies():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(ARENA_MAX, 1)  # the heap of a thread is limited to 64 MiB; the main one grows
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)  # never


def return_freed_memory() -> None:
    """Return free memory to the kernel, after a phase whose arrays had other sizes."""
    if _applies():
        ctypes.CDLL(None).malloc_trim(0)


def _applies() -> bool:
    accelerated = any(glob.glob(pattern) for pattern in ACCELERATORS)
    return platform.libc_ver()[0] == "glibc" and not accelerated
