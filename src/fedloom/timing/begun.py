"""A job that has begun at its client: its program, what that waits for and when it has it. Never saved; run again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedloom.client import Ask, Query
from fedloom.engines.turn import Turn
from fedloom.training.request import Trained, Training
from fedloom.written import can_be_written

from .posted import Posted

if TYPE_CHECKING:
    from fedloom.engines.base import Engine, Plan


class Begun(Turn):
    """A job's program between two events.

    Attributes:
        since: when it began to wait for what it waits for.
        unsaved: what the training it waits for comes to, where that is an error or cannot be saved.
        waiting: the answer to its question that is on its way to it, as a tuple of one.
    """

    def __init__(self, plan: Plan, posted: Posted, since: float) -> None:
        super().__init__(plan, posted)
        self.posted, self.since = posted, since
        self.unsaved: tuple[Trained | Exception, int] | None = None
        self.waiting: Any = None

    def go_on(self, value: Any, now: float) -> float:
        """The program goes on with what it waited for, up to the next thing that waits for the clock; the seconds of
        its queries on the way."""
        before = self.outcome.queried
        self.unsaved = self.posted.ahead = None
        if isinstance(value, Exception):
            self.fail(value)
        elif isinstance(self.request, Ask):
            self.hear(self.request, value)
        else:
            self.advance(value)
        self.posted.heard = len(self.posted.answers)
        while isinstance(self.request, Query):
            self.answer(self.request)
        queried = self.outcome.queried - before
        seconds = self.plan.world.computes(self.posted.id, queried) if queried else 0.0
        self.since = now + seconds
        return seconds

    def ends(self) -> float:
        """When it has what it waits for; a question, when it is asked."""
        posted = self.posted
        if isinstance(self.request, Ask):
            return self.since + self.plan.world.link(posted.id).latency
        seconds = self.plan.world.seconds(posted.id, posted.key, len(posted.answers), self.outcome.work[-1])
        end = self.since + seconds
        return end if posted.cut is None else max(self.since, min(end, posted.cut))

    def steps_done(self) -> int:
        """Of the training it waits for, by its end."""
        posted, work = self.posted, self.outcome.work[-1]
        if posted.cut is None:
            return work.steps
        elapsed = max(0.0, posted.cut - self.since)
        return self.plan.world.steps_in(posted.id, posted.key, len(posted.answers), work, elapsed)

    @property
    def ahead(self) -> tuple[Trained | Exception, int] | None:
        """What the training it waits for comes to, if computed early, and after how many steps."""
        return self.posted.ahead or self.unsaved

    @ahead.setter
    def ahead(self, found: tuple[Trained | Exception, int]) -> None:
        result, steps = found
        if isinstance(result, Trained) and can_be_written(result.carry):
            self.posted.ahead, self.unsaved = (result, steps), None
        else:
            self.posted.ahead, self.unsaved = None, found

    def catch_up(self, engine: Engine) -> None:
        """Run the program again over the answers it had."""
        posted, heard, ahead = self.posted, self.posted.heard, self.posted.ahead
        self.go_on(None, self.since)
        for when, kind, answer in posted.answers[:heard]:
            if kind == "train" and isinstance(answer, int):
                assert isinstance(self.request, Training)
                answer = computed([shortened(self.request, answer)], engine)[0]
            self.go_on(answer, when)
        posted.heard, posted.ahead = heard, ahead
        for _, _, answer in posted.answers[heard:]:
            self.waiting = (answer,)


def train_together(first: Begun, others: Iterable[Begun], engine: Engine) -> None:
    """Compute the training a job waits for, and that of others that are like it, as one."""
    assert isinstance(first.request, Training)
    kind = first.request.alike()
    group = [
        first,
        *(b for b in others if b is not first and isinstance(r := b.request, Training) and r.alike() == kind),
    ]
    counts = [b.steps_done() for b in group]
    requests = [shortened(r, n) for b, n in zip(group, counts) if isinstance(r := b.request, Training)]
    for b, n, trained in zip(group, counts, computed(requests, engine), strict=True):
        b.ahead = (trained, n)


def computed(requests: Sequence[Training], engine: Engine) -> list[Trained | Exception]:
    """What each came to. Where that fails together each is tried alone: the error is an answer, too."""
    try:
        return [*engine.compute(requests)]
    except Warning:
        raise
    except Exception as e:
        return [e] if len(requests) == 1 else [result for r in requests for result in computed([r], engine)]


def shortened(request: Training, steps: int) -> Training:
    """The same request with fewer steps."""
    return request if steps == request.steps else replace(request, steps=steps)
