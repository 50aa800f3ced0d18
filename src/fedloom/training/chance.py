"""Ordinary torch randomness (dropout, `randn` in a module or hook) as a function of the job's key.

The default generator is one for the whole process. A job that draws from it runs alone in its process, on a
generator seeded by its key, and leaves the generator as it was. Most jobs draw nothing, and seeding costs
more than a small step: so whether this kind of job draws is found out the first time it runs, and checked
ever after. Where clients are stacked, the key is that of all jobs of the computation: one draw for all is as quick as
for one, a generator for each would cost a kernel for each client, layer and step. So stacked and sequential runs with
dropout, and runs with other workers where these decide what is computed together, are equal in distribution alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedloom.keyed import seed_of

T = TypeVar("T")

_ALONE = threading.RLock()
_DRAWS: dict[Hashable, bool] = {}


def repeatable(work: Callable[[], T], key: tuple[Any, ...], kind: Hashable, device: torch.device) -> T:
    """`work()`, whose torch randomness is that of `key` whatever ran before or runs beside it.

    Args:
        work: must not depend on an earlier call; it is called again if it drew numbers nobody expected.
        kind: equal for work that draws alike (same model, same hooks).
    """
    if _DRAWS.get(kind) is False:
        before = _states(device)
        done = work()
        if _same(before, _states(device)):
            return done
        with _ALONE:  # not while another job draws
            _restore(device, before)  # it, or another thread, drew: done again with numbers of its own
        _DRAWS[kind] = True
    if len(_DRAWS) >= 4096:
        _DRAWS.clear()
    with seeded(key, device) as drew:
        done = work()
        _DRAWS[kind] = _DRAWS.get(kind, False) or drew()
    return done


@contextmanager
def seeded(key: tuple[Any, ...], device: torch.device) -> Iterator[Callable[[], bool]]:
    """The default generators seeded by `key`, for this block alone. Gives a function: has it drawn?"""
    with _ALONE:
        before = _states(device)
        seed = seed_of("torch", *key)
        for generator in _generators(device):
            generator.manual_seed(seed)
        fresh = _states(device)
        try:
            yield lambda: not _same(fresh, _states(device))
        finally:
            _restore(device, before)


class Steady:
    """The torch randomness of a step's first evaluation, in every other one: its gradients at two points are those of
    one network, and differ by what lies between the points alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: list[Tensor] | None = None

    def begin(self) -> None:
        """The next step, with draws of its own."""
        self._first = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """One evaluation."""
        now = _states(self._device)
        if self._first is None:
            self._first = now
            yield
            return
        _restore(self._device, self._first)
        try:
            yield
        finally:
            _restore(self._device, now)


def _generators(device: torch.device) -> list[torch.Generator]:
    if device.type != "cuda":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def _states(device: torch.device) -> list[Tensor]:
    return [g.get_state() for g in _generators(device)]


def _restore(device: torch.device, states: list[Tensor]) -> None:
    for generator, state in zip(_generators(device), states):
        generator.set_state(state)


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))
