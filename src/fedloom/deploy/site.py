"""A site: fetches a job, runs it on its own data, keeps the outcome, sends it. Nothing it is sent is ever code."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedloom.channel.secure.protocol import INPUT
from fedloom.channel.stage import Channel, Sender, Stage
from fedloom.client import Ask
from fedloom.data import Data
from fedloom.engines.base import Plan
from fedloom.engines.local import Local
from fedloom.errors import FedloomError, MessageError, NotSupported
from fedloom.message import Message
from fedloom.training import Trainer
from fedloom.written import dumps, load

from .blobs import CannotWrite
from .certs import Untrusted
from .link import Ended, Link, Turned, Unreachable
from .logs import say
from .partner import Partner, Row, Unsafe
from .signing import Forged
from .store import Store
from .wire import Reply, job_of, round_of

_CLOSED = (404, 409)  # the exchange was closed meanwhile; nobody waits for this job any more


@dataclass(frozen=True)
class Outgoing(Stage):
    """The last stage of a site's channel: sees a message as it leaves, and changes nothing."""

    seen: list[Message] = field(default_factory=list[Message], compare=False)

    @property
    def contracts(self) -> bool:
        return True

    def encode(self, message: Message, sender: Sender) -> Message:
        self.seen[:] = [message]
        return message


class Site:
    """The loop of one site, for as long as the run lasts.

    Args:
        plan: as agreed; its federation holds this site's samples.
        link, store: the way to the coordinator, and what is kept.
        piece: bytes sent in one request.
        partner: in secure sums, where the plan has them.
    """

    def __init__(self, plan: Plan, link: Link, store: Store, piece: int, partner: Partner | None = None) -> None:
        self.partner = partner
        self.outgoing = Outgoing()
        self.plan = replace(plan, channel=Channel((*plan.channel.stages, self.outgoing)))
        self.link, self.store, self.piece = link, store, piece
        self.engine = Local(self.plan, Trainer("plain"), 1, self._asked)
        self._job, self._questions, self._payload = "", 0, ""

    def work(self) -> Mapping[str, Any]:
        """Until the run is over.

        Returns:
            what the coordinator says of it.

        Raises:
            MemoryLost: this site's folder is not what the coordinator counts on.
            Turned: the coordinator will not speak with this site any more (revoked, another plan).
        """
        while True:
            try:
                job = self.link.next_job()
            except Ended as end:
                self.link.bye()
                say("ended", site=self.link.site, plan=self.link.plan, rounds=end.summary.get("rounds"))
                return end.summary
            if job is not None:
                self._do(job)

    def _do(self, given: Mapping[str, Any]) -> None:
        id = str(given["id"])
        try:
            body = self.store.reply(id) or self._run(given)
            began = time.monotonic()
            verdict = self.link.reply(id, body, self.store.blobs, self.piece)
            took = {"bytes": self.store.blobs.size(body), "seconds": time.monotonic() - began}
        except Turned as e:
            if e.status not in _CLOSED:
                raise
            time.sleep(0.05)
            verdict, took = {"taken": "closed", "why": str(e)}, {}
        self._say("sent", given, verdict=verdict["taken"], why=verdict.get("why"), **took)

    def _run(self, given: Mapping[str, Any]) -> str:
        """One job, and its outcome on the disk.

        Returns:
            the name of the reply's bytes.
        """
        id, name = str(given["id"]), str(given["payload"])
        self._say("job", given, program=given["program"], judge=given["judge"])
        payload, began = self._fetched(given, name), time.monotonic()
        if self.partner is not None and given.get("secure", {}).get("phase", INPUT) != INPUT:
            return self._phase(self.partner, given, payload)
        memory = self.store.memory(int(given["client"]), str(given["memory"]), read=bool(given["judge"]))
        job = job_of(given, payload, memory)
        self._job, self._questions = id, 0
        self.outgoing.seen.clear()
        partner, row = None if job.judge else self.partner, None
        computing = time.monotonic()
        try:
            if partner is not None:
                row = partner.begun(given, job, self.plan.federation.size(job.id))
            (outcome,), _ = self.engine.run([job])
            reply = Reply.of(outcome, outcome.message if job.judge else next(iter(self.outgoing.seen), None))
            if partner is not None and row is not None:
                reply = partner.masked(row, reply, job)
            kept = outcome.memory if reply.changed else None
        except FedloomError as e:  # of what the program asked for; its own failures are in the outcome
            if isinstance(e, Turned | Unreachable | Untrusted | CannotWrite):
                raise
            reply, kept = Reply.without(e), None
        took = {"computing": time.monotonic() - computing}
        about = {"plan": self.link.plan, "program": job.program or "evaluation", "round": job.version}
        body = self._done(given, reply, kept, about, row)
        took["seconds"] = time.monotonic() - began
        self._say("done", given, bytes=self.store.blobs.size(body), why=reply.excluded, **took)
        return body

    def _phase(self, partner: Partner, given: Mapping[str, Any], payload: Message) -> str:
        """One phase of a secure sum that asks nothing of the data."""
        try:
            reply, row = partner.answer(given, payload)
        except (Unsafe, Forged, MessageError) as e:
            reply, row = Reply.without(e), None
        about = {"plan": self.link.plan, "program": given["program"], "round": int(given["version"])}
        return self._done(given, reply, None, about, row)

    def _done(self, given: Mapping[str, Any], reply: Reply, kept: Any, about: Any, row: Row | None) -> str:
        """On the disk. Where its client stands in a secure sum goes with it, and only then."""
        more = {} if row is None else {"sum": row}
        return self.store.done(
            str(given["id"]), int(given["client"]), reply.pieces(), kept, reply.booked, about, **more
        )

    def _fetched(self, given: Mapping[str, Any], name: str) -> Message:
        """The payload of a job."""
        blobs, began = self.store.blobs, time.monotonic()
        blobs.drop({self._payload} - {name, ""})  # the next client's job often has the same
        known, self._payload = name in blobs, name
        payload: Any = load(self.link.fetch(name, blobs))
        if not known:
            self._say("fetched", given, bytes=blobs.size(name), seconds=time.monotonic() - began)
        if not isinstance(payload, Message):
            raise MessageError(f"the payload of job {given['id']} is no message")
        return payload

    def _say(self, event: str, given: Mapping[str, Any], **more: Any) -> None:
        """A line of the log about a job."""
        about = {"job": given["id"], "client": given["client"], "round": round_of(given), "plan": self.link.plan}
        say(event, site=self.link.site, **about, **more)

    def _asked(self, question: Ask, client: int) -> Any:
        """A question in mid-job, over the wire."""
        if question.of is not None:
            raise NotSupported("a client asks its peers, and sites connect to the coordinator alone")
        if self.partner is not None and question.message:
            raise NotSupported("a question in mid-job that says something of one client, and sums are secure here")
        body = dumps({"program": self.plan.place(question.program), "message": question.message})
        if len(body) > self.piece:
            raise MessageError(
                f"a question of {len(body):,} bytes; it is sent in one piece, and the plan's are {self.piece:,}: ask "
                f"for less, or choose a larger [sites] piece (in MB)"
            )
        self.store.note({"left": "question", "job": self._job, "client": client, "bytes": len(body)})
        self._questions += 1
        place = self.link.ask(self._job, self._questions - 1, body, self.store.blobs)
        answer = load(place)
        self.store.sweep({place.name} - {self._payload})  # a job that is run again asks again
        return answer


def shared(path: Path) -> Data:
    """Public data as it travels."""
    return Data(**dict(load(path)))
