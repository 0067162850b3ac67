"""Keep freed memory in the process, where the C library is glibc.

glibc returns large tensors to the system at every free and faults them in again at the next allocation, so a small
U-Net's training step on a CPU spends most of its time in the kernel. Calling `keep_freed_memory` once, before the work,
ends that. The memory is not returned until the process ends, so a library call never does it; the command line does.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory.

    Returns:
        Whether it does; False with another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, 2**28))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
