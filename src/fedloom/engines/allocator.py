"""Large temporaries of one step are needed again in the next: tell the C allocator not to hand them back in between."""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP, _KEEP = 32 << 20, 512 << 20  # bytes; glibc takes no larger mmap threshold


@functools.cache
def keep_freed_memory() -> bool:
    """Raise glibc's mmap and trim thresholds, once a process; elsewhere do nothing.

    Without it every activation of a convolution is mapped and faulted anew, tens of thousands of page faults a round.

    Returns:
        whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)) and bool(mallopt(_TRIM_THRESHOLD, _KEEP))
