"""A secure sum between sites, as the coordinator sees it: four exchanges, each journaled like any other.

    keys, shares    asked of every client of the cohort, of those that came through; they wait for no training
    input           the method's own jobs: their replies come masked
    unmask          asked of those whose replies are in the sum

Every decision (who came through a phase) is a closing of the journal, and what follows from the closings follows again
after a kill. With too few there is no sum: the exchange is void and every reply is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedloom.channel.secure import Secure
from fedloom.channel.secure.protocol import (
    INPUT,
    KEYS,
    SEALED_TEXT,
    SHARE_TEXT,
    SHARES,
    UNMASK,
    Circle,
    Course,
    Keys,
    NoSum,
    TooFew,
    unmasked,
)
from fedloom.channel.secure.ring import Form, Masked, Vector, commonest
from fedloom.engines.base import Job, Outcome
from fedloom.engines.fold import Fold, Total
from fedloom.engines.secured import Summed, settle, total_of
from fedloom.errors import MessageError
from fedloom.message import Message
from fedloom.trees import is_mapping
from fedloom.written import pieces

from .journal import Written
from .signing import SIGNED
from .wire import Reply, digest

if TYPE_CHECKING:
    from .coordinator import Coordinator


def decision_name(exchange: str) -> str:
    """What the journal calls the outcome of a secure sum."""
    return f"secure {exchange}"


class SecureSum:
    """One sum, from the first phase to the last.

    Args:
        coordinator: hands out, takes in, and closes.
        stage: of the channel.
        jobs: one for each client asked; their numbers are the parties'.
    """

    def __init__(self, coordinator: Coordinator, stage: Secure, jobs: Sequence[Job], fold: Fold) -> None:
        self.coordinator, self.stage, self.jobs, self.fold = coordinator, stage, jobs, fold
        self.written = {job.number: row for job, row in zip(jobs, coordinator.written(jobs))}
        self.name = next(iter(self.written.values())).exchange
        self.threshold = stage.least(len(jobs))
        self.course = Course(list(self.written))
        self.replies: dict[int, Reply] = {}  # of the phase input
        self.why: dict[int, str] = {}  # somebody is not in the sum

    def run(self) -> tuple[list[Outcome], Total]:
        """The outcomes of the jobs, and the sum."""
        try:
            total = self._phases()
        except NoSum as e:
            total = Total()
            self.why = {u: self.why.get(u, str(e)) for u in self.written}
        journal, round = self.coordinator.journal, self.jobs[0].version
        nobody = {"replied": [], "refused": {}, "seconds": 0.0}
        journal.close_exchange(self.name, round, nobody)  # where it did not come so far
        left_out = {self.written[u].id: why for u, why in self.why.items()}
        course = {phase: list(who) for phase, who in asdict(self.course).items()}
        journal.close_exchange(decision_name(self.name), round, {"left_out": left_out, "course": course})
        return [self._outcome(job, total) for job in self.jobs], total

    def _outcome(self, job: Job, total: Total) -> Outcome:
        u, row = job.number, self.written[job.number]
        reply = self.replies.get(u)
        outcome = Outcome(job) if reply is None else reply.outcome(job, self.coordinator.plan, row.id)
        lost = {} if reply is not None else {u: "no reply by the deadline"}
        settle(outcome, Summed(total, lost | self.why, {u: self.course.nbytes(u)}))
        if outcome.excluded is not None:
            self.coordinator.desk.counts[f"excluded {row.site}"] += 1
        return outcome

    # ------------------------------------------------------------ the phases
    def _phases(self) -> Total:
        asked = list(self.written)
        opening = Message(
            asked=asked,
            threshold=self.threshold,
            weight=self.fold.weight,
            jobs={u: w.id for u, w in self.written.items()},
        )
        said = self._asked(KEYS, asked, lambda u: opening)
        keys = self._each(said, Keys.read)
        self._left(KEYS, list(keys))
        circle = Circle(self.name, self.threshold, keys)
        signed = {u: {k: v for k in SIGNED if isinstance(v := said[u].get(k), str)} for u in keys}
        roster = Message(roster={u: {**asdict(keys[u]), **signed[u], "client": self._client(u)} for u in keys})

        said = self._asked(SHARES, list(keys), lambda u: roster)
        sealed = self._each(said, lambda message: _texts(message, "sealed", keys, SEALED_TEXT))
        self._left(SHARES, list(sealed))

        form, total = self._inputs(list(sealed))
        alive, survivors = list(sealed), list(self.course.survivors)

        def ballot(u: int) -> Message:
            return Message(survivors=survivors, sealed={v: sealed[v][u] for v in alive})

        said = self._asked(UNMASK, survivors, ballot)
        shown = self._each(said, lambda message: _texts(message, "shown", alive, SHARE_TEXT, some=True))
        self._left(UNMASK, list(shown))
        self.why = {u: why for u, why in self.why.items() if u not in survivors}  # who is in the sum is in the sum
        unmasked(total, circle, alive, survivors, shown)
        return total_of(self.stage, self.fold, form, total, survivors)

    def _inputs(self, alive: Sequence[int]) -> tuple[Form, Vector]:
        """The method's own jobs, and the sum of the masked replies of the form that most have."""
        rows = [replace(self.written[u], header=self._header(INPUT, u, alive=list(alive))) for u in alive]
        self.replies = self._replies(rows, alive)
        forms, sums, members = dict[int, str](), dict[str, Vector](), dict[str, list[int]]()
        for u, reply in self.replies.items():
            try:
                masked = None if reply.message is None else reply.message.get("masked")
                if reply.excluded is not None or not isinstance(masked, Masked):
                    raise MessageError(reply.excluded or "its reply is not masked")
                vector = masked.vector(self.stage.ring)
            except MessageError as e:
                self.why[u] = str(e)
                continue
            forms[u] = masked.form
            sums[masked.form] = sums.get(masked.form, np.zeros_like(vector)) + vector
            members.setdefault(masked.form, []).append(u)
        common = commonest(forms)
        survivors = [] if common is None else members[common]
        self.why |= {u: "its fields differ from most others'" for u, form in forms.items() if form != common}
        self._left(INPUT, survivors)
        assert common is not None
        return Form(common), sums[common]

    def _left(self, phase: str, left: list[int]) -> None:
        """Who came through a phase. Raises TooFew."""
        try:
            self.course = self.course.through(phase, left, self.threshold)
        except TooFew as e:
            self.course = e.course
            raise

    # ------------------------------------------------------------ one exchange
    def _asked(self, phase: str, numbers: Sequence[int], payload: Callable[[int], Message]) -> dict[int, Message]:
        """What each said in one phase; who said nothing has none."""
        blobs, rows = self.coordinator.blobs, list[Written]()
        for u in numbers:
            name, row = blobs.put(*pieces(payload(u))), self.written[u]
            header = {**self._header(phase, u), "program": f"secure {phase}", "payload": name, "memory": ""}
            header["id"] = digest({k: v for k, v in header.items() if k != "id"})
            rows.append(Written(header["id"], "", row.site, row.round, name, header))
        exchange = digest({"jobs": [row.id for row in rows]})
        replies = self._replies([replace(row, exchange=exchange) for row in rows], numbers)
        refusing = {u: reply.excluded or "nothing was said" for u, reply in replies.items() if reply.message is None}
        self.why |= {u: f"in the phase {phase!r}: {why}" for u, why in refusing.items()}
        return {u: reply.message for u, reply in replies.items() if reply.message is not None}

    def _header(self, phase: str, u: int, **more: Any) -> dict[str, Any]:
        return {**self.written[u].header, "secure": {"phase": phase, "exchange": self.name, **more}}

    def _replies(self, rows: Sequence[Written], numbers: Sequence[int]) -> dict[int, Reply]:
        """The exchange of these rows, now or before a kill; bodies of those that replied, in their order."""
        c = self.coordinator
        closing = c.exchange(rows)
        replied, found = c.journal.replies(closing["replied"]), dict[int, Reply]()
        for u, row in zip(numbers, rows):
            known = replied.get(row.id)
            if known is None:
                self.why[u] = "no reply by the deadline"
            elif known.refused is not None:
                self.why[u] = known.refused
            else:
                found[u] = c.reply(known.body)
        return found

    def _each(self, said: Mapping[int, Message], read: Callable[[Message], Any]) -> dict[int, Any]:
        """What was said, as it is to be read; what cannot be is left out."""
        found: dict[int, Any] = {}
        for u, message in said.items():
            try:
                found[u] = read(message)
            except MessageError as e:
                self.why[u] = str(e)
        return found

    def _client(self, u: int) -> int:
        return int(self.written[u].header["client"])


def _texts(message: Message, field: str, numbers: Any, length: int, some: bool = False) -> dict[int, str]:
    """A field that holds one text of that length for each of these numbers (or, with `some`, for some of them).

    Raises:
        MessageError: something else.
    """
    given = message.get(field)
    if is_mapping(given) and all(type(k) is int and isinstance(v, str) and len(v) == length for k, v in given.items()):
        named = set(given)
        if named == set(numbers) or (some and named < set(numbers)):
            return dict(given)
    raise MessageError(f"the field {field!r} does not hold one text for each that takes part")
