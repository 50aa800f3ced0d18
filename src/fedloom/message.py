"""What crosses the wire: named tensors and numbers, with exact bytes; how they are written is in `written`.

`At` is some elements of a tensor, `once` is charged to a client a single time, `Packed` is what a compressor made.
Bytes are those of the payload: tensors as stored, 8 for a number, 1 for a truth value, UTF-8 for text. Names and shapes
are not charged: both sides know them from the plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from .errors import MessageError
from .trees import is_dict, is_mapping, is_row, like

Value: TypeAlias = Any  # Tensor | number | str | None | At | Packed | Once | list | dict of these


class Message(Mapping[str, Value]):
    """Named tensors and numbers: `Message(delta=..., loss=0.3)`; read as attributes or items. Immutable."""

    __slots__ = ("_values",)
    _values: dict[str, Value]

    def __init__(self, values: Mapping[str, Value] | None = None, /, **named: Value) -> None:
        held: dict[str, Value] = {**values, **named} if values else named
        object.__setattr__(self, "_values", held)

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"no field {name!r} in this message; it has {', '.join(self._values)}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a message is immutable; use message.replace(...)")

    def __reduce__(self):
        return Message, (self._values,)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> KeysView[str]:
        return self._values.keys()

    def values(self) -> ValuesView[Value]:
        return self._values.values()

    def items(self) -> ItemsView[str, Value]:
        return self._values.items()

    def __repr__(self) -> str:
        def brief(v: Value) -> str:
            return f"{tuple(v.shape)}" if isinstance(v, Tensor) else repr(v)

        return "Message(" + ", ".join(f"{k}={brief(v)}" for k, v in self._values.items()) + ")"

    def replace(self, **named: Value) -> Message:
        return Message(self._values, **named)

    @property
    def nbytes(self) -> int:
        """Exact payload bytes."""
        return sum(map(nbytes, self._values.values()))


@runtime_checkable
class Packed(Protocol):
    """What a compressor makes: the exact bytes it takes, and the tensor the other side will read."""

    @property
    def nbytes(self) -> int: ...

    def dense(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class At:
    """Some elements of a tensor: `values[k]` belongs at `index[k]` of axis 0 of a tensor with `size` rows.

    Positions of a vector, rows of a class table, one expert of several: sums treat every element over those who sent
    it. `known=True` says the receiver can rebuild the index itself (a width, a seed), so it is not charged.

    Args:
        index: int64 positions `(m,)`, or a boolean mask `(size,)`.
        values: `(m, ...)`.
        size: rows of the whole tensor.
    """

    index: Tensor
    values: Tensor
    size: int
    known: bool = False

    def __post_init__(self) -> None:
        if self.index.dtype == torch.bool:
            if self.index.shape != (self.size,):
                raise MessageError(f"At: a mask {tuple(self.index.shape)} of a tensor with {self.size} rows")
            object.__setattr__(self, "index", self.index.nonzero().flatten())
        if self.index.dim() != 1 or self.index.is_floating_point() or self.index.is_complex():
            given = f"{str(self.index.dtype).removeprefix('torch.')} of shape {tuple(self.index.shape)}"
            raise MessageError(
                f"At: positions are int64 (m,), or a mask of bools; given {given}: index.flatten().long()"
            )
        if not self.values.dim():
            raise MessageError("At: values are (m, ...), a row for every position; given a single number: values[None]")
        if len(self.index) != len(self.values):
            raise MessageError(f"At: {len(self.index)} positions but {len(self.values)} values")
        if len(self.index) and not (int(self.index.min()) >= 0 and int(self.index.max()) < self.size):
            raise MessageError(f"At: positions outside 0..{self.size - 1}")
        object.__setattr__(self, "index", self.index.to(self.values.device, torch.int64))

    @property
    def nbytes(self) -> int:
        """Values, and the cheaper of 4-byte positions and a bitmap."""
        place = 0 if self.known else min(4 * len(self.index), math.ceil(self.size / 8))
        return self.values.numel() * self.values.element_size() + place

    def dense(self, fill: float = 0.0) -> Tensor:
        out = self.values.new_full((self.size, *self.values.shape[1:]), fill)
        out[self.index] = self.values
        return out


@dataclass(frozen=True, eq=False)
class Covered:
    """A weighted sum of `At` pieces with the weight each element received: total `(size, ...)`, held `(size,)`."""

    total: Tensor
    held: Tensor

    def over(self, old: Tensor) -> Tensor:
        """The mean over those who sent an element; `old`, bit for bit, where nobody did."""
        held = self.held.view(-1, *[1] * (self.total.dim() - 1))
        mean = self.total / held.where(held > 0, torch.ones_like(held))
        halves = old.is_floating_point() and old.dtype.itemsize == 2
        return torch.where(held > 0, mean.to(old.dtype) if halves else mean, old)

    @property
    def nbytes(self) -> int:
        return nbytes((self.total, self.held))


@dataclass(frozen=True, eq=False)
class Once:
    """A value sent, and charged, only to clients that do not hold it yet."""

    value: Value

    def key(self) -> str:
        """The hash of its content: equal values are one value."""
        return hashlib.sha256(repr(mapped(self.value, _told)).encode()).hexdigest()[:24]


def _told(leaf: Value) -> object:
    """What tells this leaf from all others: contents, type and shape."""
    if isinstance(leaf, Tensor):
        numbers = leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        return str(leaf.dtype), tuple(leaf.shape), hashlib.sha256(numbers).hexdigest()
    if isinstance(leaf, At):
        return "At", leaf.size, _told(leaf.index), _told(leaf.values)
    inside = list(leaves(leaf))
    return repr(leaf) if len(inside) == 1 and inside[0] is leaf else (type(leaf).__name__, *map(_told, inside))


def once(value: Value) -> Once:
    """Send this only to clients that do not hold it yet (a frozen base, a public set, a mask that rarely changes)."""
    return Once(value)


def leaves(value: Value) -> Iterator[Value]:
    """Every tensor and number inside a value."""
    if isinstance(value, _LEAF):
        yield value
    elif is_mapping(value):
        for v in value.values():
            yield from leaves(v)
    elif is_row(value) or is_set(value):
        for v in value:
            yield from leaves(v)
    elif isinstance(value, At):
        yield from (value.index, value.values)
    elif isinstance(value, Covered):
        yield from (value.total, value.held)
    elif isinstance(value, Once):
        yield from leaves(value.value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from leaves(getattr(value, f.name))
    else:
        yield value


_LEAF = (int, float, str, Tensor)  # in the order of what it takes to tell


def is_set(value: object) -> TypeGuard[set[Any] | frozenset[Any]]:
    return isinstance(value, set | frozenset)


_NUMBER = (int, float)


def nbytes(value: Value) -> int:
    """Payload bytes of any value a message may hold."""
    if value is None or isinstance(value, bool):
        return 1
    if isinstance(value, _NUMBER):
        return 8
    if isinstance(value, Message):
        return value.nbytes
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Once):
        return nbytes(value.value)
    if is_mapping(value):
        return sum(map(nbytes, value.values()))
    if is_row(value) or is_set(value):
        return sum(map(nbytes, value))
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    raise MessageError(
        f"a message holds tensors, numbers, text, At, Packed and lists or dicts of these; given {type(value).__name__}"
    )


def mapped(value: Value, f: Callable[[Value], Value]) -> Value:
    """The same structure with `f` applied to every leaf (tensors, numbers, At, Packed, Once)."""
    if isinstance(value, _LEAF):
        return f(value)
    if isinstance(value, Message):
        return Message({k: mapped(v, f) for k, v in value.items()})
    if is_dict(value):
        return {k: mapped(v, f) for k, v in value.items()}
    if is_row(value):
        return like(value, (mapped(v, f) for v in value))
    return f(value)


def opened(message: Message) -> Message:
    """What the receiver reads: compressed entries made dense, `once` values unwrapped."""
    for value in message.values():
        if not isinstance(value, _LEAF):
            return mapped(message, _opened)
    return message  # nothing to unpack, as most often


def _opened(value: Value) -> Value:
    if isinstance(value, Once):
        return mapped(value.value, _opened)
    if not isinstance(value, _LEAF) and not isinstance(value, At) and isinstance(value, Packed):
        return value.dense()
    return value


def check_finite(message: Message, what: str) -> None:
    """Refuse what must never enter a sum.

    Raises:
        MessageError: an entry holds NaN or infinity.
    """
    for name, value in message.items():
        if not (_finite(value) if isinstance(value, _LEAF) else all(map(_finite, leaves(value)))):
            raise MessageError(f"{what}: field {name!r} holds NaN or infinity")


_BLOCK = 1 << 20  # numbers looked at at a time


def _finite(leaf: Value) -> bool:
    """A tensor block by block: to look at it takes three times its memory."""
    if isinstance(leaf, int | float):
        return abs(leaf) <= sys.float_info.max  # whole numbers may be larger than that; NaN is not even smaller
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return True
    flat = leaf.reshape(-1)
    return all(bool(torch.isfinite(flat[k : k + _BLOCK]).all()) for k in range(0, len(flat), _BLOCK))
