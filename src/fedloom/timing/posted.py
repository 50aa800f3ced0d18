"""A job under way, as it is saved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fedloom.engines.base import Job
from fedloom.message import Message
from fedloom.training.request import Trained
from fedloom.written import record

from .sharing import Way

NEVER = math.inf

record(Trained)


@record
@dataclass(slots=True)
class Posted(Job):
    """A job and where it is on its road, which follows from its fields.

    `began` is when it started at its client, NEVER while it waits; `nbytes` those of what is on its way: the job, then
    its reply; `memory` is filled in when it begins.

    Attributes:
        sent: when; `arrive` when it reaches its client; `due` the time of its next event.
        cut: training running at that time stops there.
        answers: (time, kind, answer) of every finished await: what a training came to (the steps of one that cannot be
            saved), the answer to a question; the program has had the first `heard` of them, one may still be on its
            way to it. None are kept once it has ended.
        ahead: what the training it waits for comes to, computed early, and after how many steps. Whom it was computed
            with decides its last bits, so it is not computed again.
        weight: name of the number in the reply that must be fit to weight it by, None for none.
        reply: what it returned, None before.
        reached: when its download was done, None while it lasts; `hold` how long it then waits at its client.
        ended: when its program had ended, and the upload began; `worked` the seconds it had computed until then.
        lost: when its client goes away, and the job with it; inf for never.
        way: its transfer under way in a cell that others share.
    """

    began: float = NEVER
    sent: float = 0.0
    arrive: float = NEVER
    due: float = NEVER
    cut: float | None = None
    answers: tuple[tuple[float, str, Any], ...] = ()
    heard: int = 0
    ahead: tuple[Trained, int] | None = None
    weight: str | None = None
    reply: Message | None = None
    pending: dict[str, Any] | None = None
    booked: dict[str, float] = field(default_factory=lambda: {})
    reached: float | None = None
    hold: float = 0.0
    ended: float | None = None
    worked: float = 0.0
    lost: float = NEVER
    way: Way | None = None
