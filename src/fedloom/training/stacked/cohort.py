"""The requests trained together, longest first: what they share, what differs, and the vectors of their steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.training.request import Training
from fedloom.training.symbols import Terms as Constants
from fedloom.training.symbols import leaf

from .fold import NotStackable
from .perclient import PerClient
from .rows import NOTHING, Row, Terms, combined, term


def built(value: Any) -> Any:
    """Deferred rows as ordinary tensors."""
    return value.build() if isinstance(value, Row) else value


@dataclass(frozen=True)
class Shift:
    """`start * w_0 + vectors`: a constant of the step. `vectors` is `(k, d)`, one `(1, d)` for all, or None.

    Attributes:
        terms: of each client what its vector is a sum of, where all of that lasts as long as the results.
    """

    start: float = 0.0
    vectors: Tensor | None = None
    terms: Sequence[Terms] | None = None

    def piece(self, span: slice, shape: Sequence[int], start: Tensor | None) -> Tensor | None:
        """Its entries for one parameter, `(k or 1, *shape)`; None where it is zero."""
        out = None if self.vectors is None else self.vectors[:, span].unflatten(1, tuple(shape) or (1,))
        if out is not None:
            out = out.view(len(out), *shape)
        if self.start and start is not None:
            base = start[span].view(1, *shape) * self.start
            out = base if out is None else out + base
        return out


class Cohort:
    """k requests with equal `alike()` keys.

    Attributes:
        requests: sorted by number of steps, longest first; `order[j]` is where request j stood before.
        start: the start vector where it is one object for all, else None.
        only: what may move, `(d,)` where it is the same for all, else `(k, d)`; None for everything.
    """

    def __init__(self, requests: Sequence[Training]) -> None:
        self.order = sorted(range(len(requests)), key=lambda i: -requests[i].steps)
        self.requests = [requests[i] for i in self.order]
        self.k = len(requests)
        first = self.requests[0]
        self.model, self.solver, self.layout = first.model, first.solver, first.model.layout
        self.start = first.start if all(r.start is first.start for r in requests) else None
        self.steps = [r.steps for r in self.requests]
        self.only = _same_mask([r.only for r in self.requests])

    @property
    def first(self) -> Training:
        return self.requests[0]

    def starts(self) -> Tensor:
        """All start vectors `(k, d)`, or the shared one `(1, d)`."""
        if self.start is not None:
            return built(self.start).detach().unsqueeze(0)
        return torch.stack([built(r.start).detach() for r in self.requests])

    def extras(self) -> dict[str, Any]:
        """What hooks are given, for loss hooks: equal objects once, tensors that differ as PerClient."""
        return {n: merged([r.extras[n] for r in self.requests], PerClient) for n in self.first.extras}

    def shift(self, terms: Constants, room: Callable[[], Tensor]) -> Shift:
        """The constant `sum c * vector` of a step, clients side by side; `room` has memory for that, `(k, d)`."""
        start, shared, own = 0.0, [], []
        for path, c in terms:
            values = [leaf(path, r.extras, r.carry) for r in self.requests]
            if self.start is not None and all(v is self.start for v in values):
                start += c
            elif all(v is values[0] for v in values):
                shared.append((values, c))
            else:
                own.append((values, c))
        if not (own or shared):
            return Shift(start)
        common = None
        for values, c in shared:
            v = built(values[0])
            common = v * c if common is None else common.add_(v, alpha=c)
        parts = self._parts([*shared, *own])
        if not own:
            assert common is not None
            return Shift(start, common.unsqueeze(0), parts)
        (first, c0), rest = own[0], own[1:]
        rows = room()
        for j, row in enumerate(rows):
            if common is None:
                torch.mul(built(first[j]), c0, out=row)
            else:
                torch.add(common, built(first[j]), alpha=c0, out=row)
            for values, c in rest:
                row.add_(built(values[j]), alpha=c)
        return Shift(start, rows, parts)

    def _parts(self, sums: Sequence[tuple[Sequence[Tensor], float]]) -> list[Terms] | None:
        """Of each client the terms of its vector, if all were given to its job."""
        out: list[Terms] = []
        for j, r in enumerate(self.requests):
            mine: Terms = NOTHING
            for values, c in sums:
                if not any(values[j] is g for g in r.given):
                    return None
                mine = combined(mine, term(values[j], c))
            out.append(mine)
        return out


def _same_mask(masks: Sequence[Tensor | None]) -> Tensor | None:
    given = [m for m in masks if m is not None]
    if not given or all(m is given[0] or torch.equal(m, given[0]) for m in given):
        return given[0] if given else None
    return torch.stack(given)


def merged(values: Sequence[Any], several: Callable[[Tensor], Any]) -> Any:
    """One value for all clients: the object they share, or their tensors as `several((k, ...))`; trees leaf by leaf.

    Raises:
        NotStackable: values that differ and are not tensors.
    """
    first = values[0]
    if all(v is first for v in values):
        return built(first)
    if isinstance(first, Tensor):
        return several(torch.stack([built(v) for v in values]))
    if isinstance(first, Mapping):
        return {n: merged([v[n] for v in values], several) for n in first}
    if isinstance(first, list | tuple):
        items = [merged([v[i] for v in values], several) for i in range(len(first))]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    if all(type(v) is type(first) and v == first for v in values):
        return first
    raise NotStackable(f"extras hold {type(first).__name__} objects that differ between clients")
