"""Compressors: pure functions of a tensor, and the channel stages made of them.

    top_k(v, 0.05)          the largest 5 % by magnitude           biased, contracts
    rand_k(v, 0.05, rng)    a random 5 %, scaled by 1 / 0.05       unbiased; positions travel as a seed
    quantize(v, 8, rng)     8-bit codes, stochastic rounding       unbiased; without rng: nearest
    sign(v)                 signs and the mean magnitude           biased, contracts

Each returns a `Packed`: what travels, bit-packed, with exact `nbytes`, and `.dense()`, what the receiver reads, of the
shape and dtype of `v`. They act on the whole tensor: a model vector is compressed as one, not layer by layer.

A stage applies one of them to every floating tensor with at least one axis in an upload (and to the values of `At`);
numbers, and tensors of no axis, pass untouched. With `feedback` the client keeps what was left out and adds it to the
next message (EF14: Seide et al. 2014, Karimireddy et al. 2019):

    v = message + e,  sent = C(v),  e = v - sent        so   sum of sent + last e = sum of messages
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from fedloom.errors import ConfigError, MessageError, NotSupported, unknown
from fedloom.message import At, Message, Packed, Value, nbytes, record

from .stage import Sender, Stage, listed

if TYPE_CHECKING:
    from fedloom.engines.base import Plan

Size: TypeAlias = tuple[int, ...]

# ---------------------------------------------------------------- bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers `(n,)` in `0 .. 2**bits - 1` as `ceil(n * bits / 8)` bytes; whole bytes and the rest lie apart."""
    if bits > 8:
        return torch.cat([pack(codes & 255, 8), pack(codes >> 8, bits - 8)])
    if bits == 8:
        return codes.to(torch.uint8)
    n, eight = len(codes), torch.arange(8, device=codes.device)
    padded = torch.nn.functional.pad(codes.to(torch.int64), (0, -n % 8)).view(-1, 8)
    words = (padded << (bits * eight)).sum(1, keepdim=True)  # eight codes fill `bits` bytes
    return ((words >> (8 * eight[:bits])) & 255).to(torch.uint8).flatten()[: math.ceil(n * bits / 8)]


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The way back: `(n,)` int64."""
    if bits > 8:
        return unpack(packed[:n], 8, n) | (unpack(packed[n:], bits - 8, n) << 8)
    if bits == 8:
        return packed.to(torch.int64)
    eight = torch.arange(8, device=packed.device)
    padded = torch.nn.functional.pad(packed.to(torch.int64), (0, -len(packed) % bits)).view(-1, bits)
    words = (padded << (8 * eight[:bits])).sum(1, keepdim=True)
    return ((words >> (bits * eight)) & (2**bits - 1)).flatten()[:n]


# ---------------------------------------------------------------- what travels


@record
@dataclass(frozen=True, eq=False)
class Plain:
    """The tensor itself."""

    values: Tensor

    @property
    def nbytes(self) -> int:
        return nbytes(self.values)

    def dense(self) -> Tensor:
        return self.values

    def scaled(self, factor: float) -> Plain:
        return Plain(self.values * factor)


@record
@dataclass(frozen=True, eq=False)
class Quantized:
    """Integer codes of `bits` bits in `0 .. 2L`, `L = 2**(bits-1) - 1`: the value is `scale * (code - L) / L`.

    Attributes:
        codes: `pack`ed, uint8.
        scales: the largest magnitude of each bucket of consecutive values; its dtype is that of the values.
        shape: of the tensor.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    shape: Size

    @property
    def nbytes(self) -> int:
        return nbytes(self.codes) + nbytes(self.scales)

    def dense(self) -> Tensor:
        n, top = math.prod(self.shape), 2 ** (self.bits - 1) - 1
        exact = _exact(self.scales.dtype, self.bits)
        levels = (unpack(self.codes, self.bits, n) - top).to(exact) / top
        per = _bucketed(levels, len(self.scales)) * self.scales.to(exact).unsqueeze(1)
        return per.flatten()[:n].to(self.scales.dtype).view(self.shape)

    def scaled(self, factor: float) -> Quantized:
        return replace(self, scales=self.scales * factor)


@record
@dataclass(frozen=True, eq=False)
class Signs:
    """One bit for each value and one magnitude for all: `+scale` or `-scale`."""

    signs: Tensor
    scale: Tensor
    shape: Size

    @property
    def nbytes(self) -> int:
        return nbytes(self.signs) + nbytes(self.scale)

    def dense(self) -> Tensor:
        bits = unpack(self.signs, 1, math.prod(self.shape)).to(self.scale.dtype)
        return ((2 * bits - 1) * self.scale).view(self.shape)

    def scaled(self, factor: float) -> Signs:
        return replace(self, scale=self.scale * factor)


@record
@dataclass(frozen=True, eq=False)
class Sparse:
    """A few values of a tensor of zeros, in order of their positions.

    Attributes:
        values: `(k,)`, or a packed form of it.
        place: where they belong: int32 positions `(k,)` or a bitmap (uint8), whichever is smaller; a seed both sides
            draw the positions from (an int, 8 bytes); an empty tensor when nothing was left out.
        shape: of the whole tensor.
    """

    values: Tensor | Quantized | Signs
    place: Tensor | int
    shape: Size

    @property
    def nbytes(self) -> int:
        return nbytes(self.values) + nbytes(self.place)

    def index(self) -> Tensor:
        """Positions of the values in the flattened tensor, ascending, int64."""
        d, place = math.prod(self.shape), self.place
        if isinstance(place, int):
            return _drawn(place, d, _length(self.values))
        if len(place) == 0:
            return torch.arange(d, device=place.device)
        if place.dtype == torch.uint8:
            return unpack(place, 1, d).nonzero().flatten()
        if not (int(place.min()) >= 0 and int(place.max()) < d):
            raise MessageError(f"a sparse tensor of {d} entries names a position outside of it")
        return place.to(torch.int64)

    def dense(self) -> Tensor:
        values = self.values if isinstance(self.values, Tensor) else self.values.dense()
        out = values.new_zeros(math.prod(self.shape))
        out[self.index().to(values.device)] = values
        return out.view(self.shape)

    def scaled(self, factor: float) -> Sparse:
        values = self.values * factor if isinstance(self.values, Tensor) else self.values.scaled(factor)
        return replace(self, values=values)


@record
@dataclass(frozen=True, eq=False)
class PackedAt:
    """`At` with packed values; the receiver reads an `At` again, so a sum still knows who sent which element."""

    index: Tensor
    values: Any
    size: int
    known: bool

    @property
    def nbytes(self) -> int:
        place = At(self.index, torch.empty(len(self.index), 0), self.size, self.known)
        return nbytes(self.values) + place.nbytes

    def dense(self) -> At:
        return At(self.index, self.values.dense(), self.size, self.known)

    def scaled(self, factor: float) -> PackedAt:
        return replace(self, values=self.values.scaled(factor))


def _length(values: Tensor | Quantized | Signs) -> int:
    return math.prod(values.shape)


def _drawn(seed: int, d: int, k: int) -> Tensor:
    """`k` positions of `d`, ascending, the same on every machine."""
    return torch.randperm(d, generator=torch.Generator().manual_seed(seed))[:k].sort().values


def _exact(dtype: torch.dtype, bits: int) -> torch.dtype:
    """Where codes are computed: double where single precision would lose bits of them."""
    return torch.float64 if dtype == torch.float64 or bits > 16 else torch.float32


def _bucketed(flat: Tensor, count: int) -> Tensor:
    """`(n,)` as `(count, ceil(n / count))`, padded with zeros; the bucket size is recovered from the count."""
    width = math.ceil(len(flat) / count) if count else 0
    return torch.nn.functional.pad(flat, (0, count * width - len(flat))).view(count, width)


# ---------------------------------------------------------------- the functions


def identity(v: Tensor) -> Plain:
    """Everything, uncompressed: the neutral element."""
    return Plain(v)


def top_k(v: Tensor, share: float) -> Sparse:
    """The `ceil(share * d)` entries of largest magnitude of the whole tensor.

    Biased; contracts: `|v - C(v)|^2 <= (1 - share) |v|^2`. Bytes: `k` values and the cheaper of `4k` and `ceil(d/8)`.

    Args:
        v: any shape, floating.
        share: part of the entries kept, in (0, 1].

    Raises:
        ConfigError: share out of range, or v not floating.
    """
    flat = _floating(v, "top_k").reshape(-1)
    k = _count(share, len(flat))
    index = flat.abs().topk(k, sorted=False).indices.sort().values
    return Sparse(flat[index], _placed(index, len(flat)), tuple(v.shape))


def rand_k(v: Tensor, share: float, rng: torch.Generator, unbiased: bool = True) -> Sparse:
    """`ceil(share * d)` random entries; the receiver draws their positions from an 8-byte seed.

    Unbiased with variance `(d/k - 1) |v|^2`, the entries being scaled by `d / k`; `unbiased=False` sends them as they
    are, which contracts (`|v - C(v)|^2 = (1 - k/d) |v|^2` in expectation) and is what error feedback needs.

    Args:
        v: any shape, floating.
        share: part of the entries kept, in (0, 1].
        rng: a CPU generator.

    Raises:
        ConfigError: share out of range, or v not floating.
    """
    flat = _floating(v, "rand_k").reshape(-1)
    d, k = len(flat), _count(share, len(flat))
    if k == d:
        return Sparse(flat.clone(), _placed(torch.arange(d), d), tuple(v.shape))
    seed = int(torch.randint(2**62, (), generator=rng))
    values = flat[_drawn(seed, d, k).to(v.device)]
    return Sparse(values * (d / k) if unbiased else values, seed, tuple(v.shape))


def quantize(v: Tensor, bits: int, rng: torch.Generator | None = None, bucket: int | None = None) -> Quantized:
    """Uniform quantisation to `bits` bits between -max|v| and +max|v|, of the whole tensor or of each bucket.

    With `rng` a value is rounded up with a chance equal to its fraction: unbiased (QSGD, Alistarh et al. 2017, with
    the maximum norm). Without, to the nearest level: biased, the error is at most half a level `max|v| / (2**bits-2)`.
    Bytes: `ceil(d * bits / 8)` and one scale for each bucket.

    Args:
        v: any shape, floating.
        bits: 2 to 32.
        rng: a CPU generator for stochastic rounding.
        bucket: at most so many neighbours share a scale; None: all.

    Raises:
        ConfigError: bits or bucket out of range, or v not floating.
    """
    if not 2 <= bits <= 32:
        raise ConfigError(f"quantize takes 2 to 32 bits; given {bits}. One bit is sign(v)")
    if bucket is not None and bucket < 1:
        raise ConfigError(f"quantize takes a bucket of at least 1 value, or None for one scale; given {bucket}")
    flat, top = _floating(v, "quantize").reshape(-1), 2 ** (bits - 1) - 1
    n = len(flat)
    rows = _bucketed(flat, math.ceil(n / min(bucket or n, n)) if n else 0)
    scales = rows.abs().amax(1) if n else flat.new_zeros(0)
    exact = _exact(v.dtype, bits)
    safe = torch.where(scales > 0, scales, torch.ones_like(scales)).to(exact).unsqueeze(1)
    # the ratio first: it is at most 1, and value * top could overflow
    at = (rows.to(exact) / safe * top).flatten()[:n]
    if rng is None:
        level = at.round()
    else:
        level = at.floor()
        level += torch.rand(n, generator=rng, dtype=exact).to(v.device) < at - level
    codes = level.nan_to_num(0.0).to(torch.int64).clamp_(-top, top) + top  # NaN shows in the scale
    return Quantized(pack(codes, bits), scales, bits, tuple(v.shape))


def sign(v: Tensor) -> Signs:
    """Signs, scaled by the mean magnitude `|v|_1 / d` (a zero counts as positive).

    Biased; contracts: `|v - C(v)|^2 = |v|^2 - |v|_1^2 / d`. Bytes: `ceil(d / 8)` and one scale.

    Raises:
        ConfigError: v is not floating.
    """
    flat = _floating(v, "sign").reshape(-1)
    scale = flat.abs().mean().reshape(1) if len(flat) else flat.new_zeros(1)
    return Signs(pack((flat >= 0).to(torch.int64), 1), scale, tuple(v.shape))


def scaled(value: Value, factor: float) -> Value:
    """A tensor, `At` or packed tensor times a number.

    Raises:
        MessageError: a packed form that cannot be scaled.
    """
    if isinstance(value, Tensor):
        return value * factor
    if isinstance(value, At):
        return replace(value, values=value.values * factor)
    if hasattr(value, "scaled"):
        return value.scaled(factor)
    raise MessageError(
        f"{type(value).__name__} cannot be scaled, so it cannot be clipped; give it a method scaled(factor)"
    )


def _floating(v: Tensor, what: str) -> Tensor:
    if not v.is_floating_point():
        raise ConfigError(f"{what} compresses floating tensors; given {v.dtype}. Convert it, or leave it as it is")
    return v


def _count(share: float, d: int) -> int:
    if not 0 < share <= 1:
        raise ConfigError(f"the share of entries kept is in (0, 1]; given {share}")
    return math.ceil(share * d - 1e-9)  # 0.1 * 30 is a hair more than 3


def _placed(index: Tensor, d: int) -> Tensor:
    """Ascending positions, in the smaller of two codings; nothing when all are there."""
    k = len(index)
    if k == d:
        return torch.empty(0, dtype=torch.int32)
    wide = torch.int32 if d < 2**31 else torch.int64
    if k * wide.itemsize <= math.ceil(d / 8):
        return index.to(wide)
    return pack(torch.zeros(d, dtype=torch.int64, device=index.device).index_fill_(0, index, 1), 1)


# ---------------------------------------------------------------- entries of a message


def entries(message: Message, change: Callable[[str, Value], Value], names: tuple[str, ...] = ()) -> Message:
    """The message with `change(path, value)` applied to every tensor, `At` and packed tensor in it.

    Args:
        names: only these fields; () for all.

    Raises:
        ConfigError: the message has none of `names`.
    """

    def walk(path: str, v: Value) -> Value:
        if isinstance(v, dict):
            return {k: walk(f"{path}.{k}", x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return type(v)(walk(f"{path}.{k}", x) for k, x in enumerate(v))
        if isinstance(v, Tensor | At | Packed):
            return change(path, v)
        return v

    if names and not any(n in message for n in names):
        raise unknown("message field", names[0], message)
    return Message({k: walk(k, v) if not names or k in names else v for k, v in message.items()})


# ---------------------------------------------------------------- the stages


class Compressor(Stage):
    """A compressor as a stage. Subclasses are frozen dataclasses that say `compress(v, rng) -> Packed`.

    Attributes:
        kind: "sparsifier" (leaves entries out) or "quantiser" (fewer bits for each).
        feedback: keep what was left out and add it to the next message.
        fields: names of the message fields it acts on; () for all.
    """

    kind: ClassVar[Literal["sparsifier", "quantiser"]] = "quantiser"
    feedback: bool = False
    fields: tuple[str, ...] = ()

    def compress(self, v: Tensor, rng: torch.Generator) -> Any:
        """The packed form of one tensor."""
        raise NotImplementedError

    def check(self, plan: Plan, stages: tuple[Stage, ...]) -> None:
        """At most one sparsifier, then at most one quantiser: the positions first, then the values that are left.

        Raises:
            NotSupported: another order, two of a kind, or feedback in a quantiser that sees sparse values only.
        """
        line = [s for s in stages if isinstance(s, Compressor)]
        if sum(s.kind == self.kind for s in line) > 1:
            raise NotSupported(f"the channel has two {self.kind}s, keep one: {listed(stages)}")
        if self.kind == "sparsifier" and line[0] is not self:
            raise NotSupported(
                f"sparsify first, then quantise the values that are left (a quantiser would be undone); given "
                f"{listed(stages)}. Write: {listed(reversed(line))}"
            )
        if self.kind == "quantiser" and self.feedback and line[0] is not self:
            raise NotSupported(
                f"{type(self).__name__}(feedback=True) behind {type(line[0]).__name__} sees other positions each "
                f"time, so it has nothing to feed back; use {type(self).__name__}(..., feedback=False)"
            )

    def encode(self, message: Message, sender: Sender) -> Message:
        rng = sender.rng(f"channel.{self.name}")

        def one(path: str, value: Value) -> Value:
            key = f"{sender.program}/{path}"
            if isinstance(value, Tensor):
                return self._tensor(value, rng, sender.memory, key) if _compressible(value) else value
            if isinstance(value, At):
                return self._at(value, rng, sender.memory, key) if _compressible(value.values) else value
            inner = value.values if isinstance(value, PackedAt) else value
            if self.kind == "quantiser" and isinstance(inner, Sparse) and isinstance(inner.values, Tensor):
                inner = replace(inner, values=self.compress(inner.values, rng))
                return replace(value, values=inner) if isinstance(value, PackedAt) else inner
            raise MessageError(
                f"field {path!r} is compressed already ({type(value).__name__}): the method is a compressor itself. "
                f"Drop {type(self).__name__}, or name the fields it may act on: fields=(...)"
            )

        return entries(message, one, self.fields)

    def _tensor(self, v: Tensor, rng: torch.Generator, memory: MutableMapping[str, Any], key: str) -> Value:
        if not self.feedback:
            return self.compress(v, rng)
        v = v + self._left(memory, key, v.shape, v)
        packed = self.compress(v, rng)
        memory[key] = v - packed.dense()
        return packed

    def _at(self, a: At, rng: torch.Generator, memory: MutableMapping[str, Any], key: str) -> PackedAt:
        """Feedback is kept for the whole tensor: elements not sent this time keep theirs."""
        v = a.values
        if not self.feedback:
            return PackedAt(a.index, self.compress(v, rng), a.size, a.known)
        left = self._left(memory, key, torch.Size((a.size, *v.shape[1:])), v)
        v = v + left[a.index]
        packed = self.compress(v, rng)
        memory[key] = left.index_copy(0, a.index, v - packed.dense())
        return PackedAt(a.index, packed, a.size, a.known)

    def _left(self, memory: MutableMapping[str, Any], key: str, shape: torch.Size, like: Tensor) -> Tensor:
        left = memory.get(key)
        if left is None:
            return like.new_zeros(shape)
        if left.shape != shape:
            raise NotSupported(
                f"{type(self).__name__} keeps what it left out of {key!r}, but the field was {tuple(left.shape)} and "
                f"is now {tuple(shape)}. Send the elements as At(index, values, size), or use feedback=False"
            )
        return left.to(like)


def _compressible(v: Tensor) -> bool:
    return v.is_floating_point() and v.dim() >= 1


def _check_share(stage: TopK | RandK) -> None:
    if not 0 < stage.share <= 1:
        raise ConfigError(
            f"{type(stage).__name__}(share={stage.share}) cannot be: the part of the entries kept, in (0, 1]"
        )


@dataclass(frozen=True)
class TopK(Compressor):
    """The largest entries of every tensor (`top_k`), what is left out fed back by default.

    Meant for updates, whose small entries can wait; a method that sends whole models loses them.

    Args:
        share: part of the entries kept, in (0, 1].
        feedback: keep what was left out and add it to the next message.
        fields: names of the message fields it acts on; () for all.
    """

    name: ClassVar[str] = "topk"
    kind: ClassVar[Literal["sparsifier", "quantiser"]] = "sparsifier"
    share: float = 0.05
    feedback: bool = True
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_share(self)

    @property
    def contracts(self) -> bool:
        return not self.feedback

    def compress(self, v: Tensor, rng: torch.Generator) -> Sparse:
        return top_k(v, self.share)


@dataclass(frozen=True)
class RandK(Compressor):
    """Random entries of every tensor (`rand_k`): unbiased, or unscaled with feedback.

    Args:
        share: part of the entries kept, in (0, 1].
        feedback: keep what was left out and add it to the next message.
        fields: names of the message fields it acts on; () for all.
    """

    name: ClassVar[str] = "randk"
    kind: ClassVar[Literal["sparsifier", "quantiser"]] = "sparsifier"
    share: float = 0.05
    feedback: bool = False
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_share(self)

    def compress(self, v: Tensor, rng: torch.Generator) -> Sparse:
        return rand_k(v, self.share, rng, unbiased=not self.feedback)


@dataclass(frozen=True)
class Quantize(Compressor):
    """`bits`-bit codes for every tensor (`quantize`), or for the values a sparsifier before it kept.

    Args:
        bits: 2 to 32.
        rounding: "stochastic" (unbiased) or "nearest".
        bucket: at most so many neighbours share a scale; None: all of a tensor.
        feedback: keep the rounding error and add it to the next message.
        fields: names of the message fields it acts on; () for all.
    """

    name: ClassVar[str] = "quantize"
    bits: int = 8
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    bucket: int | None = None
    feedback: bool = False
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rounding not in ("stochastic", "nearest"):
            raise unknown("rounding", self.rounding, ("stochastic", "nearest"))
        quantize(torch.zeros(1), self.bits, bucket=self.bucket)  # its own words about bits and bucket

    def compress(self, v: Tensor, rng: torch.Generator) -> Quantized:
        return quantize(v, self.bits, rng if self.rounding == "stochastic" else None, self.bucket)


@dataclass(frozen=True)
class Sign(Compressor):
    """One bit for each entry and the mean magnitude (`sign`), the error fed back by default (EF-SignSGD).

    Args:
        feedback: keep the error and add it to the next message.
        fields: names of the message fields it acts on; () for all.
    """

    name: ClassVar[str] = "sign"
    feedback: bool = True
    fields: tuple[str, ...] = ()

    @property
    def contracts(self) -> bool:
        return not self.feedback

    def compress(self, v: Tensor, rng: torch.Generator) -> Signs:
        return sign(v)
