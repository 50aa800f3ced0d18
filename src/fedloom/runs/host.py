"""What stands behind `Clients` in one process: posts jobs, commits what counts, counts bytes, keeps time."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from fedloom.channel.ledger import Ledger
from fedloom.channel.stage import Exchange
from fedloom.client import Ask, Client, Query
from fedloom.clients import Clients
from fedloom.engines.base import Engine, Job, Outcome, Plan
from fedloom.engines.fold import Fold, brief, divided, structure
from fedloom.engines.turn import answered
from fedloom.errors import ConfigError, FedloomError, NotSupported, RoundFailure
from fedloom.keyed import generator
from fedloom.message import Message, Once, nbytes, opened
from fedloom.replies import Cohort, Evaluation, Replies, Reply
from fedloom.timing.dispatch import NEVER, Dispatch, Posted
from fedloom.training.inference import evaluate
from fedloom.training.request import Training
from fedloom.trees import is_mapping, is_row


class Host:
    """The run's inside: everything that lasts besides the method's state.

    Attributes:
        memories, books: by client, only for those that have any.
        ledger: bytes so far; `spent` what no resume may undo (privacy).
        now: virtual seconds; `version` the round being run, from 0.
        holds: hashes of `once` values each client has.
        draws, turns: how often each purpose was drawn for, and each client asked, this round.
        notes: numbers of this round; `excluded` replies that did not count, by reason.
    """

    def __init__(self, plan: Plan, engine_of: Callable[[Plan, Callable[[Ask, int], Any]], Engine]) -> None:
        self.plan = plan
        self.engine = engine_of(plan, self.answer)
        self.dispatch = Dispatch(self)
        self.clients = Clients(self)
        self.memories: dict[int, dict[str, Any]] = {}
        self.books: dict[int, dict[str, float]] = {}
        self.holds: dict[int, set[str]] = {}
        self.ledger = Ledger()
        self.spent: dict[str, float] = {}
        self.now = 0.0
        self.version = 0
        self.posted = 0
        self.state: Any = None
        self.draws: dict[str, int] = {}
        self.turns: dict[int, int] = {}
        self._fresh_round()

    def _fresh_round(self) -> None:
        self._last: tuple[Mapping[str, Any], Message, int, dict[str, int]] | None = None
        self.notes: dict[str, float] = {}
        self.excluded: dict[str, int] = {}
        self.participants = 0
        self._kinds: dict[object, list[int]] = {}

    # ------------------------------------------------------------ rounds
    def start(self, before: Any = None) -> None:
        self.state = self.plan.method.start(self.clients, before)

    def round(self) -> None:
        """One server step; the clock and the counters move with it."""
        self._fresh_round()
        self.clients.fresh_round()
        if self.version:  # the first round draws on after `start`: the same noise twice would be no noise
            self.draws, self.turns = {}, {}
        try:
            state = self.plan.method.round(self.state, self.clients)
        except FedloomError:
            raise
        except Exception as e:
            raise self._failure(e) from e
        if state is None and self.state is not None:
            raise ConfigError(f"{type(self.plan.method).__name__}.round returned nothing; it returns the new state")
        self.state = state
        self.now = max(self.now, self.clients.now)
        self.version += 1
        self.draws, self.turns = {}, {}  # what follows draws the same after a resume

    def _failure(self, e: Exception) -> RoundFailure:
        """What went wrong in a round, where, and whether odd replies may be why."""
        frames = traceback.extract_tb(e.__traceback__)
        at = [f for f in frames if f.name == "round"][-1]
        odd = ""
        if len(self._kinds) > 1:
            listed = "; ".join(f"{brief(kind)} from clients {ids[:5]}" for kind, ids in self._kinds.items())
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

    def _job(self, id: int, program: str, payload: Mapping[str, Any], now: float) -> Job:
        """A job for a client: its key is (client, round, how many jobs it was sent this round)."""
        turn = self.turns.get(id, 0)
        self.turns[id] = turn + 1
        self.posted += 1
        message, fixed, singles = self._prepared(payload)
        job = Job(self.posted, id, program, message, (id, self.version, turn), self.memory_of(id), self.version, now)
        job.samples = self.plan.federation.size(id)
        job.nbytes = fixed
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
    def ask(
        self,
        ids: Sequence[int],
        program: Callable[..., Any],
        each: Mapping[int, Mapping[str, Any]] | None,
        down: Mapping[str, Any],
        start: float,
    ) -> tuple[list[Reply], float]:
        """Every reply, and when the last one was in."""
        if self.plan.channel.sums_only:
            raise NotSupported(
                f"{type(self.plan.method).__name__} called clients.map(...), which reads single replies, but the "
                f"channel lets the server see only sums. Use clients.mean(...) or clients.sum(...), or drop that stage"
            )
        if self._queue(ids):
            return self._in_time(ids, program, each, down, start)
        jobs = self._jobs(ids, program, each, down, start)
        outcomes, _ = self.engine.run(jobs)
        end = self._settle(outcomes, start)
        replies = [
            Reply(
                o.job.id,
                o.job.samples,
                o.job.number,
                0,
                start,
                start + o.took,
                o.job.payload,
                o.message,
            )
            for o in outcomes
            if o.message is not None and o.excluded is None
        ]
        for reply in replies:
            self._kinds.setdefault(structure(reply.message), []).append(reply.id)
        return replies, end

    def _queue(self, ids: Sequence[int]) -> bool:
        """Whether an exchange must go through the clock: jobs are under way, or a client is asked twice and does one
        after the other."""
        return bool(self.dispatch.jobs) or len(set(ids)) < len(ids)

    def _in_time(
        self,
        ids: Sequence[int],
        program: Callable[..., Any],
        each: Mapping[int, Mapping[str, Any]] | None,
        down: Mapping[str, Any],
        start: float,
        weight: str | None = None,
    ) -> tuple[list[Reply], float]:
        """Every reply, in the order of asking, beside whatever else is under way."""
        numbers = set(self.send(ids, program, each, None, down, start))
        for number in numbers:
            self.dispatch.jobs[number].weight = weight
        got = self.dispatch.receive(len(numbers), NEVER, lambda p: p.number in numbers)
        posts = sorted((p for _, p in got), key=lambda p: p.number)
        return [self._reply(p) for p in posts], self.now

    def total(
        self,
        ids: Sequence[int],
        program: Callable[..., Any],
        each: Mapping[int, Mapping[str, Any]] | None,
        down: Mapping[str, Any],
        weight: str | float | None,
        start: float,
        *,
        mean: bool,
        least: int,
    ) -> tuple[Message, float]:
        """The (weighted) sum or mean of the replies, and when the last one was in."""
        if self.plan.channel.uniform and (weight is None or isinstance(weight, str)):
            raise NotSupported(
                f"the channel needs equal weights (a client's influence must be bounded), but "
                f"{type(self.plan.method).__name__} weights replies by {weight or 'samples'}. Call "
                f"clients.mean(..., weight=1), or set the method's weight option, e.g. --set weight=uniform"
            )
        if self._queue(ids):
            named = weight if isinstance(weight, str) else None
            replies, end = self._in_time(ids, program, each, down, start, named)
            w = Fold(weight)
            out = Replies(tuple(replies)).sum(lambda r: w.of(r.message, r.n))
            summed, count, sum_weight = (
                {k: v for k, v in out.items() if k not in ("count", "weight")},
                len(replies),
                out.get("weight", 0.0),
            )
        else:
            jobs = self._jobs(ids, program, each, down, start)
            outcomes, total = self.engine.run(jobs, Fold(weight))
            assert total is not None
            end = self._settle(outcomes, start)
            summed, count, sum_weight = total.values, len(total.jobs), total.weight
        if count < max(least, 1) or sum_weight <= 0:
            return Message(count=0, weight=0.0), end
        return self._divided(Message(summed), ids, count, sum_weight, mean), end

    def _divided(self, total: Message, ids: Sequence[int], count: float, weight: float, mean: bool) -> Message:
        if self.plan.channel:
            law = ids if isinstance(ids, Cohort) else Cohort(ids, 1.0, float(len(ids)), "all")
            law.uses += 1
            exchange = Exchange(
                count=count,
                expected=law.expected,
                weight=weight,
                population=len(self.plan.federation),
                probability=law.probability if isinstance(law.probability, float) else None,
                rng=lambda purpose: generator(*self.draw_key(f"channel.{purpose}")),
                ledger=self.spent,
                law=law.law,
                use=law.uses,
            )
            total = self.plan.channel.settle(total, exchange)
            count, weight = exchange.count, exchange.weight  # a stage may hide how many really replied
        values = {k: divided(v, weight) if mean else v for k, v in total.items()}
        return Message(values, count=count, weight=weight)

    def _jobs(
        self,
        ids: Sequence[int],
        program: Callable[..., Any],
        each: Mapping[int, Mapping[str, Any]] | None,
        down: Mapping[str, Any],
        start: float,
    ) -> list[Job]:
        place = self.plan.place(program)
        jobs: list[Job] = []
        for id in map(index, ids):
            payload = {**down, **each.get(id, {})} if each else down
            job = self._job(id, place, payload, start)
            self.ledger.down += job.nbytes
            jobs.append(job)
        return jobs

    def _settle(self, outcomes: Sequence[Outcome], start: float) -> float:
        """Commit what counts; send on what the programs sent to peers."""
        for o in outcomes:
            o.took = self._duration(o)
        self.commit(outcomes)
        for o in outcomes:
            if o.excluded is None:
                for s in o.outbox:
                    self.send([s.id], s.program, None, s.when, s.payload, start + o.took, peer=True)
        return start + max((o.took for o in outcomes), default=0.0)

    def _duration(self, o: Outcome) -> float:
        world = self.plan.world
        work = sum(world.seconds(o.job.id, o.job.key, phase, n) for phase, n in enumerate(o.steps))
        return world.transfer(o.job.id, o.job.nbytes, world.down) + work + world.transfer(o.job.id, o.nbytes, world.up)

    def commit(self, outcomes: Iterable[Outcome]) -> None:
        """A job counts or leaves no trace; its book and its bytes stand either way."""
        for o in outcomes:
            id = o.job.id
            self.participants += 1
            self.charge(o.asked)
            self.stands(id, o.nbytes, o.booked)
            if o.excluded is not None:
                self.excluded[o.excluded] = self.excluded.get(o.excluded, 0) + 1
            elif o.memory is not None:
                self.memories[id] = o.memory

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
    def send(
        self,
        ids: Iterable[int],
        program: Callable[..., Any],
        each: Mapping[int, Mapping[str, Any]] | None,
        when: float | str | None,
        down: Mapping[str, Any],
        now: float,
        peer: bool = False,
    ) -> list[int]:
        place = self.plan.place(program)
        numbers: list[int] = []
        for id in map(index, ids):
            payload = {**down, **each.get(id, {})} if each else down
            job = self._job(id, place, payload, now)
            if peer:
                self.ledger.peers += job.nbytes
            else:
                self.ledger.down += job.nbytes
            numbers.append(self.dispatch.post(job, now, when).number)
        return numbers

    def receive(self, count: int | None, until: float, of: set[int] | None) -> list[Reply]:
        if self.plan.channel.sums_only:
            raise NotSupported(
                f"{type(self.plan.method).__name__} reads single replies as they arrive, but the channel lets the "
                f"server see only sums; drop that stage or use a synchronous method that calls clients.mean(...)"
            )
        got = self.dispatch.receive(count, until, lambda p: of is None or p.id in of)
        return [self._reply(p, t) for t, p in got]

    def _reply(self, p: Posted, time: float | None = None) -> Reply:
        assert p.reply is not None
        self._kinds.setdefault(structure(p.reply), []).append(p.id)
        return Reply(
            p.id,
            p.samples,
            p.number,
            self.version - p.version,
            p.began or 0.0,
            self.now if time is None else time,
            p.payload,
            p.reply,
        )

    def answer(self, question: Ask, id: int) -> Any:
        """A question in mid-job: of the server's last state, or of peers' committed memories."""
        if question.of is None:
            return question.program(self.state, **question.message)
        replies: list[Reply] = []
        for peer in question.of:
            client = Client(self.plan, peer, ("ask", peer, id, self.version), dict(self.memory_of(peer)), self.now)
            work = question.program(client, **question.message)
            try:
                request = work.send(None)
                while True:
                    request = work.send(self.at_once(request))
            except StopIteration as end:
                message = opened(end.value if end.value is not None else Message())
                n = self.plan.federation.size(peer)
                replies.append(Reply(peer, n, len(replies), 0, self.now, self.now, question.message, message))
        return Replies(tuple(replies))

    def at_once(self, request: Training | Query) -> Any:
        """Work done on the spot, for the server's own learning and for answers to questions."""
        if isinstance(request, Training):
            return self.engine.compute([request])[0]
        return answered(self.plan, request)

    # ------------------------------------------------------------ peers
    def mix(self, name: str, topology: Any, ids: Sequence[int], start: float) -> float:
        """Each client's vector becomes the weighted mean of its neighbours'; bytes are those of every directed edge.

        Clients that hold none (no job of theirs has counted yet) sit it out. The matrix is dense: `n^2` numbers for `n`
        that mix.
        """
        ids = [i for i in ids if name in self.memory_of(i)]
        if not ids:
            return start
        if busy := sorted({p.id for p in self.dispatch.jobs.values()} & set(ids))[:5]:
            raise ConfigError(
                f"mix({name!r}) while jobs are under way at clients {busy}: what they return would overwrite the mean. "
                f"Receive them first, or mix others: clients.only(clients.idle()).mix(...)"
            )
        matrix = topology.matrix(ids, generator(*self.draw_key("topology")))
        rows = [self.memories[i][name] for i in ids]
        mixed = matrix.to(rows[0].dtype) @ torch.stack(rows)
        edges = int((matrix != 0).sum() - (matrix.diagonal() != 0).sum())
        self.ledger.peers += edges * nbytes(rows[0])
        for k, i in enumerate(ids):
            self.memories[i] = {**self.memories[i], name: mixed[k].clone()}
        world = self.plan.world
        return start + max(world.transfer(i, nbytes(rows[0]), world.up) for i in ids)

    # ------------------------------------------------------------ judging
    def evaluate(
        self,
        what: Tensor | Callable[..., Any],
        ids: Sequence[int] | None,
        panel: Sequence[int],
        split: str,
        each: Mapping[int, Mapping[str, Any]] | None,
        down: Mapping[str, Any],
    ) -> Evaluation:
        plan, metrics = self.plan, self.plan.task.metrics
        program = what if inspect.iscoroutinefunction(what) else None
        shared = {"test": plan.federation.test, "val": plan.federation.validation}.get(split)
        if program is None and ids is None and shared is not None:
            totals = evaluate(plan.model, what, shared)
            return Evaluation({k: v for m, t in zip(metrics, totals) for k, v in m.finish(t).items()})
        chosen = panel if ids is None else list(map(index, ids))
        jobs = [
            Job(
                -1,
                id,
                plan.place(program) if program else "",
                Message({**down, **(each or {}).get(id, {})} if program else {"answer": what}),
                (id, self.version, "evaluate", split),
                self.memory_of(id),
                self.version,
                self.now,
                judge=split,
            )
            for id in chosen
            if len(getattr(plan.federation.local(id), split))
        ]
        for k, job in enumerate(jobs):
            job.number = k
        outcomes, _ = self.engine.run(jobs)
        by_client = {o.job.id: o.message for o in outcomes if o.message is not None}
        pooled: dict[str, float] = {}
        figures: dict[int, dict[str, float]] = {i: {} for i in by_client}
        for k, metric in enumerate(metrics):
            parts = {i: Message(m[f"m{k}"]) for i, m in by_client.items()}
            for i, part in parts.items():
                figures[i].update(metric.finish(part))
            if parts:
                pooled.update(
                    metric.finish(Message({n: sum(p[n] for p in parts.values()) for n in next(iter(parts.values()))}))
                )
        return Evaluation(pooled, figures)


def _singles(value: Any) -> list[Once]:
    """The values inside that are charged once."""
    if isinstance(value, Once):
        return [value]
    parts: Iterable[Any] = value.values() if is_mapping(value) else value if is_row(value) else ()
    return [single for part in parts for single in _singles(part)]
