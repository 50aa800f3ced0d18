"""The engine of real sites: hands jobs out, takes replies in, and decides once, in its journal, what counted.

`run` is the one verb of every engine. Its jobs are written down before any is handed out; it returns when the exchange
is closed, and the closing is written down before the method sees a reply. So a coordinator that was killed runs the
round again from its checkpoint and finds its own decisions; nothing is asked twice, and no reply is weighed twice.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedloom.engines.allocator import give_back_freed_memory
from fedloom.engines.base import Job, Outcome, Plan
from fedloom.engines.fold import Fold, Total, Tree, fold_chunk, structure
from fedloom.engines.local import Local, in_order, shares_of
from fedloom.errors import FedloomError, MessageError, NotSupported
from fedloom.message import Message
from fedloom.method import Method
from fedloom.training import Trainer
from fedloom.training.request import Trained, Training
from fedloom.training.trainer import chunk_count, one_by_one
from fedloom.written import dumps, loads, pieces

from .agreement import Terms
from .blobs import Blobs, NotHere
from .journal import Journal, Written
from .logs import say
from .summing import SecureSum
from .wire import NotFinite, Reply, TooLarge, check_tree, digest, header, reading, round_of

KEPT_ROUNDS = 3
"""Bodies of older rounds go; a run resumes from one of its last two checkpoints."""


Look = Callable[[], tuple[int, Any]]


class NotWaiting(FedloomError):
    """Somebody goes on with a job whose exchange was closed meanwhile."""


class Stopped(FedloomError):
    """The coordinator was told to stop; what it has is on the disk."""


@dataclass
class Desk:
    """What lies ready for each site, who was heard of when, and what was counted: by site, and refusals by reason.
    `bell` rings at every change.
    """

    waiting: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    seen: dict[str, float] = field(default_factory=dict[str, float])
    counts: Counter[str] = field(default_factory=Counter[str])
    reasons: Counter[str] = field(default_factory=Counter[str])
    bell: Callable[[], None] = lambda: None

    def next(self, site: str) -> dict[str, Any] | None:
        """A site does one job at a time: the first of those that wait for it, until it is answered."""
        queue = self.waiting.get(site)
        return queue[0] if queue else None


class Coordinator:
    """An engine whose clients are sites.

    Args:
        plan: its federation knows sizes and shapes alone.
        look: the round and the method's state, as the run's thread sees them now.
        terms: who is which client; deadline, quorum and limits.
        journal, blobs: what has been decided, and the bodies it names.
    """

    name = "sites"

    def __init__(self, plan: Plan, look: Look, terms: Terms, journal: Journal, blobs: Blobs) -> None:
        self.plan, self._look, self.terms = plan, look, terms
        self.journal, self.blobs = journal, blobs
        self.desk = Desk(waiting={site: [] for site in terms.names})
        self.changed = threading.Condition()
        self.stopping = False
        self.oldest: int | None = None  # round of the oldest job that outlived its own, and may be asked for again
        self.agreed = ""  # hash of what everybody goes by
        self.standing: tuple[int, Any] | None = None  # round and state that questions in mid-job are answered from
        self._payload: tuple[Message, str] | None = None
        self._told = dict[str, int]()  # bytes of answers to each job that asks
        give_back_freed_memory()

    # ------------------------------------------------------------ the one verb
    def run(self, jobs: Sequence[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        """All jobs to the closing of their exchange. Sums are added in the tree of the local engine, one by one."""
        if not jobs:
            return [], Total() if fold else None
        stage = self.plan.channel.secure
        if stage is not None and fold is not None:
            return SecureSum(self, stage, jobs, fold).run()
        written = self.written(jobs)
        closing = self.exchange(written)
        outcomes, replies = self._outcomes(jobs, written, closing)

        def message(outcome: Outcome) -> Message | None:
            reply = replies.pop(outcome.job.number, None)
            return None if reply is None else reply.opened(self.plan, outcome.job.judge)

        if fold is not None:  # a sum holds the replies of a chunk, and of no more
            return folded(outcomes, fold, self.plan, message)
        for outcome in outcomes:
            outcome.message = message(outcome)
        if jobs[0].judge:
            _keep_alike(outcomes)
        return outcomes, None

    def compute(self, requests: Sequence[Training]) -> list[Trained]:
        """The server's own learning."""
        return self._own.compute(requests)

    @cached_property
    def _own(self) -> Local:
        return Local(self.plan, Trainer("plain"))

    def choices(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        return None

    # ------------------------------------------------------------ an exchange
    def written(self, jobs: Sequence[Job]) -> list[Written]:
        """Jobs as the journal holds them. The exchange is named by them: the same round run again names it the same."""
        heads = [header(job, self._payload_name(job.payload)) for job in jobs]
        exchange = digest({"jobs": [h["id"] for h in heads]})
        return [
            Written(h["id"], exchange, self.terms.site_of(h["client"]), h["version"], h["payload"], h) for h in heads
        ]

    def _payload_name(self, payload: Message) -> str:
        """Kept as a blob; what is one object for the whole cohort is written once."""
        if self._payload is None or self._payload[0] is not payload:
            try:
                self._payload = (payload, self.blobs.put(*pieces(payload)))
            except MessageError as e:
                raise NotSupported(f"a payload cannot be sent to sites: {e}") from None
        return self._payload[1]

    def exchange(self, jobs: Sequence[Written]) -> dict[str, Any]:
        """How an exchange was closed, before a kill or now."""
        return self.journal.closing(jobs[0].exchange) or self._exchange(jobs)

    def _exchange(self, jobs: Sequence[Written]) -> dict[str, Any]:
        """Hand out, wait, close."""
        self.journal.open(jobs)
        self.look()
        began = time.monotonic()
        with self.changed:
            have = self.journal.replies([j.id for j in jobs])
            for job in jobs:
                if job.id not in have:
                    self.desk.waiting[job.site].append(job.header)
            self.desk.bell()
            due = len(jobs)
            while len(have) < due and not self._goes_on_without(have, due, time.monotonic() - began):
                if self.stopping:
                    raise Stopped("stopped; `fedloom serve` with the same folder goes on from here")
                self.changed.wait(timeout=0.2)
                have = self.journal.replies([j.id for j in jobs])
            content = {
                "replied": [j.id for j in jobs if j.id in have],
                "refused": {id: reply.refused for id, reply in have.items() if reply.refused is not None},
                "seconds": round(time.monotonic() - began, 3),
            }
            closing = self.journal.close_exchange(jobs[0].exchange, jobs[0].round, content)
            gone = {j.id for j in jobs}
            for queue in self.desk.waiting.values():
                queue[:] = [h for h in queue if h["id"] not in gone]
        self._say_closed(jobs, closing)
        self.tidy(jobs[0].round)
        return closing

    def tidy(self, round: int) -> None:
        """In this round: what no run needs that is resumed from here goes."""
        oldest = round if self.oldest is None else min(round, self.oldest)
        with self.changed:
            self.blobs.drop(self.journal.outlived(oldest - KEPT_ROUNDS))

    def _say_closed(self, jobs: Sequence[Written], closing: Mapping[str, Any]) -> None:
        replied, refused = len(closing["replied"]), len(closing["refused"])
        late, took = len(jobs) - replied, closing["seconds"]
        about = {"round": round_of(jobs[0].header), "plan": self.agreed, "judge": jobs[0].header["judge"]}
        say("closed", **about, jobs=len(jobs), replies=replied - refused, refused=refused, late=late, seconds=took)

    def _goes_on_without(self, have: Mapping[str, Any], due: int, passed: float) -> bool:
        """Whether the late are not waited for."""
        late = self.terms.deadline is not None and passed >= self.terms.deadline
        return late and len(have) >= min(self.terms.quorum, due)

    def _outcomes(
        self, jobs: Sequence[Job], written: Sequence[Written], closing: Mapping[str, Any]
    ) -> tuple[list[Outcome], dict[int, Reply]]:
        """What the jobs came to, and, by job number, the replies their messages are in."""
        taken, found, replies = self.journal.replies(closing["replied"]), list[Outcome](), dict[int, Reply]()
        for job, row in zip(jobs, written):
            reply = taken.get(row.id)
            if reply is None:
                outcome = Outcome(job, excluded="no reply by the deadline")
            elif reply.refused is not None:
                outcome = Outcome(job, excluded=reply.refused)
            else:
                replies[job.number] = self.reply(reply.body)
                outcome = replies[job.number].head(job, row.id)
            if outcome.excluded is not None:
                self.desk.counts[f"excluded {row.site}"] += 1
            found.append(outcome)
        return found, replies

    def reply(self, body: str) -> Reply:
        """A reply that was taken, and so was checked then, by the name of its bytes."""
        return Reply.load(self.blobs.checked(body))

    # ------------------------------------------------------------ what sites send
    def take(self, site: str, id: str, body: str) -> dict[str, Any]:
        """A reply, whole and here as a blob. It is in the journal when this returns; the answer only means: stop
        sending. Whether it counts is decided by the closing.

        Raises:
            MessageError: no job of this site's has that id, or it was answered with other bytes before.
            NotHere: the bytes have to be sent (again) first.
        """
        job = self.journal.job(id)
        if job is None or job.site != site:
            raise MessageError(f"no job {id} was handed to {site}")
        refusal, kind = self._refusal(body, str(job.header["judge"]))
        with self.changed:
            known = self.journal.replies([id]).get(id)
            if known is None:
                closing = self.journal.closing(job.exchange)
                if closing is not None:
                    self.desk.counts[f"late {site}"] += 1
                    return {"taken": "late"}
                if body not in self.blobs:  # it made room for another since it was looked at
                    raise NotHere(f"the bytes of the reply to job {id} are not here any more")
                known = self.journal.reply(id, body, refusal, time.time())
                self.desk.counts[f"{'refused' if known.refused else 'replies'} {site}"] += 1
                if kind:
                    self.desk.reasons[kind] += 1
                self.desk.waiting[site] = [h for h in self.desk.waiting[site] if h["id"] != id]
                self._told.pop(id, None)
                self.changed.notify_all()
                self.desk.bell()
            elif known.body != body:
                raise MessageError(f"job {id} was answered before, with other bytes; the first answer stands")
            else:
                self.desk.counts[f"again {site}"] += 1
        return {"taken": "refused", "why": known.refused} if known.refused else {"taken": "yes"}

    def _refusal(self, body: str, judge: str) -> tuple[str | None, str]:
        """Why a reply can never count, looked at before it is, and in one word or two; None and "" where it can."""
        try:
            path = self.blobs.checked(body)
            check_tree(path, self.terms.bytes_largest)
            reply = Reply.load(path)
            with reading("reply"):
                reply.check(self.terms.bytes_largest)
            reply.opened(self.plan, judge)
        except TooLarge as e:
            return str(e), "too large"
        except NotFinite as e:
            return str(e), "not finite"
        except NotHere:
            raise
        except MessageError as e:
            return str(e), "malformed"
        return None, ""

    def question(self, site: str, id: str, number: int, body: bytes) -> str:
        """A question in mid-job to the server's last state.

        Returns:
            the name of the answer; the same for the same question, as a job may be run again.

        Raises:
            MessageError: not a question, one that only peers can answer, or one too many: the answers to a job take no
                more than a message may. NotWaiting: the job is not under way.
        """
        job = self.journal.job(id)
        if job is None or job.site != site:
            raise MessageError(f"no job {id} was handed to {site}")
        known = self.journal.answered(id, number)
        if known is not None:
            return known
        if not any(h["id"] == id for h in self.desk.waiting[site]):
            raise NotWaiting(f"job {id} is not under way; nobody waits for what it would come to")
        assert self.standing is not None
        round, state = self.standing
        with reading("question"):
            asked = loads(body)
            answer = dumps(self._askable(str(asked["program"]))(state, **dict(asked["message"])))
        told, name = self._told_with(answer, id), question_name(id, number)
        with self.changed:
            stands = self.journal.answer(id, number, self.blobs.put(answer), name, job.round, {"round": round})
            self._told[id] = told
        return stands

    def _told_with(self, answer: bytes, id: str) -> int:
        """Bytes of all answers to a job, this one among them. Raises MessageError where that is too much."""
        before = self._told.get(id) or sum(self.blobs.size(body) for body in self.journal.answers(id))
        told, largest = before + len(answer), self.terms.bytes_largest
        if told > largest:
            raise MessageError(
                f"the answers to the questions of job {id} would be {told:,} bytes, and the plan allows {largest:,}: "
                f"fewer questions, or a larger [sites] largest"
            )
        return told

    def make_room(self, body: str) -> None:
        """What a site sent goes again, if nothing names it. Here and wherever bodies go, none that is about to be
        named does: that is looked at, and written, under the same lock.
        """
        with self.changed:
            if self._payload is None or self._payload[1] != body:
                self.blobs.drop(self.journal.unnamed(body))

    def _askable(self, place: str) -> Callable[..., Any]:
        """A plain function of the method's own; nothing private, and nothing every method has."""
        name = place.rpartition(".")[2]
        if any(part.startswith("_") for part in place.split(".")) or hasattr(Method, name):
            raise MessageError(f"{place!r} is not a question that can be asked")
        program = self.plan.program(place)
        if inspect.iscoroutinefunction(program):
            raise MessageError(f"{place!r} runs at clients; it is no question to the server")
        return program

    def look(self) -> None:
        """In the run's thread: from now on questions are answered from the state that stands now."""
        self.standing = self._look()

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()


def _keep_alike(outcomes: Sequence[Outcome]) -> None:
    """Of evaluations, which are added up, those of the structure that most have."""
    kinds = {id(o): structure(o.message) for o in outcomes if o.message is not None}
    common = Counter(kinds.values()).most_common(1)
    for o in outcomes:
        if o.message is not None and kinds[id(o)] != common[0][0]:
            o.message, o.excluded = None, "what it counted has other fields than most others'"


def question_name(job: str, number: int) -> str:
    """What the journal calls the answer to a job's question: it says from which round's state it came."""
    return f"answer {job}/{number}"


def folded(
    outcomes: list[Outcome],
    fold: Fold,
    plan: Plan,
    message: Callable[[Outcome], Message | None] = lambda outcome: outcome.message,
) -> tuple[list[Outcome], Total]:
    """The sum of those that count, in the chunks and the tree of the local engine that trains one by one.

    Args:
        message: of an outcome, asked for when its chunk is added, and let go with it.
    """
    by_number = {o.job.number: o for o in outcomes}
    order, n = in_order(o.job for o in outcomes), len(outcomes)
    trained = any(o.work for o in outcomes)
    count = fold.leaves(n) or (chunk_count(n, one_by_one(n), plan.model_of(order[0].id)) if trained else 1)
    chunks = [chunk for share in shares_of(order, count, 1) for chunk in share]
    sums = Tree(len(chunks))
    for place, chunk in enumerate(chunks):
        entries: list[tuple[int, Message, float]] = []
        for o in (by_number[job.number] for job in chunk):
            said = message(o)
            if said is None or o.excluded is not None:
                continue
            try:
                entries.append((o.job.number, said, fold.of(said, o.job.samples)))
            except MessageError as e:
                o.excluded = str(e)
        sums.add(place, fold_chunk(entries))
    total, left_out = sums.whole()
    for o in outcomes:
        o.excluded = left_out.get(o.job.number, o.excluded)
        o.message = None
    return outcomes, total
