"""Messages as vectors of integers modulo 2^k: fixed-point numbers that add up exactly, in any order.

    q = x / step           a whole number for every x on the grid, |q| <= 2^(bits-1)                  (`snapped`)
    v = w q  mod 2^k       w: the reply's weight, a whole number                                      (`vector_of`)
    sum_i v_i  mod 2^k     is sum_i w_i q_i itself while 2^(bits-1) sum_i w_i < 2^(k-1)               (`read`)

A tensor's entries take k bits on the wire, k a multiple of 8. A number takes two words of 64 bits (the halves of
v 2^32: it may be large and must be precise), the weight one. Sums are kept modulo 2^64, whose low bits are those modulo
2^k. `At` becomes dense, values and who sent which: positions would say something of their sender.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import MessageError
from fedloom.message import At, Covered, Message, Value
from fedloom.trees import is_mapping, is_row
from fedloom.written import record

Vector: TypeAlias = np.ndarray
"""Words `(m,)` uint64: entries of tensors, then numbers, then the weight."""

NUMBER = 16
"""Bytes of a number in a secure sum."""
WEIGHT = 8
_FRACTION, _HALF = 32, 31  # a number v is V = v 2^32 = high 2^31 + low
_LARGEST = 1 << 30
ROOM = 1 << 31
"""What the weights of numbers must add up to less than: either half of one, times that, is below 2^63."""
KINDS = ("float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


# ---------------------------------------------------------------- onto the grid


def snapped(values: Tensor, step: float, limit: int, rounding: str, rng: torch.Generator | None) -> Tensor:
    """Every entry a multiple of `step` (a power of two), so that it is a whole number of steps in any float type.

    Args:
        limit: the largest number of steps, either way.
        rounding: "nearest", "zero" (no entry becomes larger), or "stochastic" (unbiased; needs `rng`).

    Raises:
        MessageError: an entry lies beyond. One that is not finite passes: replies are looked through for these later.
    """
    if not values.is_floating_point():
        if values.numel() and not (-limit <= int(values.min()) and int(values.max()) <= limit):
            raise MessageError(
                f"holds whole numbers beyond {limit:,}, which the secure sum does not take. Give entries more bits: "
                f"secure:bits=..., and the ring as many"
            )
        return values
    q = values.double() / step
    if rounding == "stochastic":
        assert rng is not None
        q = (q + torch.rand(q.shape, generator=rng, dtype=torch.float64).to(q.device)).floor()
    else:
        q = q.trunc() if rounding == "zero" else q.round()
    if bool((q.abs() > limit).logical_and(q.isfinite()).any()):
        raise MessageError(
            f"holds entries beyond {limit * step:g}, which the secure sum does not take. Bound it (a stage clip:NORM "
            f"before it), or give it more range: secure:range=..., a power of two"
        )
    return (q * step).to(values.dtype)


def snapped_number(value: float) -> float:
    """A number on the grid of numbers, 2^-32.

    Raises:
        MessageError: beyond 2^30.
    """
    if math.isfinite(value) and abs(value) > _LARGEST:
        raise MessageError(f"is a number beyond {_LARGEST:,}, which the secure sum does not take. Divide it")
    if isinstance(value, int) or not math.isfinite(value):
        return value
    return round(value * 2.0**_FRACTION) * 2.0**-_FRACTION


# ---------------------------------------------------------------- what a message is made of


@dataclass(frozen=True)
class Form:
    """Names, types and shapes of a message's fields, by name, as JSON text; messages of equal forms can be added."""

    text: str

    @staticmethod
    def of(message: Mapping[str, Value]) -> Form:
        """Raises MessageError where an entry cannot be added up."""
        return Form(json.dumps(_spec(message)))

    @cached_property
    def spec(self) -> Any:
        """Raises MessageError where this is no form: it may have come from anywhere."""
        try:
            spec = json.loads(self.text)
            _check(spec, top=True)
        except (ValueError, TypeError, LookupError, RecursionError) as e:
            raise MessageError(f"not the form of a message: {e}") from None
        return spec

    @cached_property
    def entries(self) -> int:
        """Words of tensors' entries."""
        return sum(math.prod(s[2]) + (s[1] if s[0] == "at" else 0) for s in _tips(self.spec) if s[0] in _SHAPED)

    @cached_property
    def words(self) -> int:
        """Words in all."""
        return self.entries + 2 * sum(s[0] == "number" for s in _tips(self.spec)) + 1

    def nbytes(self, ring: int) -> int:
        """Bytes on the wire."""
        return self.entries * ring // 8 + 8 * (self.words - self.entries)


_SHAPED = ("tensor", "at")
_NAMES = (str, int)


def _spec(value: Value) -> Any:
    if isinstance(value, Tensor):
        return ["tensor", kind_of(value), list(value.shape)]
    if isinstance(value, At):
        return ["at", value.size, [value.size, *value.values.shape[1:]], kind_of(value.values)]
    if isinstance(value, bool | int | float):
        return ["number"]
    if value is None:
        return ["none"]
    if is_mapping(value):
        if odd := [k for k in value if type(k) not in _NAMES]:
            raise MessageError(f"a secure sum takes dicts by text or whole numbers; given the key {odd[0]!r}")
        return ["dict", [[k, _spec(v)] for k, v in _in_order(value)]]
    if is_row(value):
        return ["tuple" if isinstance(value, tuple) else "list", [_spec(v) for v in value]]
    raise MessageError(f"a sum adds tensors, numbers and At; given {type(value).__name__}")


def kind_of(t: Tensor) -> str:
    """As forms call the type of a tensor's entries; those of `KINDS` can be added up."""
    return str(t.dtype).removeprefix("torch.")


def _check(spec: Any, top: bool = False) -> None:
    kind = spec[0]
    if kind == "dict":
        for name, inner in spec[1]:
            _require(type(name) in (_NAMES[:1] if top else _NAMES))
            _check(inner)
    elif kind in ("list", "tuple") and not top:
        for inner in spec[1]:
            _check(inner)
    elif kind in _SHAPED and not top:
        sizes = spec[2] if kind == "tensor" else [spec[1], *spec[2]]
        _require(all(type(n) is int and 0 <= n < 1 << 40 for n in sizes))
        _require(kind == "tensor" or spec[1] == spec[2][0])
        _require(spec[1 if kind == "tensor" else 3] in KINDS)
    else:
        _require(kind in ("number", "none") and not top)


def _require(fine: bool) -> None:
    if not fine:
        raise ValueError("malformed")


def _tips(spec: Any) -> Iterator[Any]:
    if spec[0] == "dict":
        for _, inner in spec[1]:
            yield from _tips(inner)
    elif spec[0] in ("list", "tuple"):
        for inner in spec[1]:
            yield from _tips(inner)
    else:
        yield spec


def commonest(forms: Mapping[int, str]) -> str | None:
    """The form that most have; of equally many the first."""
    counts = Counter(forms.values())
    return max(counts, key=lambda form: counts[form]) if counts else None


# ---------------------------------------------------------------- there and back


def vector_of(message: Message, weight: int, step: float) -> Vector:
    """A message on the grid, times its weight, as words."""
    wholes: list[np.ndarray] = []
    words: list[int] = []
    for leaf in _leaves(message):
        if isinstance(leaf, Tensor):
            wholes.append(_whole(leaf, step))
        elif isinstance(leaf, At):
            sent = torch.zeros(leaf.size, dtype=torch.int64).index_add(0, leaf.index.cpu(), _ones(leaf.index))
            dense = leaf.values.new_zeros((leaf.size, *leaf.values.shape[1:]))
            wholes += [_whole(dense.index_add(0, leaf.index, leaf.values), step), sent.numpy()]
        elif leaf is not None:
            v = int(leaf * 2**_FRACTION)
            words += [weight * (v >> _HALF), weight * (v & ((1 << _HALF) - 1))]
    entries = np.concatenate([np.zeros(0, np.int64), *wholes]) * np.int64(weight)
    tail = np.array([w % 2**64 for w in [*words, weight]], np.uint64)
    return np.concatenate([entries.view(np.uint64), tail])


def sent(spec: Any) -> object:
    """The structure of the messages of a form, as far as their sum must know it: see `engines.fold.as_sent`."""
    if spec[0] == "dict":
        return frozenset((k, sent(inner)) for k, inner in spec[1])
    if spec[0] in ("list", "tuple"):
        return (spec[0], *map(sent, spec[1]))
    return ("tensor", tuple(spec[2]), f"torch.{spec[1]}") if spec[0] == "tensor" else spec[0]


def read(
    form: Form, total: Vector, step: float, ring: int, unit: float, device: torch.device | None = None
) -> tuple[dict[str, Any], float]:
    """A sum of words as the values and the weight it stands for.

    Args:
        unit: what a weight of 1 stands for.
        device: of the values, default the CPU; what was sent in 16 bits has 32 here.
    """
    left = np.uint64(64 - ring)
    entries = torch.from_numpy((total[: form.entries] << left).view(np.int64) >> np.int64(left)).to(device)
    words = iter([int(w) for w in total[form.entries :].view(np.int64)])
    place = 0

    def take(shape: list[int]) -> Tensor:
        nonlocal place
        n = math.prod(shape)
        place += n
        return entries[place - n : place].view(shape).double()

    def build(spec: Any) -> Any:
        if spec[0] == "dict":
            return {k: build(inner) for k, inner in spec[1]}
        if spec[0] in ("list", "tuple"):
            parts = [build(inner) for inner in spec[1]]
            return tuple(parts) if spec[0] == "tuple" else parts
        if spec[0] == "none":
            return None
        if spec[0] == "number":
            high, low = next(words), next(words)
            return (high * 2**_HALF + low) / 2**_FRACTION * unit
        dtype = getattr(torch, spec[1 if spec[0] == "tensor" else 3])
        floats = dtype.is_floating_point
        kind = torch.promote_types(dtype, torch.float32) if floats else torch.float64  # as in plain sums
        values = (take(spec[2]) * (step * unit if floats else unit)).to(kind)
        return values if spec[0] == "tensor" else Covered(values, (take([spec[1]]) * unit).to(kind))

    return build(form.spec), next(words) * unit


def _leaves(value: Value) -> Iterator[Value]:
    if is_mapping(value):
        for _, v in _in_order(value):
            yield from _leaves(v)
    elif is_row(value):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def _in_order(values: Mapping[Any, Value]) -> list[tuple[Any, Value]]:
    """By name: fields that were named in another order are the same fields."""
    return sorted(values.items(), key=lambda item: str(item[0]))


def _whole(values: Tensor, step: float) -> np.ndarray:
    values = values.detach().cpu().flatten()
    q = (values.double() / step).round() if values.is_floating_point() else values
    return q.to(torch.int64).numpy()


def _ones(index: Tensor) -> Tensor:
    return torch.ones(len(index), dtype=torch.int64)


# ---------------------------------------------------------------- on the wire


@record
@dataclass(frozen=True, eq=False)
class Masked:
    """A reply as it leaves its client: words as bytes, and what they are the words of."""

    words: Tensor
    form: str

    def __post_init__(self) -> None:
        w: object = self.words
        if not (isinstance(w, Tensor) and w.dtype == torch.uint8 and w.dim() == 1 and len(w) >= WEIGHT):
            raise MessageError(f"a masked reply is bytes `(n,)` uint8; given {type(w).__name__}")
        if not isinstance(self.form, str):
            raise MessageError("a masked reply says its form as text")

    @property
    def nbytes(self) -> int:
        """Of the entries; the weight is charged with the phases."""
        return self.words.numel() - WEIGHT

    @staticmethod
    def of(vector: Vector, form: Form, ring: int) -> Masked:
        return Masked(packed(vector, form, ring), form.text)

    def vector(self, ring: int) -> Vector:
        """Raises MessageError where form and bytes do not go together."""
        return unpacked(self.words, Form(self.form), ring)


def packed(vector: Vector, form: Form, ring: int) -> Tensor:
    """Words as bytes `(form.nbytes(ring),)` uint8."""
    words = np.ascontiguousarray(vector.astype("<u8")).view(np.uint8).reshape(-1, 8)
    return torch.from_numpy(np.concatenate([words[: form.entries, : ring // 8].ravel(), words[form.entries :].ravel()]))


def unpacked(data: Tensor, form: Form, ring: int) -> Vector:
    """The way back.

    Raises:
        MessageError: not as many bytes as the form has.
    """
    if len(data) != form.nbytes(ring):
        raise MessageError(f"{len(data):,} bytes, and its form takes {form.nbytes(ring):,}")
    raw, split = data.numpy(), form.entries * ring // 8
    words = np.zeros((form.words, 8), np.uint8)
    words[: form.entries, : ring // 8] = raw[:split].reshape(form.entries, ring // 8)
    words[form.entries :] = raw[split:].reshape(-1, 8)
    return words.view("<u8").ravel().astype(np.uint64)
