"""The C library's heap, from which torch takes the memory of CPU tensors."""

from __future__ import annotations

import ctypes
import os

#: Names of options in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Blocks of more bytes are mapped one by one: the most that glibc comes to by itself.
_MAPPED = 32 * 2**20


def keep_freed() -> bool:
    """Makes glibc keep what a training step frees for the next one.

    By default it returns the end of its heap to the system again and again, and each step faults the same pages in
    anew: 13% of a step of ResNet-56 to ResNet-20 on two cores.

    Returns:
        Whether it did: not with another C library, nor where the environment has thresholds of its own.
    """
    libc = _glibc()
    if libc is None or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    return bool(libc.mallopt(_MMAP_THRESHOLD, _MAPPED) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def give_back() -> None:
    """Returns what is free in glibc's heap to the system; does nothing with another C library."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
