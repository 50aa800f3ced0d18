"""Cores there are, and how many threads PyTorch's operators may use."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence

import torch

_LARGE = 4 << 20
"""Numbers in a vector from which the server's arithmetic on it gains by a second thread."""


def cores() -> list[int]:
    """Those this process may use, by number: not all of the machine's in a container, or under `taskset`."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def stay_on(these: Sequence[int]) -> None:
    """Have this process run on these cores only; on any, where they are no longer its own."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, these)


def core() -> int:
    """The one this thread runs on at the moment; -1 where the system does not say."""
    return _asks_for_core()()


@functools.cache
def _asks_for_core() -> Callable[[], int]:
    return getattr(ctypes.CDLL(None), "sched_getcpu", lambda: -1) if sys.platform == "linux" else lambda: -1


class intra_op:
    """That many threads inside operators, within the block: one while clients are the unit of parallel work."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        if self.before != self.n:
            torch.set_num_threads(self.n)

    def __exit__(self, *_: object) -> None:
        if self.before != self.n:
            torch.set_num_threads(self.before)


def for_vectors(size: int) -> intra_op:
    """For the server's arithmetic on vectors `(size,)`. On short ones threads wait for each other, most of all where
    another process has work to do: a sum of 0.1 ms was seen to take 3 ms."""
    return intra_op(torch.get_num_threads() if size >= _LARGE else 1)
