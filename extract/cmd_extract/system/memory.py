"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Make ``malloc`` reuse freed memory instead of returning it to the system; only glibc has this setting.

    Each step of a training run on a CPU allocates the same tensors again. By default glibc returns those over 32 MB to
    the system, which then fills new pages with zeros. Two epochs of recipe ``gestures`` on one thread take 32.7 s
    instead of 40.5 s, with 5 % more memory.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
