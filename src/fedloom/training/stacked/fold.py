"""Which tensors are folded: the batch in flight on this thread, and what is known of lengths that are no batch."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor


class NotStackable(Exception):
    """These requests cannot be trained as one computation: run them one by one.

    Attributes:
        reason: why, in a sentence.
        operator: the operator that could not be stacked, "" where no single one is to blame.
    """

    def __init__(self, reason: str, operator: str = "") -> None:
        super().__init__(f"operator {operator}: {reason}" if operator else reason)
        self.reason, self.operator = reason, operator


@dataclass
class Notes:
    """How a network uses its weights, seen in one forward pass (`survey.py`).

    Attributes:
        dense: (weight, bias) names of dense layers met by `F.linear`, and the rows of input per sample.
        inputs: of those that meet a field of the batch as it is, and nothing else, that field.
        other: names of weights that met any other operator.
        direct: the loss uses the weight vector itself.
    """

    dense: dict[tuple[str, str | None], float] = field(default_factory=dict)
    inputs: dict[tuple[str, str | None], str] = field(default_factory=dict)
    other: set[str] = field(default_factory=set)
    direct: bool = False


class _Fold(threading.local):
    """The batch in flight, on this thread.

    Attributes:
        sizes: lengths of its folded axes (one per stream), `k * B`.
        batch: its fields by name, and the version each was gathered as; none where there are several streams.
        notes: kept while a network is surveyed, else None.
        shared: ids of tensors that are the same for all clients whatever their length.
        foreign: leading lengths of shared tensors met so far, which no `k * B` may divide...
        crossed: ...and of per-client results of folded operands, which no `B` may equal. The loop pads to avoid both.
    """

    sizes: tuple[int, ...] = ()
    batch: Mapping[str, tuple[Tensor, int]] = MappingProxyType({})
    shared: frozenset[int] = frozenset()
    notes: Notes | None = None

    def __init__(self) -> None:
        self.foreign: set[int] = set()
        self.crossed: set[int] = set()


FOLD = _Fold()


def folded(x: object) -> bool:
    """Whether the first axis of `x` runs over clients and their samples (or over their rows, as in `(k*B*T, d)`)."""
    if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] == 0:
        return False
    return id(x) not in FOLD.shared and of_batch(x.shape[0])


def of_batch(length: int) -> bool:
    """Whether so many are those of the batch, or rows of its samples; other lengths are remembered."""
    if length in FOLD.sizes or any(length % n == 0 for n in FOLD.sizes):
        return True
    FOLD.foreign.add(length)
    return False


def field_of(x: Tensor) -> str | None:
    """The field of the batch in flight that `x` is, number by number as it was gathered; None for anything else."""
    for name, (t, version) in FOLD.batch.items():
        if t.data_ptr() == x.data_ptr() and (t.numel(), t.dtype) == (x.numel(), x.dtype):
            return name if t.is_contiguous() and x.is_contiguous() and t._version == version else None
    return None
