"""Memory that a function frees stays with the process, for its next call."""

from __future__ import annotations

import numpy as np


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks of up to 31 MB for the next call.

    Otherwise it gives each large array back to the kernel and takes it anew, page by page, in
    every call: up to half the time of an update. It raises its threshold by itself as soon as a
    block of this size was freed; where a user has set one (``MALLOC_MMAP_THRESHOLD_``), that
    stays. Other C libraries make nothing of it.
    """
    np.empty(31 << 20, dtype="uint8")
