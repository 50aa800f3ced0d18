"""The stage `secure`: the server reads sums, and nothing of a single reply but that it came."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from fedloom.channel.stage import Sender, Stage, listed
from fedloom.errors import ConfigError, MessageError, MissingExtra, NotSupported, unknown
from fedloom.message import At, Message, Value, nbytes, opened
from fedloom.trees import is_mapping, is_row, like

from .ring import KINDS, NUMBER, ROOM, kind_of, snapped, snapped_number

if TYPE_CHECKING:
    from fedloom.engines.base import Plan
    from fedloom.engines.fold import Fold

_SHARE = 16  # bits after the point of a weight that is a number in the reply
_ROUNDINGS = ("nearest", "zero", "stochastic")
_REFUSED = {
    "peers": "sends messages from client to client",
    "clock": "takes replies one by one as they arrive",
}


@dataclass(frozen=True)
class InRing:
    """A value on the grid, with the bytes it takes as integers modulo 2^k; read as it is."""

    value: Any
    ring: int

    @property
    def nbytes(self) -> int:
        v = self.value
        if isinstance(v, Tensor):
            return v.numel() * self.ring // 8
        return (v.size + v.size * math.prod(v.values.shape[1:])) * self.ring // 8 if isinstance(v, At) else NUMBER

    def dense(self) -> Any:
        return self.value


@dataclass(frozen=True)
class Secure(Stage):
    """Secure aggregation (Bonawitz et al., CCS 2017): replies leave under masks that cancel in their sum.

    Entries are rounded to multiples of `step = range / 2^(bits-1)` and added up as integers modulo 2^ring, so sums are
    exact: the same bits as the plain sum of the rounded replies, in any order and with any drop-outs. Numbers in
    replies are rounded to 2^-32, those that replies are weighted by to 2^-16 as weights: they go through it as well.

    Refused, because single replies would be seen, or the sum would not be one: methods that read single replies, talk
    to peers or run on a clock; a compressor (all entries are sent, masked ones cannot be left out); stages after it,
    but for noise on the sum; sums that might not fit into the ring. An entry beyond `range` is refused where it is.

    Args:
        threshold: the part of the clients asked that every phase takes, in (0.5, 1]; see `least`. So many must collude
            before a reply can be seen, and one more than the rest may be lost before a sum is.
        range: the largest entry either way, a power of two.
        bits: of an entry, with its sign.
        ring: k of the ring, a multiple of 8 up to 64: bits an entry takes on the wire; ring - bits are for the sum.
        rounding: "nearest"; "stochastic" (unbiased); "zero" (nothing becomes larger, as DP needs after clipping).
    """

    name: ClassVar[str] = "secure"
    sums_only: ClassVar[bool] = True
    threshold: float = 0.66
    range: float = 16.0
    bits: int = 24
    ring: int = 48
    rounding: Literal["nearest", "stochastic", "zero"] = "nearest"

    def __post_init__(self) -> None:
        if not 0.5 < self.threshold <= 1:
            raise ConfigError(
                f"Secure(threshold={self.threshold}) cannot be: more than half of the clients, in (0.5, 1]. With half "
                f"of them a server could have both secrets of one client shown, by telling two halves different things"
            )
        if not (0 < self.range < math.inf and math.frexp(self.range)[0] == 0.5):
            raise ConfigError(f"Secure(range={self.range}) cannot be: a power of two, as in 0.5 or 16")
        if not (2 <= self.bits < self.ring <= 64 and self.ring % 8 == 0):
            raise ConfigError(
                f"Secure(bits={self.bits}, ring={self.ring}) cannot be: 2 <= bits < ring <= 64, ring a multiple of 8"
            )
        if self.rounding not in _ROUNDINGS:
            raise unknown("rounding", self.rounding, _ROUNDINGS)

    @property
    def contracts(self) -> bool:
        return self.rounding == "zero"

    @property
    def step(self) -> float:
        """What entries are multiples of."""
        return self.range / 2 ** (self.bits - 1)

    @property
    def room(self) -> int:
        """What the weights of a sum must add up to less than, in whole units: for entries, and for numbers."""
        return min(1 << (self.ring - self.bits), ROOM)

    def least(self, asked: int) -> int:
        """How many of the clients asked every phase takes; 2 at least."""
        return max(2, asked // 2 + 1, math.ceil(self.threshold * asked - 1e-9))

    # ------------------------------------------------------------ at the door
    def check(self, plan: Plan, stages: tuple[Stage, ...]) -> None:
        """See the class.

        Raises:
            NotSupported: one of the refusals.
            MissingExtra: cryptography or pycryptodome is not installed.
        """
        from fedloom.channel.compression.stages import Compressor

        self.only_once(stages)
        place = stages.index(self)
        if after := [s for s in stages[place + 1 :] if s.name != "noise"]:
            raise NotSupported(
                f"{after[0]} after {self} would change entries that are masked already; the order is clip, secure, "
                f"noise. Given {listed(stages)}"
            )
        if packing := [s for s in stages[:place] if isinstance(s, Compressor)]:
            raise NotSupported(
                f"{packing[0]} before {self} saves nothing: every entry is sent, as one that is left out would show. "
                f"Drop it; for fewer bytes give the ring fewer bits, as in secure:bits=12,ring=24"
            )
        for need, why in _REFUSED.items():
            if need in plan.method.card.needs:
                raise NotSupported(
                    f"{plan.method.card.title} {why}, and {self} lets the server see sums alone. Use a method that "
                    f"calls clients.mean(...) or clients.sum(...), or drop that stage"
                )
        clients = len(plan.federation)
        if clients < 2:
            raise NotSupported(f"a secure sum over {clients} client is its reply; it takes 2 clients or more")
        weights = int(plan.federation.sizes().sum())
        if max(weights, clients) >= self.room:
            bits = self.ring - max(weights, clients).bit_length()
            raise NotSupported(
                f"the weights of {clients} clients, {weights:,} samples, and entries of {self.bits} bits can exceed a "
                f"ring of 2^{self.ring}: a sum would be another number. Give it more, {_wider(self)}, or the entries "
                f"at most {bits} bits"
            )
        for package, module in (("cryptography", "cryptography"), ("pycryptodome", "Crypto")):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra(package, "deploy", "a secure sum")

    # ------------------------------------------------------------ at a client
    def encode(self, message: Message, sender: Sender) -> Message:
        """Every entry onto the grid; compressed ones are made dense.

        Raises:
            MessageError: an entry beyond the range.
            NotSupported: one that cannot be added up.
        """
        rng = sender.rng("channel.secure") if self.rounding == "stochastic" else None

        def walk(path: str, v: Value) -> Value:
            if is_mapping(v):
                return {k: walk(f"{path}.{k}", x) for k, x in v.items()}
            if is_row(v):
                return like(v, (walk(f"{path}.{k}", x) for k, x in enumerate(v)))
            if v is None:
                return None
            try:
                return InRing(self._on_grid(path, v, rng), self.ring)
            except MessageError as e:
                raise MessageError(f"field {path!r} {e}") from None

        return Message({k: walk(k, v) for k, v in opened(message).items()})

    def _on_grid(self, path: str, v: Value, rng: torch.Generator | None) -> Value:
        limit, t = 1 << (self.bits - 1), v.values if isinstance(v, At) else v
        if isinstance(t, Tensor) and kind_of(t) in KINDS:
            if isinstance(v, At) and len(v.index.unique()) < len(v.index):
                raise MessageError("names a position twice: give a secure sum what belongs there as one")
            on = snapped(t, self.step, limit, self.rounding, rng)
            return At(v.index, on, v.size, v.known) if isinstance(v, At) else on
        if isinstance(v, bool | int | float):
            return snapped_number(v)
        what = kind_of(t) if isinstance(t, Tensor) else type(v).__name__
        raise NotSupported(
            f"field {path!r} ({what}, {nbytes(v)} bytes) cannot be added up, and {self} sends nothing else"
        )

    # ------------------------------------------------------------ weights
    def weight(self, fold: Fold, message: Mapping[str, Any], samples: int, asked: int) -> int:
        """The weight of a reply as a whole number, in units of `unit(fold)`.

        Raises:
            MessageError: a number in the reply that is no weight, or so large that sums of `asked` might not fit.
        """
        if fold.weight is None:
            return samples
        if not isinstance(fold.weight, str):
            return 1
        w = round(fold.of(Message(message), samples) * (1 << _SHARE))
        if w * asked >= self.room:
            more = f"; {_wider(self)} takes more" if self.room < ROOM and self.ring < 64 else ""
            raise MessageError(
                f"the weight {fold.weight!r} is too large for a secure sum of {asked}: less than "
                f"{self.room / asked / (1 << _SHARE):g} in this ring{more}"
            )
        return w

    def unit(self, fold: Fold) -> float:
        """What a weight of 1 stands for."""
        if fold.weight is None:
            return 1.0
        return 2.0**-_SHARE if isinstance(fold.weight, str) else float(fold.weight)


def _wider(stage: Secure) -> str:
    return f"secure:ring={min(stage.ring + 16, 64)}"
