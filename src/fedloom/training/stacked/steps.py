"""What the loop needs of a way to step, and the blocks of weights most ways share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .batches import Step
from .cohort import Cohort
from .perclient import PerClient
from .rows import Dense, Piece, Shared
from .sinks import Sink
from .twin import Twin

Track = Callable[[Tensor, Tensor, int], None]
"""Is told losses `(active*B,)`, their seed and `active`."""


class Steps(Protocol):
    """One way to step all active clients of a cohort; `how` names it for people."""

    how: str

    def active(self, k: int) -> None:
        """Only the first k clients go on."""
        ...

    def step(self, step: Step, track: Track) -> None:
        """One step; `track` is told the losses at the weights it began with."""
        ...

    def pieces(self) -> list[Piece]:
        """The trained vectors."""
        ...

    def carry(self, j: int) -> Any:
        """What client j's step hook handed on last."""
        ...


class Blocks:
    """The weights of all clients, parameter by parameter, `(n, *shape)` each.

    Layer by layer because an in-place product into a strided view of an `(n, d)` matrix is a loop over clients.

    Args:
        moving: names of what trains here; what does not is shared, or a constant per client.
        lazy: names that lazy layers hold instead.
    """

    def __init__(self, cohort: Cohort, twin: Twin, moving: set[str], lazy: set[str]) -> None:
        self.cohort, self.twin = cohort, twin
        layout, k = cohort.layout, cohort.k
        self.starts = cohort.starts()
        self.weights = [w for n, w in twin.weights.items() if n in moving and n not in lazy]
        self.still = [n for n in twin.weights if n not in moving]
        for w in self.weights:
            twin.put(w.name, w)
        blocks = twin.blocks("weights", (w.name for w in self.weights), k)
        views = layout.tree(self.starts)
        for w in self.weights:
            w.begin(blocks[w.name].copy_(views[w.name]))
        for name in self.still:
            twin.put(name, PerClient(views[name]) if len(self.starts) > 1 else views[name][0])
        statistics = twin.blocks("statistics", twin.statistics, k)
        for name, block in statistics.items():
            block.copy_(views[name])
        self._shrinking = [(e, e.stack) for n in self.still if isinstance(e := twin.entry(n), PerClient)]
        for name, entry in twin.statistics.items():
            twin.put(name, entry)
            self._shrinking.append((entry, statistics[name]))
        self.statistics = statistics
        twin.reset()

    def sink(self, sink: Sink) -> None:
        for w in self.weights:
            w.sink = sink

    def active(self, k: int) -> None:
        for w in self.weights:
            w.stack = w.block[:k]
        for entry, stack in self._shrinking:
            entry.stack = stack[:k]

    @property
    def stacks(self) -> list[Tensor]:
        return [w.stack for w in self.weights]

    def pieces(self) -> list[Piece]:
        layout = self.cohort.layout
        dense = {**{w.name: w.block for w in self.weights}, **self.statistics}
        out: list[Piece] = [Dense(block.view(len(block), -1), layout.span(name)) for name, block in dense.items()]
        for name in self.still:
            span = layout.span(name)
            out.append(Dense(self.starts[:, span], span) if len(self.starts) > 1 else Shared(self.starts[0], span))
        return out


def differentiate(losses: Tensor, seed: Tensor) -> None:
    """Backward from one loss per sample; the weights' sinks take the gradients."""
    if losses.requires_grad:
        torch.autograd.backward(losses, seed)


def clip_scale(clip: float, squares: list[Tensor | None]) -> Tensor | None:
    """What brings each client's gradient to the norm allowed, `(k,)`, from the squared norms of its parts."""
    parts = [s for s in squares if s is not None]
    return (clip / torch.stack(parts).sum(0).sqrt_()).clamp_(max=1.0) if parts else None
