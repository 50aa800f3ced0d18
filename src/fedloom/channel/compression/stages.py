"""Compressors as stages of the channel, with or without error feedback.

A stage compresses every floating tensor with at least one axis in an upload (and the values of `At`); numbers, and
tensors of no axis, pass untouched. With `feedback` the client keeps what was left out and adds it to the next message
(EF14: Seide et al. 2014, Karimireddy et al. 2019):

    v = message + e,  sent = C(v),  e = v - sent        so   sum of sent + last e = sum of messages
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from fedloom.channel.peers import uploads_only
from fedloom.channel.stage import Sender, Stage, doubt_statistics, listed
from fedloom.errors import ConfigError, MessageError, NotSupported, unknown
from fedloom.message import At, Message, Value

from .entries import entries
from .functions import quantize, rand_k, sign, top_k
from .packed import PackedAt, Quantized, Signs, Sparse

if TYPE_CHECKING:
    from fedloom.engines.base import Plan


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
            NotSupported: another order, two of a kind, or feedback in a quantiser that sees sparse values only; a
                method whose clients talk to each other.
        """
        uploads_only(self, plan)
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
        if line[0] is self:
            doubt_statistics(plan, "compressed")

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


@dataclass(frozen=True)
class _Sparsifier(Compressor):
    """Keeps a part of the entries."""

    kind: ClassVar[Literal["sparsifier", "quantiser"]] = "sparsifier"
    share: float = 0.05
    feedback: bool = False
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"{type(self).__name__}(share={self.share}) cannot be: the part of the entries kept, in (0, 1]"
            )


@dataclass(frozen=True)
class TopK(_Sparsifier):
    """The largest entries of every tensor (`top_k`), what is left out fed back by default.

    Meant for updates, whose small entries can wait; a method that sends whole models loses them.

    Args:
        share: part of the entries kept, in (0, 1].
        feedback: keep what was left out and add it to the next message.
        fields: names of the message fields it acts on; () for all.
    """

    name: ClassVar[str] = "topk"
    feedback: bool = True

    @property
    def contracts(self) -> bool:
        return not self.feedback

    def compress(self, v: Tensor, rng: torch.Generator) -> Sparse:
        return top_k(v, self.share)


@dataclass(frozen=True)
class RandK(_Sparsifier):
    """Random entries of every tensor (`rand_k`): unbiased, or unscaled with feedback.

    Args:
        share: part of the entries kept, in (0, 1].
        feedback: keep what was left out and add it to the next message.
        fields: names of the message fields it acts on; () for all.
    """

    name: ClassVar[str] = "randk"

    def compress(self, v: Tensor, rng: torch.Generator) -> Sparse:
        return rand_k(v, self.share, rng, unbiased=not self.feedback)


@dataclass(frozen=True)
class Quantize(Compressor):
    """`bits`-bit codes for every tensor (`quantize`), or for the values a sparsifier before it kept.

    Args:
        bits: 2 to 32.
        rounding: "stochastic" (unbiased) or "nearest", which it is with feedback: what is fed back grows unless the
            compressor contracts, and corrects a bias by itself.
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
        nearest = self.feedback or self.rounding == "nearest"
        return quantize(v, self.bits, None if nearest else rng, self.bucket)


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
