"""Sums that need no single reply: weighted, element by element over those who sent it, in a fixed binary tree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedloom.errors import MessageError
from fedloom.message import At, Covered, Message, is_set
from fedloom.trees import is_mapping, is_row, like

Weight = str | float | None
"""None: the client's number of training samples; a number: the same for all; a name: that number in the reply."""


@dataclass(frozen=True)
class Fold:
    """How replies become one message: their weighted sum; `mean` divides by the weight afterwards.

    Attributes:
        weight: of each reply, see `Weight`.
        fan_in: replies that are added up at one place before their sum goes on; None: as the engine finds best.
    """

    weight: Weight = None
    fan_in: int | None = None

    def of(self, message: Message, samples: int) -> float:
        """The weight of one reply.

        Raises:
            MessageError: the named number is missing, negative or not finite.
        """
        if self.weight is None:
            return float(samples)
        if isinstance(self.weight, str):
            value = message.get(self.weight)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise MessageError(
                    f"the weight {self.weight!r} must be a finite number >= 0 in the reply; given {value!r}"
                )
            return float(value)
        return float(self.weight)

    def leaves(self, n: int) -> int | None:
        """Places at which that many replies are added up, None where the engine decides."""
        return None if self.fan_in is None else -(-n // self.fan_in)


@dataclass
class Total:
    """A partial sum of replies of one structure: values by name, their weight, and the jobs in it."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    weight: float = 0.0
    jobs: list[int] = field(default_factory=list[int])
    structure: object = None
    refused: MessageError | None = None

    def plus(self, other: Total) -> Total:
        """The sum of two partial sums of one structure."""
        weight, jobs, refused = self.weight + other.weight, self.jobs + other.jobs, self.refused or other.refused
        values = {} if refused else {k: added(v, other.values[k]) for k, v in self.values.items()}
        return Total(values, weight, jobs, self.structure, refused)

    def message(self) -> Message:
        return Message(self.values)


def fold_chunk(entries: Sequence[tuple[int, Message, float]]) -> list[Total]:
    """The sums of one chunk, one for each structure that occurs: (job number, opened message, weight) each."""
    alike: dict[object, list[tuple[int, Message, float]]] = {}
    for entry in entries:
        alike.setdefault(structure(entry[1]), []).append(entry)
    totals: list[Total] = []
    for kind, members in alike.items():
        weights = [w for _, _, w in members]
        total = Total({}, sum(weights), [n for n, _, _ in members], kind)
        try:
            total.values = {name: weighted([m[name] for _, m, _ in members], weights) for name in members[0][1]}
        except MessageError as e:  # of no matter if most others sent something else
            total.refused = e.with_traceback(None)  # which would keep this frame, with everybody's entries
        totals.append(total)
    return totals


class Tree:
    """Sums of consecutive chunks, added pairwise in a fixed binary tree: the same bits for any number of workers and
    any order of arrival.

    Two neighbours are added as soon as both are there, so of sums that come about in order only a few are held.

    Args:
        chunks: how many there will be.
    """

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.root: list[Total] = []
        """The sums of all, one for each structure; once all have come."""
        self._held: dict[tuple[int, int], list[Total]] = {}

    @property
    def held(self) -> int:
        """Partial sums that wait for their neighbours."""
        return len(self._held)

    def add(self, place: int, sums: Sequence[Total]) -> None:
        """What came of the chunk at a place."""
        here, level, width = list(sums), 0, self.chunks
        while width > 1:
            beside = self._held.pop((level, place ^ 1), None)
            if beside is not None:
                here = _both(beside, here) if place % 2 else _both(here, beside)
            elif place ^ 1 < width:
                self._held[level, place] = here
                return
            level, place, width = level + 1, place // 2, -(-width // 2)
        self.root = here

    def whole(self) -> tuple[Total, dict[int, str]]:
        """When all chunks have come.

        Returns:
            the sum of the replies whose structure most have (of equally many: the first), and the reason for each job
            that is left out.

        Raises:
            MessageError: most replies hold what cannot be added.
        """
        if not self.root:
            return Total(), {}
        common = max(self.root, key=lambda part: len(part.jobs))
        if common.refused is not None:
            raise common.refused
        left_out = {
            job: f"its fields {brief(part.structure)} differ from most others' {brief(common.structure)}"
            for part in self.root
            if part is not common
            for job in part.jobs
        }
        return common, left_out


def _both(left: Sequence[Total], right: Sequence[Total]) -> list[Total]:
    """Structure by structure, in the order in which they first occur."""
    sums = {part.structure: part for part in left}
    for part in right:
        sums[part.structure] = sums[part.structure].plus(part) if part.structure in sums else part
    return list(sums.values())


def tree(chunks: Sequence[Sequence[Total]]) -> tuple[Total, dict[int, str]]:
    """The whole of chunks that are all there, see `Tree`."""
    sums = Tree(len(chunks))
    for place, chunk in enumerate(chunks):
        sums.add(place, chunk)
    return sums.whole()


def weighted(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """`sum_k weights[k] * values[k]` for tensors, deferred rows, numbers, `At`, and dicts or lists of these. Numbers of
    16 bits are added up in 32, whole ones in float64; see `as_sent`."""
    first = values[0]
    if hasattr(first, "build") and first.dtype.itemsize > 2:  # results of one stack: added without building them
        from fedloom.training.stacked.rows import add_rows

        out = torch.zeros(first.shape, dtype=first.dtype, device=first.device)
        add_rows(out, values, weights)
        return out
    if isinstance(first, Tensor):
        kind = _added_in(first.dtype)
        out = first.to(kind) * weights[0]
        for value, w in zip(values[1:], weights[1:]):
            out.add_(value.to(kind), alpha=w)
        return out
    if isinstance(first, At):
        kind = _added_in(first.values.dtype)
        total = first.values.new_zeros((first.size, *first.values.shape[1:]), dtype=kind)
        held = torch.zeros(first.size, dtype=kind, device=total.device)
        for value, w in zip(values, weights):
            total.index_add_(0, value.index, value.values.to(kind), alpha=w)
            held.index_add_(0, value.index, torch.ones_like(value.index, dtype=kind), alpha=w)
        return Covered(total, held)
    if isinstance(first, bool | int | float):
        return sum(w * v for v, w in zip(values, weights))
    if is_mapping(first):
        return {k: weighted([v[k] for v in values], weights) for k in first}
    if is_row(first):
        return like(first, (weighted(column, weights) for column in zip(*values)))
    if first is None:
        return None
    raise MessageError(
        f"a sum adds tensors, numbers and At; given {type(first).__name__}. Use clients.map(...) to read single replies"
    )


def _added_in(dtype: torch.dtype) -> torch.dtype:
    """With the 8 digits of a bfloat16, 256 + 1 is 256."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.float64
    return torch.promote_types(dtype, torch.float32) if dtype.itemsize <= 2 else dtype


def added(a: Any, b: Any) -> Any:
    if isinstance(a, Covered):
        return Covered(a.total.add_(b.total), a.held.add_(b.held))
    if isinstance(a, Tensor):
        return a.add_(b)  # a partial sum is nobody else's
    if is_mapping(a):
        return {k: added(v, b[k]) for k, v in a.items()}
    if is_row(a):
        return like(a, (added(x, y) for x, y in zip(a, b)))
    return None if a is None else a + b


def divided(total: Any, weight: float) -> Any:
    """A sum made a mean. `Covered` keeps its own weights: `.over(old)` divides element by element."""
    if isinstance(total, Covered):
        return total
    if is_mapping(total):
        return {k: divided(v, weight) for k, v in total.items()}
    if is_row(total):
        return like(total, (divided(v, weight) for v in total))
    return None if total is None else total / weight


def check_names(names: Iterable[str], weight: bool = False) -> None:
    """Refuse fields of replies in whose place a sum says of how many it is, and of what weight.

    Args:
        weight: a field of that name is what replies are weighted by.

    Raises:
        MessageError: there is one.
    """
    for name in {"count", "weight"}.intersection(names) - ({"weight"} if weight else set()):
        raise MessageError(
            f"the replies have a field {name!r}, and their sum says under that name "
            f"{'of how many it is' if name == 'count' else 'what they weigh'}. Name the field otherwise"
        )


def as_sent(value: Any, kind: Any) -> Any:
    """A sum or a mean of replies of this structure, where they had 16 bits again in 16; what a stage of the channel
    made of it or added, of another structure or None, as it is. `Covered` does so once it is divided."""
    if isinstance(value, Tensor) and is_row(kind):
        return value.to(_OF_16_BITS.get(kind[-1], value.dtype))
    if is_mapping(value) and is_set(kind):
        kinds = dict(kind)
        return {k: as_sent(v, kinds.get(k)) for k, v in value.items()}
    if is_row(value) and is_row(kind) and (type(value).__name__, len(value)) == (kind[0], len(kind) - 1):
        return like(value, map(as_sent, value, kind[1:]))
    return value


_OF_16_BITS = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16)}


def structure(value: Any) -> object:
    """Names, shapes and types: equal for replies that can be added."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), str(value.dtype))
    if isinstance(value, bool | int | float):
        return "number"
    if is_mapping(value):
        return frozenset([(k, structure(v)) for k, v in value.items()])
    if is_row(value):
        return (type(value).__name__, *map(structure, value))
    if isinstance(value, At):
        return ("At", value.size, tuple(value.values.shape[1:]), str(value.values.dtype))
    if hasattr(value, "build"):
        return ("tensor", tuple(value.shape), str(value.dtype))
    return type(value).__name__


def brief(kind: Any) -> str:
    """A structure in few words."""
    if is_set(kind):
        return "{" + ", ".join(sorted(f"{name}: {brief(inner)}" for name, inner in kind)) + "}"
    if not is_row(kind):
        return str(kind)
    if kind[0] in ("tensor", "At"):
        return f"{'At ' if kind[0] == 'At' else ''}{kind[1]} {kind[-1].removeprefix('torch.')}"
    return f"{kind[0]}[{', '.join(map(brief, kind[1:]))}]"
