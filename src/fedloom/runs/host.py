"""What stands behind `Clients` in one process: posts jobs, commits what counts, counts bytes, keeps time."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any, TypeVar

from torch import Tensor

from fedloom.asked import Asked, Summed
from fedloom.channel.ledger import Ledger
from fedloom.client import Ask, Query
from fedloom.clients import Clients
from fedloom.data.population import Elsewhere
from fedloom.engines.base import Engine, Job, Outcome, Plan
from fedloom.engines.fold import brief
from fedloom.engines.secured import Secured
from fedloom.engines.threads import for_vectors
from fedloom.engines.turn import answered
from fedloom.errors import ConfigError, FedloomError, NotSupported, RoundFailure
from fedloom.message import Message, Once, nbytes, opened
from fedloom.replies import Cohort, Evaluation, Reply, kinds_of
from fedloom.timing.clock import Clock
from fedloom.timing.dispatch import Dispatch
from fedloom.timing.meter import Meter, Span
from fedloom.timing.posted import Posted
from fedloom.training.request import Training
from fedloom.trees import is_mapping, is_row

from .answering import answer_to, returned
from .judging import judged
from .mixing import mixed
from .starting import started
from .summing import summed

J = TypeVar("J", bound=Job)

_LOOKED_AT = 100
"""Replies of a round, the last ones, that are looked at when it fails."""


class Host:
    """The run's inside: everything that lasts besides the method's state.

    Attributes:
        memories, books: by client, only for those that have any.
        ledger: bytes so far; `spent` what no resume may undo (privacy).
        clock: what time it is; `version` the round being run, from 0.
        meter: where the time went.
        holds: hashes of `once` values each client has.
        draws, turns: how often each purpose was drawn for, and each client asked, this round.
        notes: numbers of this round; `excluded` replies that did not count, by reason.
    """

    def __init__(
        self, plan: Plan, engine_of: Callable[[Plan, Callable[[Ask, int], Any]], Engine], clock: Clock | None = None
    ) -> None:
        self.plan = plan
        self.engine = engine_of(plan, self.answer)
        if plan.channel.secure is not None:
            self.engine = Secured(self.engine, plan.channel.secure)
        self.dispatch = Dispatch(self)
        self.clients = Clients(self)
        self.memories: dict[int, dict[str, Any]] = {}
        self.books: dict[int, dict[str, float]] = {}
        self.holds: dict[int, set[str]] = {}
        self.ledger = Ledger()
        self.spent: dict[str, float] = {}
        self.clock = clock or Clock()
        self.meter = Meter()
        self.version = 0
        self.posted = 0
        self.state: Any = None
        self.draws: dict[str, int] = {}
        self.turns: dict[int, int] = {}
        self._within = False  # a round
        self._fresh_round()

    def _fresh_round(self) -> None:
        self._last: tuple[Mapping[str, Any], Message, int, dict[str, int]] | None = None
        self.notes: dict[str, float] = {}
        self.excluded: dict[str, int] = {}
        self.participants = 0
        self.meter.fresh_round()
        self._replies = deque[Reply](maxlen=_LOOKED_AT)

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return self.clock.now

    # ------------------------------------------------------------ rounds
    def start(self, before: Any = None) -> None:
        self.state = self.plan.method.start(self.clients)
        if before is not None:
            self.draws, self.turns = {}, {}  # what was drawn for comparison is drawn again
            self.state = started(self.plan.method, self.clients, before, self.state)

    def round(self) -> None:
        """One server step; the clock and the counters move with it."""
        self._fresh_round()
        self.clients.fresh_round()
        if self.version:  # the first round draws on after `start`: the same noise twice would be no noise
            self.draws, self.turns = {}, {}
        began, self._within = self.now, True
        try:
            with for_vectors(self.plan.model.layout.size):
                state = self.plan.method.round(self.state, self.clients)
        except FedloomError:
            raise
        except Exception as e:
            raise self._failure(e) from e
        finally:
            self._within = False
            self._replies.clear()  # nothing is kept beyond its round
        if state is None and self.state is not None:
            raise ConfigError(f"{type(self.plan.method).__name__}.round returned nothing; it returns the new state")
        self.state = state
        self.clock.reach(self.clients.now)
        if self.now == began and self.plan.world.presence is not None and not len(self.clients.available()):
            self.clock.reach(began + self.plan.world.presence.pause)  # nobody was there: look again later
        self.version += 1
        self.draws, self.turns = {}, {}  # what follows draws the same after a resume

    def _failure(self, e: Exception) -> RoundFailure:
        """What went wrong in a round, where, and whether odd replies may be why."""
        frames = traceback.extract_tb(e.__traceback__)
        at = [f for f in frames if f.name == "round"][-1]
        odd, kinds = "", kinds_of(self._replies)
        if len(kinds) > 1:
            listed = "; ".join(f"{brief(kind)} from clients {ids[:5]}" for kind, ids in kinds.items())
            odd = f". The replies of this round are not alike: {listed}"
        return RoundFailure(
            f"{type(self.plan.method).__name__}.round failed in round {self.version} with {type(e).__name__}: {e} "
            f"({at.filename}:{at.lineno}){odd}"
        )

    # ------------------------------------------------------------ keys
    def draw(self, purpose: str = "") -> int:
        """A running number of draws for one purpose within the round."""
        n = self.draws.get(purpose, 0)
        self.draws[purpose] = n + 1
        return n

    def draw_key(self, purpose: str) -> tuple[Any, ...]:
        return (self.plan.seed, purpose, self.version, self.draw(purpose))

    def _job(self, kind: type[J], id: int, program: str, payload: Mapping[str, Any]) -> J:
        """A job for a client: its key is (client, round, how many jobs it was sent this round)."""
        turn = self.turns.get(id, 0)
        self.turns[id] = turn + 1
        self.posted += 1
        message, fixed, singles = self._prepared(payload)
        job = kind(self.posted, id, program, message, (id, self.version, turn), {}, self.version)
        job.samples, job.nbytes = self.plan.federation.size(id), fixed
        if singles:  # none for a client that holds it
            held = self.holds.setdefault(id, set())
            job.nbytes += sum(size for key, size in singles.items() if key not in held)
            held.update(singles)
        return job

    def _prepared(self, payload: Mapping[str, Any]) -> tuple[Message, int, dict[str, int]]:
        """A payload as clients read it, its bytes, and the bytes of each value charged once, by the hash of its
        content; remembered while it is the same payload."""
        if self._last is None or self._last[0] is not payload:
            singles = _singles(payload)
            fixed = nbytes(payload) - sum(map(nbytes, singles))
            self._last = (payload, opened(Message(payload)), fixed, {v.key(): nbytes(v) for v in singles})
        return self._last[1:]

    def memory_of(self, id: int) -> dict[str, Any]:
        return self.memories.get(id, {})

    # ------------------------------------------------------------ asking, all at once
    def ask(self, asked: Asked) -> tuple[list[Reply], float]:
        """Every reply, and when the last one was in."""
        if self.plan.channel.sums_only:
            raise NotSupported(
                f"{type(self.plan.method).__name__} called clients.map(...), which reads single replies, but the "
                f"channel lets the server see only sums. Use clients.mean(...) or clients.sum(...), or drop that stage"
            )
        if self.queues(asked.ids):
            got, end = self.in_time(asked)
            return [self._reply(p, t) for t, p in got], end
        outcomes, _ = self.engine.run(self.starting(asked))
        start, end = asked.start, self.settle(outcomes, asked.start)
        replies = [
            Reply(o.job.id, o.job.samples, o.job.number, 0, start, start + o.took, o.job.payload, o.message)
            for o in outcomes
            if o.message is not None and o.excluded is None
        ]
        self._replies += replies
        return replies, end

    def queues(self, ids: Sequence[int]) -> bool:
        """Whether an exchange must go through the clock: jobs are under way, a client is asked twice and does one after
        the other, or who counts depends on who is in time."""
        return self.plan.world.timed or bool(self.dispatch.jobs) or len(set(ids)) < len(ids)

    def in_time(self, asked: Asked, weight: str | None = None) -> tuple[list[tuple[float, Posted]], float]:
        """Every reply, in the order of asking, beside whatever else is under way; each with its time."""
        before, alone = self.now, not self.dispatch.jobs
        if alone:  # groups that overlap have each its own time
            self.clock.set(asked.start)
        numbers = set(self.send(asked))
        for number in numbers:
            self.dispatch.jobs[number].weight = weight
        wanted = asked.ids.wanted if isinstance(asked.ids, Cohort) else len(numbers)
        until = asked.start + self.plan.world.deadline
        got = self.dispatch.receive(wanted, until, lambda p: p.number in numbers, linger=False)
        for number in numbers & self.dispatch.jobs.keys():
            self.dispatch.refuse(number, "late: it was not in by the deadline, or others sufficed")
        end = self._delivered(got)
        if alone:
            self.clock.set(before)
        return sorted(got, key=lambda entry: entry[1].number), end

    def _delivered(self, got: Sequence[tuple[float, Posted]]) -> float:
        """Replies reach the server program; when it has added them up."""
        now = self.now
        adding = self.plan.world.adds(sum(p.nbytes for _, p in got))
        self.meter.add([self.dispatch.span(p, t) for t, p in got], now, adding)
        return now + adding

    def total(self, asked: Asked, how: Summed) -> tuple[Message, float]:
        """The (weighted) sum or mean of the replies, and when the last one was in."""
        return summed(self, asked, how)

    def starting(self, asked: Asked) -> list[Job]:
        """What begins at its clients at once."""
        jobs = self._jobs(Job, asked)
        for job in jobs:
            job.memory = self.memory_of(job.id)
            job.began = asked.start + self.plan.world.download(job.id, job.nbytes)
        return jobs

    def _jobs(self, kind: type[J], asked: Asked) -> list[J]:
        """What is sent, and charged."""
        place = self.plan.place(asked.program)
        jobs = [self._job(kind, id, place, payload) for id, payload in asked.payloads()]
        sent = sum(job.nbytes for job in jobs)
        if asked.peer:
            self.ledger.peers += sent
        else:
            self.ledger.down += sent
        return jobs

    def settle(self, outcomes: Sequence[Outcome], start: float) -> float:
        """Commit what counts; send on what the programs sent to peers; when all was in and added up."""
        spans = [self._span(o, start) for o in outcomes]
        for o, span in zip(outcomes, spans):
            o.took = span.download + span.compute + span.upload
        self.commit(outcomes)
        for o in outcomes:
            if o.excluded is None:
                self.send_on(o, start + o.took)
        end = start + max((o.took for o in outcomes), default=0.0)
        adding = self.plan.world.adds(sum(o.nbytes for o in outcomes))
        self.meter.add(spans, end, adding)
        return end + adding

    def _span(self, o: Outcome, start: float) -> Span:
        """A job that nothing made wait, in time."""
        world, job = self.plan.world, o.job
        compute = sum(world.seconds(job.id, job.key, phase, work) for phase, work in enumerate(o.work))
        compute += world.computes(job.id, o.queried)
        down, up = world.download(job.id, job.nbytes), world.upload(job.id, o.nbytes)
        energy = world.joules(job.id, compute)
        return Span(job.id, start, down, compute, up, energy=energy, fate=o.excluded or "")

    def commit(self, outcomes: Iterable[Outcome]) -> None:
        """A job counts or leaves no trace; its book and its bytes stand either way."""
        for o in outcomes:
            id = o.job.id
            self.charge(o.asked)
            self.stands(id, o.nbytes, o.booked)
            if o.excluded is not None:
                self.excluded[o.excluded] = self.excluded.get(o.excluded, 0) + 1
                self.participants += 1
            else:
                self.counts(id, o.memory)

    def counts(self, id: int, memory: dict[str, Any] | None) -> None:
        """A job counts: what it wrote is its client's memory."""
        self.participants += 1
        if memory is not None:
            self.memories[id] = memory

    def left_out(self, span: Span) -> None:
        """A job that did not count and left no trace: its client was lost, or late."""
        self.participants += 1
        self.excluded[span.fate] = self.excluded.get(span.fate, 0) + 1
        self.meter.add([span])

    def charge(self, asked: Ledger) -> None:
        """Bytes of questions in mid-job."""
        self.ledger.up += asked.up
        self.ledger.down += asked.down
        self.ledger.peers += asked.peers

    def stands(self, id: int, nbytes: int, booked: Mapping[str, float]) -> None:
        """What no verdict undoes: the bytes of a reply, and what its client entered in its book."""
        self.ledger.up += nbytes
        for name, amount in booked.items():
            book = self.books.setdefault(id, {})
            book[name] = book.get(name, 0.0) + amount

    # ------------------------------------------------------------ in one's own time
    def send(self, asked: Asked) -> list[int]:
        """Start jobs and go on; their numbers."""
        jobs = self._jobs(Posted, asked)
        for posted in jobs:
            self.dispatch.post(posted, asked.start, asked.when)
        return [posted.number for posted in jobs]

    def send_on(self, outcome: Outcome, now: float) -> None:
        """Start the jobs a program sent on once it had ended."""
        for s in outcome.outbox:
            self.send(Asked([s.id], s.program, now, down=s.payload, when=s.when, peer=True))

    def receive(self, count: int | None, until: float, of: set[int] | None) -> list[Reply]:
        if self.plan.channel.sums_only:
            raise NotSupported(
                f"{type(self.plan.method).__name__} reads single replies as they arrive, but the channel lets the "
                f"server see only sums; drop that stage or use a synchronous method that calls clients.mean(...)"
            )
        got = self.dispatch.receive(count, until, None if of is None else lambda p: p.id in of)
        self.clock.reach(self._delivered(got))
        return [self._reply(p, t) for t, p in got]

    def _reply(self, p: Posted, time: float) -> Reply:
        assert p.reply is not None
        reply = Reply(p.id, p.samples, p.number, self.version - p.version, p.sent, time, p.payload, p.reply)
        self._replies.append(reply)
        return reply

    def answer(self, question: Ask, id: int) -> Any:
        """A question in mid-job, see `answer_to`."""
        return answer_to(self, question, id)

    def at_once(self, request: Training | Query) -> Any:
        """Work done on the spot, for the server's own learning and for answers to questions."""
        if isinstance(request, Training):
            return self.engine.compute([request])[0]
        return answered(self.plan, request)

    # ------------------------------------------------------------ peers and views
    def mix(self, name: str, topology: Any, ids: Sequence[int], start: float) -> float:
        """As `Clients.mix`; when the last vector was in."""
        return mixed(self, name, topology, ids, start)

    def evaluate(self, what: Tensor | Callable[..., Any], **asked: Any) -> Evaluation:
        """As `Clients.evaluate`; see `judged` for the arguments."""
        return judged(self, what, **asked)

    def look(self, program: Callable[..., Any], ids: Iterable[int], down: Mapping[str, Any]) -> dict[int, Any]:
        """As `Clients.look`."""
        title = self.plan.method.card.title
        if isinstance(self.plan.federation.population, Elsewhere):
            raise NotSupported(
                f"{title} looks into what its clients hold, and that stays at their sites. Judge it by "
                f"clients.evaluate(program), which sums up the figures of each, or run it in simulation"
            )
        if self._within:
            raise ConfigError(
                f"{title} called clients.look(...) in a round, and a round sees what is sent: use clients.map(...) or "
                f"clients.mean(...), whose bytes count. To look is for evaluate(state, clients)"
            )
        honest = self.plan.enclosed(self.plan.place(program))
        return {i: returned(self, honest, i, (i, self.version, "look"), down) for i in map(index, ids)}


def _singles(value: Any) -> list[Once]:
    """The values inside that are charged once."""
    if isinstance(value, Once):
        return [value]
    parts: Iterable[Any] = value.values() if is_mapping(value) else value if is_row(value) else ()
    return [single for part in parts for single in _singles(part)]
