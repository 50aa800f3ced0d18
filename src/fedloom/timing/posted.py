"""A job under way, as it is saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedloom.engines.base import Job
from fedloom.message import Message
from fedloom.written import record

from .sharing import Way

NEVER = math.inf


@record
@dataclass(slots=True)
class Posted:
    """Where the job is on its road follows from its fields.

    Attributes:
        arrive: when it reaches its client; `began` when it started there, None while it waits.
        cut: training running at that time stops there.
        answers: (time, kind, answer) of every finished await: steps of a training, the answer to a question; the
            program has had the first `heard` of them, one may still be on its way to it.
        weight: name of the number in the reply that must be fit to weight it by, None for none.
        reply: what it returned, None before; `due` the time of its next event.
        reached: when its download was done, None while it lasts; `hold` how long it then waits at its client.
        ended: when its program had ended, and the upload began; `worked` the seconds it had computed until then.
        lost: when its client goes away, and the job with it; inf for never.
        way: its transfer under way in a cell that others share.
    """

    number: int
    id: int
    program: str
    payload: Message
    key: tuple[Any, ...]
    version: int
    sent: float
    arrive: float
    due: float
    began: float | None = None
    cut: float | None = None
    answers: list[tuple[float, str, Any]] = field(default_factory=list[tuple[float, str, Any]])
    heard: int = 0
    weight: str | None = None
    reply: Message | None = None
    memory: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pending: dict[str, Any] | None = None
    booked: dict[str, float] = field(default_factory=dict[str, float])
    nbytes: int = 0
    samples: int = 0
    reached: float | None = None
    hold: float = 0.0
    ended: float | None = None
    worked: float = 0.0
    lost: float = NEVER
    way: Way | None = None

    def job(self) -> Job:
        return Job(
            self.number,
            self.id,
            self.program,
            self.payload,
            self.key,
            self.memory,
            self.version,
            self.began or 0.0,
            samples=self.samples,
        )
