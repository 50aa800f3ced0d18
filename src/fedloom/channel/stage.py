"""The shape of every channel stage: encode at the sender, decode at the receiver, settle the sum at the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..errors import NotSupported
from ..message import Message

if TYPE_CHECKING:
    from ..engines.base import Plan


@dataclass
class Sender:
    """Where a message is being encoded: whose it is, what this stage keeps there, keyed randomness.

    `memory` is the stage's own (error feedback) and is committed with the job, as the client's memory is.
    """

    id: int
    memory: MutableMapping[str, Any]
    rng: Callable[[str], torch.Generator]
    samples: int = 0


@dataclass
class Exchange:
    """A finished sum: how many replies are in it, how many were expected by the sampling law, and its weight."""

    count: int
    expected: float
    weight: float
    population: int
    probability: float | None
    rng: Callable[[str], torch.Generator]
    ledger: dict[str, float] = field(default_factory=dict)
    """What must never be undone (privacy spent): numbers that only grow, checkpointed with the run."""


@dataclass(frozen=True)
class Stage:
    """One stage of the channel; the default changes nothing (an observer overrides one method and returns its input).

    Class attributes say what it may be paired with: `sums_only` refuses methods that read single replies,
    `uniform` demands equal weights, `changes` is what it does to values.
    """

    sums_only: ClassVar[bool] = False
    uniform: ClassVar[bool] = False

    def check(self, plan: Plan, stages: tuple[Stage, ...]) -> None:
        """Refuse an unsound pairing before any work is done (raise NotSupported)."""

    def encode(self, message: Message, sender: Sender) -> Message:
        """At the client, before anything leaves. Entries may become `Packed`."""
        return message

    def decode(self, message: Message) -> Message:
        """At the server, on arrival."""
        return message

    def settle(self, total: Message, exchange: Exchange) -> Message:
        """At the server, on a finished sum (`mean` divides afterwards): noise, unmasking."""
        return total


@dataclass(frozen=True)
class Channel:
    """Stages in the order a message passes them on its way up; decoding runs backwards."""

    stages: tuple[Stage, ...] = ()

    @staticmethod
    def of(stages: Channel | Stage | Iterable[Stage] | None) -> Channel:
        if isinstance(stages, Channel):
            return stages
        if stages is None:
            return Channel()
        return Channel((stages,) if isinstance(stages, Stage) else tuple(stages))

    def __bool__(self) -> bool:
        return bool(self.stages)

    @property
    def sums_only(self) -> bool:
        return any(s.sums_only for s in self.stages)

    @property
    def uniform(self) -> bool:
        return any(s.uniform for s in self.stages)

    def check(self, plan: Plan) -> None:
        card = plan.method.card
        if self.sums_only and "replies" in card.needs:
            names = ", ".join(type(s).__name__ for s in self.stages if s.sums_only)
            raise NotSupported(
                f"{card.title} reads single replies (clients.map), but {names} lets the server see only sums. "
                f"Use a method without the need 'replies' (`fedloom methods` lists them) or drop that stage"
            )
        for stage in self.stages:
            stage.check(plan, self.stages)

    def encode(self, message: Message, sender: Sender) -> Message:
        memory = sender.memory
        for k, stage in enumerate(self.stages):
            slot = _Slot(memory, f"channel.{k}.{type(stage).__name__}.")
            message = stage.encode(message, Sender(sender.id, slot, sender.rng, sender.samples))
        return message

    def decode(self, message: Message) -> Message:
        for stage in reversed(self.stages):
            message = stage.decode(message)
        return message

    def settle(self, total: Message, exchange: Exchange) -> Message:
        for stage in reversed(self.stages):
            total = stage.settle(total, exchange)
        return total


class _Slot(MutableMapping[str, Any]):
    """A stage's own corner of a client's memory."""

    def __init__(self, memory: MutableMapping[str, Any], prefix: str) -> None:
        self._memory, self._prefix = memory, prefix

    def __getitem__(self, name: str) -> Any:
        return self._memory[self._prefix + name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._memory[self._prefix + name] = value

    def __delitem__(self, name: str) -> None:
        del self._memory[self._prefix + name]

    def __iter__(self):
        return (n[len(self._prefix) :] for n in self._memory if n.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
