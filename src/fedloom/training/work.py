"""What a training request computes: steps, FLOPs and memory, counted on the request itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fedloom.message import leaves

from .live import live_of
from .plain import train_one
from .products import flop_formulas
from .request import Schedule, Training, code_key
from .solvers import SGD, Adam

if TYPE_CHECKING:
    from fedloom.client import Query


class Work(NamedTuple):
    """Work of one kind.

    Attributes:
        steps: training steps.
        flops: of all of them, forward and backward (two for each multiply-add of a matrix product or convolution).
        memory: bytes one step holds: weights, gradient, what the solver and the method's hook carry, and what the
            forward pass keeps for the backward pass.
    """

    steps: int
    flops: float = 0.0
    memory: int = 0


@dataclass
class Counted:
    """FLOPs and memory by kind of request and batch shape: each is run once under a counter, and remembered."""

    _known: dict[object, Work] = field(default_factory=dict[object, Work])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[type[Counted], tuple[()]]:  # another process counts for itself
        return Counted, ()

    def training(self, request: Training) -> Work:
        """All steps of a request, with their hooks."""
        kind, flops, memory = request.alike(), 0.0, 0
        for batch, (step, times) in _batches(request).items():
            one = self._once((kind, batch), lambda step=step: _one_step(request, step))
            flops, memory = flops + times * one.flops, max(memory, one.memory)
        return Work(request.steps, flops, memory)

    def query(self, query: Query, work: Callable[[Query], Any]) -> float:
        """FLOPs of a prediction, a gradient or an evaluation: those of a few samples, times how many there are."""
        few = query.data.rows(torch.arange(min(_FEW, len(query.data))))
        shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in few.items())
        vector = query.vector if isinstance(query.vector, Tensor) else None
        key = (query.kind, query.model.key(), vector is None, code_key(query.fn), shapes)
        one = self._once(key, lambda: Work(1, counted(lambda: work(replace(query, data=few)))[0]))
        return one.flops * len(query.data) / len(few)

    def _once(self, key: object, count: Callable[[], Work]) -> Work:
        if key not in self._known:
            with self._lock:
                self._known[key] = count()
        return self._known[key]


_FEW = 4


def _batches(request: Training) -> dict[tuple[int, ...], tuple[int, int]]:
    """Samples of a batch, by stream -> (the first step with such a batch, how many there are)."""
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    for k, batch in enumerate(zip(*(map(int, s.counts) for s in request.schedules.values()))):
        first, times = found.get(batch, (k, 0))
        found[batch] = (first, times + 1)
    return found


def _one_step(request: Training, k: int) -> Work:
    """Step `k` of a request, run and counted."""
    schedules = {n: Schedule(s.index[k : k + 1], s.counts[k : k + 1]) for n, s in request.schedules.items()}
    weights = live_of(request.model, request.start).vector
    flops, kept = counted(lambda: train_one(replace(request, steps=1, schedules=schedules)), weights)
    solver = request.solver
    moments = 2 if isinstance(solver, Adam) else int(isinstance(solver, SGD) and solver.momentum > 0)
    carried = sum(t.numel() * t.element_size() for t in leaves(request.carry) if isinstance(t, Tensor))
    vectors = (2 + moments) * request.start.numel() * request.start.element_size()
    return Work(1, flops, vectors + carried + kept)


def counted(work: Callable[[], object], weights: Tensor | None = None) -> tuple[float, int]:
    """Do some work, and count it.

    Returns:
        FLOPs (two for each multiply-add of a matrix product or convolution), and the bytes that forward passes keep for
        backward passes, without those of `weights`, which are there anyway.
    """
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    with counter, saved_tensors_hooks(keep, lambda t: t):
        work()
    if weights is not None:
        kept.pop(weights.untyped_storage().data_ptr(), None)
    return float(counter.get_total_flops()), sum(kept.values())
