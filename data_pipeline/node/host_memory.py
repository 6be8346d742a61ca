"""How a process that computes on the CPU treats memory that it has freed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next allocation, for the rest of this process.

    By default glibc asks the kernel for each large block anew and gives it back when it is freed, and the kernel clears
    every page of it. Activations of a forward pass are such blocks: that takes a seventh of its time on a CPU
    (benchmarks/README.md). The process then holds the largest amount of memory that it ever needed.

    Returns:
        Whether the C library can do it; others than glibc are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def release_freed_memory() -> bool:
    """Give what the C library keeps of freed memory back to the kernel. Returns whether it can do that."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return False
    trim(0)
    return True
