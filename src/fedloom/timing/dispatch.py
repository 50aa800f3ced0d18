"""Jobs that outlive a call: a clock whose next event follows from the jobs, so no queue is stored.

Events are handled in the order of their time, ties by the number of the job. The queue is a heap of (time, number) that
is made of the jobs; an entry that is not its job's next event any more is passed over. A job's training is computed
when its end is reached, together with every like request then under way, so asynchronous work is stacked too.
Everything that survives a kill is in `Posted`, which is data; coroutines are run again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fedloom.client import Ask, Unanswered
from fedloom.training.request import Training

from .begun import Begun, train_together
from .busy import Busy
from .cells import Cells
from .meter import Span
from .posted import NEVER, Posted
from .verdict import refusal

if TYPE_CHECKING:
    from fedloom.runs.host import Host


class Dispatch:
    """The event loop of jobs under way.

    Args:
        host: plan, engine and memories.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.jobs: dict[int, Posted] = {}
        self.mail: list[tuple[float, Posted]] = []
        self.cuts_seen = False
        self._live: dict[int, Begun] = {}
        # all that follows is made of the jobs, and made again after a kill
        self._occupied = Busy()
        self._queue: list[tuple[float, int]] = []
        self._at_work: dict[int, int] = {}
        self._waiting: dict[int, list[Posted]] = {}
        self._cells = Cells(host.plan.world, self._at)

    # ------------------------------------------------------------ what the server does
    def post(self, posted: Posted, now: float, when: float | str | None = None) -> None:
        """Send a job; it may wait at its client, for its turn or for `when` (seconds, or a client's own event)."""
        world = self.host.plan.world
        posted.sent = now
        if when is not None:
            posted.hold = when if isinstance(when, int | float) else world.event(when, posted.id, posted.key)
        self.jobs[posted.number] = posted
        self._occupied.add(posted.id)
        if not self._cells.enter(posted, now, self.host.clock.now):
            posted.reached = now + world.download(posted.id, posted.nbytes)
            posted.arrive = posted.reached + posted.hold
            self._at(posted, posted.arrive)

    def outstanding(self) -> list[Posted]:
        return [*self.jobs.values(), *(p for _, p in self.mail)]

    def busy(self) -> list[int]:
        """Clients with a job under way, or a reply not yet received, ascending."""
        return self._occupied.ids()

    def cut(self, ids: Iterable[int], at: float) -> None:
        """Training that runs there at that time stops; programs go on with what they have."""
        self.cuts_seen = True
        chosen = set(ids)
        for posted in self.jobs.values():
            if posted.id not in chosen or posted.reply is not None:
                continue
            told = at + self.host.plan.world.link(posted.id).latency
            if posted.cut is None or told < posted.cut:
                posted.cut = told
                live = self._live.get(posted.number)
                if live is not None and not isinstance(live.request, Ask):
                    self._at(posted, live.ends())

    def cancel(self, number: int) -> None:
        """Forget a job: nothing of it remains, and its client is free for what waits there.

        A reply on its way has been sent: its bytes and its book stand, as those of questions asked do. Of one that has
        arrived, and nobody has received, its client's memory stands too.
        """
        posted = self.jobs.get(number)
        if posted is None:
            for _, dropped in self._from_mail(NEVER, lambda p: p.number == number):
                self._occupied.remove(dropped.id)
            return
        live = self._live.pop(number, None)
        if live is not None:
            self.host.charge(live.outcome.asked)
            live.coroutine.close()
        if posted.reply is not None:
            self.host.stands(posted.id, posted.nbytes, posted.booked)
        self._leave(posted, self.host.now)

    def refuse(self, number: int, why: str) -> None:
        """A job that does not count, whatever it came to: forgotten, and counted as excluded."""
        posted, now = self.jobs[number], self.host.now
        span = self.span(posted, now, why)
        self.cancel(number)
        self.host.left_out(span)

    def receive(
        self, count: int | None, until: float, mine: Callable[[Posted], bool] | None = None, linger: bool = True
    ) -> list[tuple[float, Posted]]:
        """The next replies: all of one instant; exactly `count`; or all by `until` (at most `count`).

        Args:
            mine: of these jobs only.
            linger: wait until `until` even when no more can come.
        """
        host, most = self.host, NEVER if count is None else count
        got = self._from_mail(most, mine)
        for _, posted in got:
            self._occupied.remove(posted.id)

        def horizon() -> float:
            """The server cannot act before this time."""
            dues = sorted(p.due for p in self.jobs.values() if mine is None or mine(p))
            left = 1 if count is None else count - len(got)
            return min(until, dues[left - 1]) if left <= len(dues) else until

        while len(got) < most:
            following = self._next()
            if count is None and until == NEVER and got and (following is None or following.due > host.now):
                break
            none_left = not self.jobs if mine is None else not any(map(mine, self.jobs.values()))
            if none_left and (until == NEVER or not linger):
                break
            if following is None or following.due > until:
                if until < NEVER:
                    host.clock.reach(until)
                break
            if self._handle(following, horizon):
                if mine is None or mine(following):
                    got.append((host.clock.now, following))
                else:
                    self.mail.append((host.clock.now, following))
                    self._occupied.add(following.id)
        return got

    def _from_mail(self, most: float, mine: Callable[[Posted], bool] | None) -> list[tuple[float, Posted]]:
        """Replies that have arrived before, at most so many; the others stay."""
        taken: list[tuple[float, Posted]] = []
        stay: list[tuple[float, Posted]] = []
        for entry in self.mail:
            fits = len(taken) < most and (mine is None or mine(entry[1]))
            (taken if fits else stay).append(entry)
        self.mail = stay
        return taken

    # ------------------------------------------------------------ events
    def _at(self, posted: Posted, due: float) -> None:
        """The job's next event: at that time, or earlier the loss of its client."""
        posted.due = due = due if due < posted.lost else posted.lost
        if due < NEVER:
            heapq.heappush(self._queue, (due, posted.number))

    def _next(self) -> Posted | None:
        queue = self._queue
        while queue:
            due, number = queue[0]
            posted = self.jobs.get(number)
            if posted is not None and posted.due == due:
                return posted
            heapq.heappop(queue)
        return None

    def _handle(self, posted: Posted, horizon: Callable[[], float]) -> bool:
        """The job's next event; whether a reply that counts has arrived by it."""
        heapq.heappop(self._queue)
        now = self.host.clock.reach(posted.due)
        if posted.due == posted.lost:
            self.refuse(posted.number, "lost: the client left, or its device failed, in the middle of the job")
        elif posted.reply is not None:
            return self._arrive(posted, now)
        elif posted.reached is None:
            self._reach(posted, now)
        elif posted.began == NEVER:
            if posted.id in self._at_work:
                self._wait(posted)
            else:
                self._begin(posted, now)
        else:
            self._continue(self._live[posted.number], now, horizon)
        return False

    def _continue(self, live: Begun, now: float, horizon: Callable[[], float]) -> None:
        posted, request = live.posted, live.request
        if isinstance(request, Training):
            steps = live.steps_done()
            if live.ahead is None or live.ahead[1] != steps:
                self._compute(live, horizon)
            assert live.ahead is not None
            posted.answers += ((now, "train", posted.ahead[0] if posted.ahead else steps),)
            posted.worked += now - live.since
            self._advance(live, live.ahead[0], now)
        elif live.waiting is None:  # a question arrives: answered from what is committed now
            assert isinstance(request, Ask)
            back = now + self.host.plan.world.link(posted.id).latency
            answer = self.host.answer(request, posted.id)
            if request.of is not None and not isinstance(answer, Unanswered) and len(answer) < len(request.of):
                back = live.since + request.within
            live.waiting = (answer,)
            posted.answers += ((back, "ask", answer),)
            self._at(posted, back)
        else:
            (answer,), live.waiting = live.waiting, None
            self._advance(live, answer, now)

    def _arrive(self, posted: Posted, now: float) -> bool:
        """A reply enters the server program: now its writes count, unless it is refused."""
        host = self.host
        host.stands(posted.id, posted.nbytes, posted.booked)
        why = refusal(posted, host.plan)
        if why is None:
            host.counts(posted.id, posted.pending)
        else:
            host.left_out(self.span(posted, now, why))
        self._leave(posted, now)
        return why is None

    def _leave(self, posted: Posted, now: float) -> None:
        """A job is no longer under way."""
        del self.jobs[posted.number]
        self._occupied.remove(posted.id)
        if posted.way is not None:
            self._cells.leave(posted, now)
        if self._at_work.get(posted.id) == posted.number:
            del self._at_work[posted.id]
            self._next_at(posted.id, now)
        elif posted in self._waiting.get(posted.id, ()):
            self._waiting[posted.id].remove(posted)

    # ------------------------------------------------------------ a job at its client
    def _reach(self, posted: Posted, now: float) -> None:
        """A download over a shared cell is done."""
        self._cells.leave(posted, now)
        posted.reached, posted.arrive = now, now + posted.hold
        self._at(posted, posted.arrive)

    def _wait(self, posted: Posted) -> None:
        """A client runs one job at a time."""
        posted.due = NEVER
        self._waiting.setdefault(posted.id, []).append(posted)

    def _begin(self, posted: Posted, now: float) -> None:
        self._at_work[posted.id] = posted.number
        posted.began = now
        posted.memory = self.host.memory_of(posted.id)
        posted.lost = self.host.plan.world.lost(posted.id, posted.key, now)
        live = self._live[posted.number] = Begun(self.host.plan, posted, now)
        self._advance(live, None, now)

    def _advance(self, live: Begun, value: Any, now: float) -> None:
        live.posted.worked += live.go_on(value, now)
        if live.request is None:
            self._end(live)
        else:
            self._at(live.posted, live.ends())

    def _end(self, live: Begun) -> None:
        posted, outcome, now = live.posted, live.outcome, live.since
        del self._live[posted.number]
        if outcome.excluded is not None or live.result is None:
            self.host.commit([outcome])
            self.host.meter.add([self.span(posted, now, outcome.excluded or "")])
            if outcome.excluded is None:
                self.host.send_on(outcome, now)
            self._leave(posted, now)
            return
        self.host.charge(outcome.asked)
        posted.reply, posted.pending = live.result, outcome.memory
        posted.booked, posted.nbytes = outcome.booked, outcome.nbytes
        posted.ended, posted.answers = now, ()
        if not self._cells.enter(posted, now, self.host.clock.now):
            self._at(posted, now + self.host.plan.world.upload(posted.id, outcome.nbytes))
        if outcome.outbox:
            self.host.send_on(outcome, now)

    def _next_at(self, id: int, now: float) -> None:
        """The job that came first is next."""
        waiting = self._waiting.get(id)
        if waiting:
            first = min(waiting, key=lambda p: (p.arrive, p.number))
            waiting.remove(first)
            self._begin(first, now)

    def span(self, posted: Posted, now: float, fate: str = "") -> Span:
        """The job in time, up to now."""
        reached = now if posted.reached is None else min(posted.reached, now)
        compute, upload = posted.worked, 0.0
        if posted.ended is not None:
            upload = now - posted.ended
        elif (live := self._live.get(posted.number)) and isinstance(live.request, Training):
            compute += max(0.0, now - live.since)
        download = reached - posted.sent
        wait = max(0.0, now - posted.sent - download - compute - upload)
        energy = self.host.plan.world.joules(posted.id, compute)
        stale = self.host.version - posted.version
        return Span(posted.id, posted.sent, download, compute, upload, wait, 0.0, energy, stale, fate)

    # ------------------------------------------------------------ lazy computation
    def _compute(self, live: Begun, horizon: Callable[[], float]) -> None:
        """Train this job's request together with all like ones under way.

        A request that is cut after it was computed is computed again with fewer steps; once a method has cut
        something, only work whose end is certain is computed early.
        """
        certain = horizon() if self.cuts_seen else NEVER

        def may(other: Begun) -> bool:
            p = other.posted
            if other.ahead is not None or p.due == p.lost:  # of a lost one nobody will see what it would come to
                return False
            return not self.cuts_seen or p.cut is not None or p.due <= certain

        begun = (self._live[p] for p in self.jobs if p in self._live)
        train_together(live, (other for other in begun if may(other)), self.host.engine)

    # ------------------------------------------------------------ after a kill
    def revive(self) -> None:
        """Make of the jobs who is busy, and the queue; run every begun program again over the answers it had: the
        request it waits for follows."""
        self._occupied = Busy(posted.id for posted in self.outstanding())
        for posted in self.jobs.values():
            if posted.began < NEVER:
                self._at_work[posted.id] = posted.number
                if posted.reply is None:
                    self._revive(posted)
            elif posted.due == NEVER:
                self._waiting.setdefault(posted.id, []).append(posted)
            if posted.way is not None:
                self._cells.put_back(posted)
            self._at(posted, posted.due)

    def _revive(self, posted: Posted) -> None:
        live = self._live[posted.number] = Begun(self.host.plan, posted, posted.began)
        live.catch_up(self.host.engine)
