"""Jobs that outlive a round, between sites: what happens next is what arrives next, and is written down first.

An event is a reply, a reply given up, or the end of waiting. It is decided once, under the round and its place in it,
and is on the disk before the method sees what follows from it. All else (who is free, which memory a job starts from,
what time it is) follows from the events, so a killed coordinator, and a replay, come to the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fedloom.engines.base import Job, Outcome
from fedloom.errors import CheckpointError, NotSupported
from fedloom.timing.dispatch import Dispatch
from fedloom.timing.meter import Span
from fedloom.timing.posted import NEVER, Posted
from fedloom.timing.verdict import refusal

from .coordinator import KEPT_ROUNDS, Coordinator, Stopped

if TYPE_CHECKING:
    from fedloom.runs.host import Host

Event = Mapping[str, Any]
"""{"kind": "reply" | "lost" | "until", "job": its id, "at": seconds since the run began, "refused": why or None}"""


class Road(Protocol):
    """Where jobs go and events come from: real sites, or the closings of a run that was."""

    def hand(self, job: Job) -> str:
        """Under way from now on; its id."""
        ...

    def event(self, name: str, jobs: Mapping[str, Posted], until: float, now: float) -> Event:
        """What happens next: known under this name, or decided now."""
        ...

    def outcome(self, id: str, job: Job) -> Outcome:
        """What a job came to."""
        ...

    def forget(self, id: str, round: int) -> None:
        """Nobody waits for it any more."""
        ...


class Arrivals(Dispatch):
    """The event loop of jobs at sites; for a host it is any other `Dispatch`.

    Args:
        host: its method's state, memories and clock.
        road: see `Road`.
    """

    def __init__(self, host: Host, road: Road) -> None:
        super().__init__(host)
        self.road = road
        self._ids: dict[str, Posted] = {}  # handed out
        self._place = (-1, 0)

    def post(self, posted: Posted, now: float, when: float | str | None = None) -> None:
        if when is not None:
            raise NotSupported(
                "a job that waits at its client until a time or an event; between sites jobs start at once"
            )
        posted.sent = posted.arrive = posted.reached = now
        self.jobs[posted.number] = posted
        if not self._busy(posted.id):
            self._start(posted)

    def cut(self, ids: Iterable[int], at: float) -> None:
        raise NotSupported("clients.cut: training at a site cannot be stopped from outside; give it fewer steps")

    def cancel(self, number: int) -> None:
        posted = self.jobs.get(number)
        if posted is None:
            self._from_mail(NEVER, lambda p: p.number == number)
            return
        id = self._id_of(posted)
        if id is not None:
            self.road.forget(id, posted.version)
        self._gone(posted)

    def receive(
        self, count: int | None, until: float, mine: Callable[[Posted], bool] | None = None, linger: bool = True
    ) -> list[tuple[float, Posted]]:
        most = NEVER if count is None else count
        got = self._from_mail(most, mine)
        while not (len(got) >= most or (count is None and until == NEVER and got) or until <= self.host.now):
            none_left = not self.jobs if mine is None else not any(map(mine, self.jobs.values()))
            if none_left and (until == NEVER or not linger or not self.jobs):
                break
            arrived = self._happens(self.road.event(self._name(), self._ids, until, self.host.now))
            if arrived is not None:
                (got if mine is None or mine(arrived) else self.mail).append((self.host.now, arrived))
        return got

    def busy(self) -> list[int]:
        return sorted({posted.id for posted in self.outstanding()})

    def revive(self) -> None:
        """After a kill: what was under way is under way again."""
        for posted in self.jobs.values():
            if posted.began < NEVER:
                self._ids[self.road.hand(posted)] = posted

    def span(self, posted: Posted, now: float, fate: str = "") -> Span:
        stale = self.host.version - posted.version
        worked = 0.0 if posted.began == NEVER else now - posted.began
        return Span(posted.id, posted.sent, 0.0, worked, 0.0, now - posted.sent - worked, 0.0, 0.0, stale, fate)

    # ------------------------------------------------------------ events
    def _name(self) -> str:
        """Events are numbered within a round; a round that is run again finds them by their numbers."""
        version, k = self._place
        self._place = (version, k + 1) if version == self.host.version else (self.host.version, 0)
        return f"event {self._place[0]}/{self._place[1]}"

    def _happens(self, event: Event) -> Posted | None:
        """The job whose reply has arrived by it and counts, if one has."""
        now = self.host.clock.reach(float(event["at"]))
        if event["kind"] == "until":
            return None
        posted = self._ids[event["job"]]
        if event["kind"] == "lost":
            self.refuse(posted.number, "no reply by the deadline")
        elif event["refused"] is not None:
            self.host.left_out(self.span(posted, now, event["refused"]))
            self._gone(posted)
        elif self._arrives(posted, self.road.outcome(event["job"], posted), now):
            return posted
        return None

    def _arrives(self, posted: Posted, outcome: Outcome, now: float) -> bool:
        """A reply enters the server program: now its writes count, unless it is refused; whether there is one."""
        host = self.host
        posted.reply, posted.booked, posted.nbytes = outcome.message, outcome.booked, outcome.nbytes
        if outcome.message is None or outcome.excluded is not None:
            host.commit([outcome])
            host.meter.add([self.span(posted, now, outcome.excluded or "")])
        else:
            host.charge(outcome.asked)
            host.stands(posted.id, posted.nbytes, posted.booked)
            outcome.excluded = refusal(posted, host.plan)
            if outcome.excluded is None:
                host.counts(posted.id, outcome.memory)
            else:
                host.left_out(self.span(posted, now, outcome.excluded))
        if outcome.excluded is None:
            host.send_on(outcome, now)
        self._gone(posted)
        return outcome.message is not None and outcome.excluded is None

    def _gone(self, posted: Posted) -> None:
        """No longer under way; its client goes on with what waits for it."""
        id = self._id_of(posted)
        if id is not None:
            del self._ids[id]
        self.jobs.pop(posted.number, None)
        waiting = [p for p in self.jobs.values() if p.id == posted.id and p.began == NEVER]
        if waiting and not self._busy(posted.id):
            self._start(min(waiting, key=lambda p: p.number))

    def _start(self, posted: Posted) -> None:
        posted.began, posted.memory = self.host.now, self.host.memory_of(posted.id)
        self._ids[self.road.hand(posted)] = posted

    def _busy(self, client: int) -> bool:
        return any(p.id == client for p in self._ids.values())

    def _id_of(self, posted: Posted) -> str | None:
        return next((id for id, other in self._ids.items() if other is posted), None)


class Sites:
    """The road to real sites: jobs and events are in the coordinator's journal.

    Args:
        coordinator: hands out and takes in.
        now: seconds since the run began, when this process took over.
    """

    def __init__(self, coordinator: Coordinator, now: float) -> None:
        self.coordinator, self._since = coordinator, time.monotonic() - now
        self._handed: dict[str, float] = {}
        self._under_way: dict[int, int] = {}  # round -> that of the oldest job under way when it began

    def hand(self, job: Job) -> str:
        """Commit 1: in the journal before it is handed out. One that was answered before a kill is not done again.

        Raises:
            NotSupported: under secure sums, as this reply would come on its own.
        """
        c = self.coordinator
        if c.plan.channel.secure is not None:
            raise NotSupported(
                f"an exchange that asks a client twice, or beside jobs under way: its replies come one by one, and "
                f"{c.plan.channel.secure} lets the coordinator see sums alone. Ask each client once"
            )
        c.look()
        (written,) = c.written([job])
        c.journal.open([written])
        with c.changed:
            if not c.journal.replies([written.id]) and c.journal.closing(written.exchange) is None:
                c.desk.waiting[written.site].append(written.header)
                c.desk.bell()
        self._handed[written.id] = time.monotonic()
        return written.id

    def event(self, name: str, jobs: Mapping[str, Posted], until: float, now: float) -> Event:
        """Commit 4: the event, before the method sees what follows from it."""
        c, round = self.coordinator, int(name.split()[1].split("/")[0])
        c.look()
        self._keep(round, jobs)
        known = c.journal.closing(name)
        if known is not None:
            return known
        with c.changed:
            while True:
                if c.stopping:
                    raise Stopped("stopped; `fedloom serve` with the same folder goes on from here")
                event = self._seen(jobs, until, max(now, time.monotonic() - self._since))
                if event is not None:
                    return c.journal.close_exchange(name, round, event)
                c.changed.wait(timeout=0.1)

    def _keep(self, round: int, jobs: Mapping[str, Posted]) -> None:
        """Jobs are kept until no round is run again in which they were under way; what is older goes."""
        self._under_way.setdefault(round, min((p.version for p in jobs.values()), default=round))
        self._under_way = {r: oldest for r, oldest in self._under_way.items() if r >= round - KEPT_ROUNDS}
        self.coordinator.oldest = min(self._under_way.values())
        self.coordinator.tidy(round)

    def _seen(self, jobs: Mapping[str, Posted], until: float, at: float) -> dict[str, Any] | None:
        if at >= until:
            return {"kind": "until", "job": "", "at": until, "refused": None}
        replies = self.coordinator.journal.replies(list(jobs))
        if replies:
            first = min(replies.values(), key=lambda r: r.place)
            return {"kind": "reply", "job": first.job, "at": at, "refused": first.refused}
        deadline = self.coordinator.terms.deadline
        for id in jobs:
            if deadline is not None and time.monotonic() - self._handed[id] > deadline:
                return {"kind": "lost", "job": id, "at": at, "refused": None}
        return None

    def outcome(self, id: str, job: Job) -> Outcome:
        c = self.coordinator
        reply = c.journal.replies([id])[id]
        return c.reply(reply.body).outcome(job, c.plan, id)

    def forget(self, id: str, round: int) -> None:
        c = self.coordinator
        job = c.journal.job(id)
        assert job is not None
        with c.changed:
            c.journal.close_exchange(job.exchange, round, {"replied": [], "refused": {}})
            c.desk.waiting[job.site] = [h for h in c.desk.waiting[job.site] if h["id"] != id]
            c.desk.bell()


class Past(Protocol):
    """The engine of a run that was, as `Recorded` uses it."""

    def look(self) -> None: ...
    def id(self, job: Job) -> str: ...
    def one(self, job: Job) -> Outcome: ...
    def counted(self, client: int, id: str) -> None: ...


class Recorded:
    """The road of a run that was: its events, and the same jobs on the local engine.

    Args:
        closings: of the journal, by name.
        engine: does a job again, and knows the names of jobs and memories.
    """

    def __init__(self, closings: Mapping[str, Event], engine: Past) -> None:
        self.closings, self.engine = closings, engine

    def hand(self, job: Job) -> str:
        self.engine.look()
        return self.engine.id(job)

    def event(self, name: str, jobs: Mapping[str, Posted], until: float, now: float) -> Event:
        self.engine.look()
        if name not in self.closings:
            raise CheckpointError(f"the journal ends before {name}: it is of another run, or of an unfinished round")
        return self.closings[name]

    def outcome(self, id: str, job: Job) -> Outcome:
        outcome = self.engine.one(job)
        if outcome.excluded is None and outcome.memory is not None:
            self.engine.counted(job.id, id)
        return outcome

    def forget(self, id: str, round: int) -> None:
        return None
