"""The shape of every channel stage: encode at the sender, decode at the receiver, settle the sum at the server."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from fedloom.checked import Checked
from fedloom.errors import ConfigError, FedloomWarning, NotSupported
from fedloom.message import Message
from fedloom.trees import is_row

if TYPE_CHECKING:
    from fedloom.card import Card
    from fedloom.engines.base import Plan

    from .secure import Secure


@dataclass
class Sender:
    """Where a message is being encoded: whose it is, what this stage keeps there, keyed randomness.

    Attributes:
        memory: the stage's own (error feedback), committed with the job, as the client's memory is.
        rng: `rng(purpose)` is a generator keyed by (seed, purpose, job).
        samples: training samples of the client.
        program: the client program the message comes from; messages of two programs are two signals.
        notes: numbers a stage measured (was it clipped?). They stay at the client: a simulation may log them, a
            deployment must not send them.
    """

    id: int
    memory: MutableMapping[str, Any]
    rng: Callable[[str], torch.Generator]
    samples: int = 0
    program: str = ""
    notes: dict[str, float] = field(default_factory=dict[str, float])


@dataclass
class Exchange:
    """A finished sum on its way to the server program.

    `mean` divides by `weight`, and the program is told `count`: a stage that must hide how many really replied sets
    both to what the sampling law expects.

    Attributes:
        count: replies in the sum.
        expected: replies the sampling law expects, whoever came.
        weight: sum of the replies' weights.
        population: clients of the federation.
        probability: each client's chance to be drawn, None where the law has no single one.
        rng: `rng(purpose)`: keyed in simulation, from the operating system in deployment.
        ledger: what must never be undone (privacy spent): numbers that only grow, checkpointed with the run.
        law: how the cohort was drawn: "poisson" (each client on its own), "fixed" (so many without replacement),
            anything else: no chance that privacy could count on.
        use: the how-manieth exchange over this very draw; asking one cohort twice is not drawing two cohorts.
        stages: the channel's, filled in by `Channel.settle`.
    """

    count: float
    expected: float
    weight: float
    population: int
    probability: float | None
    rng: Callable[[str], torch.Generator]
    ledger: dict[str, float] = field(default_factory=dict[str, float])
    law: str = "all"
    use: int = 1
    stages: tuple[Stage, ...] = ()


def doubt_statistics(plan: Plan, become: str) -> None:
    """Warn where a network keeps running statistics that a method may send: they `become` something else on the way."""
    if any(m.layout.size > m.layout.trainable for m in plan.models.values()):
        warnings.warn(
            f"a network has running statistics (BatchNorm): where the method sends them they are {become}, and a "
            f"variance may become negative, which makes the loss NaN. buffers='batch' and 'frozen' send none, and "
            f"GroupNorm has none",
            FedloomWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class Stage(Checked):
    """One stage of the channel. The default changes nothing: an observer overrides one method and returns its input.

    Class attributes say what it may be paired with.

    Attributes:
        name: what recipes call it.
        sums_only: methods that read single replies are refused.
        uniform: replies must have equal weights.
    """

    name: ClassVar[str] = ""
    sums_only: ClassVar[bool] = False
    uniform: ClassVar[bool] = False

    @property
    def contracts(self) -> bool:
        """True where encoding never makes a message's Euclidean norm larger (an observer says True)."""
        return False

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

    def report(self, ledger: Mapping[str, float]) -> dict[str, Any]:
        """What a run's summary says of this stage, from the ledger of its exchanges."""
        return {}

    def __str__(self) -> str:
        """The stage as recipes write it: `topk:0.05`, `clip:1.0`; `parse_stage` is the way back."""
        options: list[str] = []
        for k, f in enumerate(fields(self)):
            value = getattr(self, f.name)
            if k == 0 and not isinstance(value, bool):
                options.append(_written(value))
            elif value != f.default:
                options.append(f"{f.name}={_written(value)}")
        return (self.name or type(self).__name__) + (":" + ",".join(options) if options else "")

    def only_once(self, stages: tuple[Stage, ...]) -> None:
        """Raises NotSupported where a stage of this type stands twice."""
        if sum(type(s) is type(self) for s in stages) > 1:
            raise NotSupported(f"the channel has {type(self).__name__} twice; keep one: {listed(stages)}")


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if is_row(value) else str(value)


def listed(stages: Iterable[Stage]) -> str:
    """The stages in order, for messages: `topk:0.05 | clip:1.0`."""
    return " | ".join(map(str, stages)) or "(no stages)"


@dataclass(frozen=True)
class Channel:
    """Stages in the order a message passes them on its way up; decoding runs backwards."""

    stages: tuple[Stage, ...] = ()

    @staticmethod
    def of(stages: Channel | Stage | str | Iterable[Any] | None) -> Channel:
        """A channel from stages, recipe texts (`"topk:0.05"`), bundles such as `DP(...)`, or lists of these.

        Raises:
            ConfigError: something else.
        """
        return stages if isinstance(stages, Channel) else Channel(tuple(_flat(stages)))

    def __bool__(self) -> bool:
        return bool(self.stages)

    def __str__(self) -> str:
        return listed(self.stages)

    @property
    def sums_only(self) -> bool:
        return any(s.sums_only for s in self.stages)

    @property
    def uniform(self) -> bool:
        return any(s.uniform for s in self.stages)

    @property
    def secure(self) -> Secure | None:
        """The stage under which sums are added up in a ring, and single replies are seen by nobody."""
        from .secure import Secure

        return next((s for s in self.stages if isinstance(s, Secure)), None)

    def check(self, plan: Plan) -> None:
        """Refuse what cannot go together: stages among themselves, and with the method.

        Raises:
            NotSupported: an order or pairing that would not do what its names promise.
        """
        self.check_method(plan.method.card)
        for stage in self.stages:
            stage.check(plan, self.stages)

    def check_method(self, card: Card) -> None:
        """Refuse a method that reads single replies where they are not seen; needs no plan.

        Raises:
            NotSupported: says what would do.
        """
        if self.sums_only and "replies" in card.needs:
            names = ", ".join(type(s).__name__ for s in self.stages if s.sums_only)
            raise NotSupported(
                f"{card.title} reads single replies (clients.map), but {names} lets the server see only sums. "
                f"Use a method without the need 'replies' (`fedloom methods` lists them) or drop that stage"
            )

    def report(self, ledger: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """What the stages have to say in a run's summary, by stage."""
        return {str(s): figures for s in self.stages if (figures := s.report(ledger))}

    def encode(self, message: Message, sender: Sender) -> Message:
        """What leaves the client."""
        for k, stage in enumerate(self.stages):
            slot = _Slot(sender.memory, f"channel.{k}.{type(stage).__name__}.")
            message = stage.encode(message, replace(sender, memory=slot))
        return message

    def decode(self, message: Message) -> Message:
        """What arrives at the server."""
        for stage in self.stages[::-1]:
            message = stage.decode(message)
        return message

    def settle(self, total: Message, exchange: Exchange) -> Message:
        """What the server program reads of a sum; read `exchange.count` and `exchange.weight` afterwards."""
        exchange.stages = self.stages
        for stage in reversed(self.stages):
            total = stage.settle(total, exchange)
        return total


def _flat(given: Any) -> list[Stage]:
    if given is None:
        return []
    if isinstance(given, Stage):
        return [given]
    if isinstance(given, str):
        from .parse import parse_stage

        return _flat(parse_stage(given))
    if isinstance(given, Iterable) and not isinstance(given, Mapping):
        return [stage for part in cast("Iterable[Any]", given) for stage in _flat(part)]
    raise ConfigError(
        f"a channel is made of stages, e.g. channel=[TopK(0.05), Quantize(8)] or 'topk:0.05'; given {given!r}"
    )


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
