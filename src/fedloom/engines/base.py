"""What every engine is given and gives: a plan that never changes, jobs that are data, replies or their sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fedloom.channel.ledger import Ledger
from fedloom.channel.stage import Channel
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.model import Model
from fedloom.training.work import Counted, Work

from .fold import Fold, Total

if TYPE_CHECKING:
    from fedloom.client import Ask, Query, Sending
    from fedloom.data import Federation
    from fedloom.method import Method
    from fedloom.task import Task
    from fedloom.timing.world import World
    from fedloom.training.request import Trained, Training

Behaviour = Callable[..., Any]
"""`async def behaviour(client, honest, **payload)`: a program around the honest one, `honest(client, **payload)`."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything about a run that does not change: method, task, federation, models, channel, world, seed."""

    method: Method
    task: Task
    federation: Federation
    models: Mapping[str, Model]
    seed: int
    world: World
    channel: Channel = field(default_factory=Channel)
    behave: Mapping[int, Behaviour] = field(default_factory=dict[int, Behaviour])
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    on_failure: str = "raise"
    counted: Counted = field(default_factory=Counted)
    _enclosed: dict[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])

    def model_of(self, id: int) -> Model:
        """The network of one client."""
        if len(self.models) == 1:
            return next(iter(self.models.values()))
        if self.task.assign is not None:
            return self.models[self.task.assign(id)]
        return list(self.models.values())[id % len(self.models)]

    @property
    def model(self) -> Model:
        """The first (usually only) network: the server's."""
        return next(iter(self.models.values()))

    def place(self, program: Callable[..., Any]) -> str:
        """Where a program stands in the method: "local", or "inner.local" in a method inside.

        Raises:
            ConfigError: not a bound method of this run's method; jobs are data and name their program.
        """
        owner = getattr(program, "__self__", None)
        path = _find(self.method, owner)
        if path is None:
            raise ConfigError(
                f"{getattr(program, '__qualname__', program)!r} is not a program of {type(self.method).__name__}. "
                f"A client program is an `async def` method of the method (or of a method in one of its fields), "
                f"passed as self.local"
            )
        return path + program.__name__

    def program(self, place: str) -> Callable[..., Any]:
        """The way back from `place`."""
        owner: Any = self.method
        *path, name = place.split(".")
        for part in path:
            owner = getattr(owner, part)
        return getattr(owner, name)

    def enclosed(self, place: str) -> Callable[..., Any]:
        """The program at `place` as its client runs it: within the `around` of every method it stands in."""
        if place not in self._enclosed:
            self._enclosed[place] = self._enclose(place)
        return self._enclosed[place]

    def _enclose(self, place: str) -> Callable[..., Any]:
        outer: list[Any] = [self.method]
        for part in place.split(".")[:-1]:
            outer.append(getattr(outer[-1], part))
        program = self.program(place)
        for method in reversed(outer[:-1]):
            program = method.enclosing(program)
        return program


def _find(method: Any, owner: object) -> str | None:
    if method is owner:
        return ""
    for f in fields(method):
        inner = getattr(method, f.name)
        if hasattr(inner, "round") and hasattr(inner, "start"):
            path = _find(inner, owner)
            if path is not None:
                return f"{f.name}.{path}"
    return None


@dataclass(slots=True)
class Job:
    """One client's turn, as data: programs are names, payloads tensors and numbers.

    With `judge`, the program's answer (a vector or a function) is evaluated on that split and the metric sums are the
    reply; nothing is charged and no memory changes. `samples` is the size of the client's training data, `nbytes`
    what it took to send the job.
    """

    number: int
    id: int
    program: str
    payload: Message
    key: tuple[Any, ...]
    memory: Mapping[str, Any]
    version: int = 0
    began: float = 0.0
    judge: str = ""
    samples: int = 0
    nbytes: int = 0


@dataclass(slots=True)
class Outcome:
    """What a job came to. `message` is None where the program returned nothing or the reply went into a sum.

    `nbytes` are those of the reply, `asked` those of questions in mid-job; `work` is that of each training, `queried`
    the FLOPs of predictions, gradients and evaluations between them (0 where time does not depend on FLOPs).
    """

    job: Job
    message: Message | None = None
    memory: dict[str, Any] | None = None
    booked: dict[str, float] = field(default_factory=lambda: {})
    nbytes: int = 0
    work: list[Work] = field(default_factory=lambda: [])
    queried: float = 0.0
    outbox: list[Sending] = field(default_factory=lambda: [])
    asked: Ledger = field(default_factory=Ledger)
    excluded: str | None = None
    took: float = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """As plain values: a whole cohort of these is sent in every round."""
        asked = (self.asked.up, self.asked.down, self.asked.peers) if self.asked.total else ()
        return _outcome, (_values(self), [tuple(w) for w in self.work], asked)


_PLAIN = [f.name for f in fields(Outcome) if f.name not in ("work", "asked")]
_values = attrgetter(*_PLAIN)


def _outcome(values: tuple[Any, ...], work: list[tuple[Any, ...]], asked: tuple[int, ...]) -> Outcome:
    return Outcome(**dict(zip(_PLAIN, values)), work=[Work(*w) for w in work], asked=Ledger(*asked))


class Engine(Protocol):
    """Runs jobs. One verb: replies, or their sum; and, for jobs that outlive a round, the training they wait for."""

    name: str

    def run(self, jobs: Sequence[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        """All jobs to their end: outcomes in the order of the jobs, and the sum when a fold is given."""
        ...

    def compute(self, requests: Sequence[Training]) -> list[Trained]:
        """Training requests of jobs driven from outside (the clock); results are built."""
        ...

    def choices(self) -> dict[str, str]:
        """What was measured and chosen, for the run's configuration."""
        ...

    def close(self) -> None:
        """End workers."""
        ...


Answer = Callable[["Ask", int], Any]
"""How a question in mid-job is answered: (question, client) -> answer."""

__all__ = ["Answer", "Behaviour", "Engine", "Fold", "Job", "Outcome", "Plan", "Query", "Total"]
if TYPE_CHECKING:
    from fedloom.client import Query
