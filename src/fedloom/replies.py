"""What comes back from clients: replies, the cohort they were, and figures of how good a result is."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, cast, overload

import numpy as np
import torch
from torch import Tensor

from .engines.fold import Total, as_sent, brief, check_names, divided, fold_chunk, structure
from .errors import DataError, MessageError
from .message import Message
from .written import record


@record
@dataclass(frozen=True)
class Reply:
    """One client's answer, with the fields of its message as attributes (`reply.delta`).

    Attributes:
        id: who; `n` its training samples; `job` the number of the job.
        staleness: rounds returned between the job's sending and now.
        began, time: seconds when its job was sent and when it arrived: both transfers lie between, and what the job
            waited for.
        sent: the payload it answers.
    """

    id: int
    n: int
    job: int
    staleness: int
    began: float
    time: float
    sent: Message
    message: Message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "message":
            raise AttributeError(name)
        return getattr(self.message, name)


@record
@dataclass(frozen=True)
class Replies(Sequence[Reply]):
    """Answers of several clients, in the order they were asked (or arrived).

    `replies.delta` is the stack `(n, ...)` of a field (a list where shapes or kinds differ), `replies.ids`,
    `replies.mean(...)`.
    """

    items: tuple[Reply, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Reply: ...
    @overload
    def __getitem__(self, index: slice) -> Replies: ...
    def __getitem__(self, index: int | slice) -> Reply | Replies:
        return Replies(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Reply]:
        return iter(self.items)

    def __add__(self, other: Iterable[Reply]) -> Replies:
        return Replies(self.items + tuple(other))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "items":
            raise AttributeError(name)
        if not self.items:
            raise DataError(f"no replies, so no {name!r}: an empty cohort is legal, ask `if replies` first")
        values = [getattr(r.message, name) for r in self.items]
        if all(isinstance(v, Tensor) for v in values):
            same = all(v.shape == values[0].shape for v in values)
            return torch.stack(values) if same else values
        return torch.tensor(values) if all(isinstance(v, int | float) for v in values) else values

    @property
    def ids(self) -> list[int]:
        return [r.id for r in self.items]

    @property
    def weights(self) -> Tensor:
        """Shares of training samples `(n,)`, adding up to 1.

        Raises:
            DataError: nobody has any.
        """
        n = torch.tensor([float(r.n) for r in self.items])
        if self.items and not n.any():
            raise DataError(f"clients {self.ids[:5]} have no training samples, so there are no shares of them")
        return n / n.sum()

    def where(self, keep: Callable[[Reply], bool]) -> Replies:
        """Those that satisfy a condition."""
        return Replies(tuple(r for r in self.items if keep(r)))

    def sum(self, weight: Callable[[Reply], float] | None = None) -> Message:
        """`sum_k weight(reply_k) * field_k` for every field (weight 1 by default), `count` and `weight`."""
        if not self.items:
            return Message(count=0, weight=0.0)
        total = self._added(weight or (lambda r: 1.0))
        return Message(as_sent(total.values, total.structure), count=len(self), weight=total.weight)

    def mean(self, weight: Callable[[Reply], float] | None = None) -> Message:
        """The weighted mean of every field; by default weighted with training samples.

        Raises:
            DataError: the weights do not add up to more than 0.
        """
        if not self.items:
            return Message(count=0, weight=0.0)
        total = self._added(weight or (lambda r: float(r.n)))
        if not 0 < total.weight < math.inf:
            raise DataError(
                f"a mean of {len(self)} replies whose weights add up to {total.weight:g} is none; give them others, as "
                f"in replies.mean(lambda r: 1.0)"
            )
        means = as_sent(divided(total.values, total.weight), total.structure)
        return Message(means, count=len(self), weight=total.weight)

    def _added(self, weight: Callable[[Reply], float]) -> Total:
        """Their sum, whoever arrived first."""
        _alike(self.items)
        entries = [(r.job, r.message, float(weight(r))) for r in sorted(self.items, key=lambda r: r.job)]
        named = all(isinstance(said := m.get("weight"), int | float) and said == w for _, m, w in entries)
        check_names(entries[0][1], weight=named)
        (total,) = fold_chunk(entries)
        if total.refused is not None:
            raise total.refused
        return total


class Cohort(list[int]):
    """Clients that were drawn, with the law that drew them.

    Attributes:
        probability: chance of each client to be in it (one number, or by id), None where unknown.
        expected: expected size under the law; of one drawn larger than wanted, how many replies are.
        law: "fixed" (without replacement), "poisson", "all", or "policy": drawn by a rule of its own.
        wanted: how many replies an exchange with it waits for; the others are late.
        uses: sums over this very draw so far; privacy is amplified by a draw once, not by each use of it.
    """

    def __init__(
        self,
        ids: Iterable[int],
        probability: float | Mapping[int, float] | None = None,
        expected: float | None = None,
        law: str = "policy",
    ) -> None:
        super().__init__(ids)
        self.probability, self.law = probability, law
        self.expected = float(len(self)) if expected is None else expected
        self.wanted = len(self)
        self.uses = 0


class Without(Sequence[int]):
    """`ids` without some of them, at 8 bytes for each that is gone: a million clients less those at work, or absent."""

    def __init__(self, ids: Sequence[int], gone: Iterable[int]) -> None:
        self._ids = ids
        self._gone: Sequence[int] = sorted({ids.index(i) for i in gone if i in ids})

    @classmethod
    def positions(cls, ids: Sequence[int], gone: np.ndarray | Sequence[int]) -> Without:
        """Without those at these positions `(m,)`, ascending."""
        made = cls(ids, ())
        made._gone = cast("Sequence[int]", gone)  # as far as bisection goes
        return made

    def __len__(self) -> int:
        return len(self._ids) - len(self._gone)

    @overload
    def __getitem__(self, k: int) -> int: ...
    @overload
    def __getitem__(self, k: slice) -> list[int]: ...
    def __getitem__(self, k: int | slice) -> int | list[int]:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        k %= len(self)
        low, high = 0, len(self._gone)
        while low < high:  # the k-th position that is not gone
            mid = (low + high) // 2
            if self._gone[mid] - mid <= k:
                low = mid + 1
            else:
                high = mid
        return self._ids[k + low]

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        if value not in self:
            raise ValueError(f"{value} is not among these clients")
        at = self._ids.index(index(value))
        k = at - bisect.bisect_left(self._gone, at)
        if not start <= k < (len(self) if stop is None else stop):
            raise ValueError(f"{value} is not among these clients")
        return k

    def __contains__(self, id: Any) -> bool:
        try:
            id = index(id)  # of NumPy and torch, too
        except TypeError:
            return False
        if id not in self._ids:
            return False
        at = self._ids.index(id)
        k = bisect.bisect_left(self._gone, at)
        return not (k < len(self._gone) and self._gone[k] == at)


def kinds_of(replies: Iterable[Reply]) -> dict[object, list[int]]:
    """Clients by what the fields of their replies are."""
    kinds: dict[object, list[int]] = {}
    for r in replies:
        kinds.setdefault(structure(r.message), []).append(r.id)
    return kinds


def _alike(replies: Sequence[Reply]) -> None:
    """Tensors of unlike shapes must not be added: some would be spread over others without a word."""
    kinds = kinds_of(replies)
    if len(kinds) > 1:
        listed = "; ".join(f"{brief(kind)} from clients {ids[:5]}" for kind, ids in kinds.items())
        raise MessageError(f"the replies are not alike and cannot be added: {listed}. Choose with replies.where(...)")


@dataclass(frozen=True)
class Evaluation(Mapping[str, float]):
    """Metrics of one view of the result: pooled over samples as a mapping; per client in `clients`."""

    pooled: Mapping[str, float]
    clients: Mapping[int, Mapping[str, float]] = field(default_factory=dict[int, Mapping[str, float]])

    def __getitem__(self, name: str) -> float:
        return self.pooled[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pooled)

    def __len__(self) -> int:
        return len(self.pooled)

    def spread(self, name: str, better: int = 1) -> dict[str, float]:
        """Mean, standard deviation and worst 10 % (mean over the worst tenth of clients) of one metric."""
        values = sorted((m[name] for m in self.clients.values() if name in m), reverse=better < 0)
        if not values:
            return {}
        worst = values[: max(1, math.ceil(len(values) / 10))]
        mean = math.fsum(values) / len(values)
        var = math.fsum((v - mean) ** 2 for v in values) / len(values)
        return {"mean": mean, "std": math.sqrt(var), "worst10": math.fsum(worst) / len(worst)}
