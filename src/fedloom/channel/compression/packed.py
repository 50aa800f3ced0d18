"""Compressed tensors as they travel: bit-packed records with exact `nbytes`, which `.dense()` reads back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedloom.errors import MessageError
from fedloom.message import At, nbytes
from fedloom.written import record

Size: TypeAlias = tuple[int, ...]


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
        n, exact = math.prod(self.shape), exact_dtype(self.scales.dtype, self.bits)
        codes, top = unpack(self.codes, self.bits, n), 2 ** (self.bits - 1) - 1
        levels = (codes - top).to(exact) / top
        per = bucketed(levels, len(self.scales)) * self.scales.to(exact).unsqueeze(1)
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
            return drawn(place, d, _length(self.values))
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


def drawn(seed: int, d: int, k: int) -> Tensor:
    """`k` positions of `d`, ascending, the same on every machine."""
    return torch.randperm(d, generator=torch.Generator().manual_seed(seed))[:k].sort().values


def exact_dtype(dtype: torch.dtype, bits: int) -> torch.dtype:
    """Where codes are computed: double where single precision would lose bits of them."""
    return torch.float64 if dtype == torch.float64 or bits > 16 else torch.float32


def bucketed(flat: Tensor, count: int) -> Tensor:
    """`(n,)` as `(count, ceil(n / count))`, padded with zeros; the bucket size is recovered from the count."""
    width = math.ceil(len(flat) / count) if count else 0
    return torch.nn.functional.pad(flat, (0, count * width - len(flat))).view(count, width)


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
    """The way back: `(n,)` int64.

    Raises:
        MessageError: so many codes take another number of bytes.
    """
    if not 1 <= bits <= 32 or len(packed) != -(-n * bits // 8):
        raise MessageError(f"{len(packed):,} bytes are not {n:,} codes of {bits} bits")
    if bits > 8:
        return unpack(packed[:n], 8, n) | (unpack(packed[n:], bits - 8, n) << 8)
    if bits == 8:
        return packed.to(torch.int64)
    eight = torch.arange(8, device=packed.device)
    padded = torch.nn.functional.pad(packed.to(torch.int64), (0, -len(packed) % bits)).view(-1, bits)
    words = (padded << (8 * eight[:bits])).sum(1, keepdim=True)
    return ((words >> (bits * eight)) & (2**bits - 1)).flatten()[:n]
