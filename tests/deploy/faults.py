"""Mistakes a coordinator or a site could make, made on purpose: the chaos suite must notice every one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from fedloom.deploy import app, coordinator, sums
from fedloom.deploy.blobs import Blobs, CannotWrite
from fedloom.deploy.certs import Authority
from fedloom.deploy.coordinator import Coordinator
from fedloom.deploy.journal import Journal, Replied
from fedloom.deploy.site import Site
from fedloom.deploy.store import Store
from fedloom.deploy.uploads import Uploads
from fedloom.written import dumps, loads


def verdict_ignored() -> None:
    """A site goes on from what it did last, whatever the server says counted."""

    def memory(self: Store, client: int, version: str) -> dict[str, Any]:
        held = {kind: body for kind, _, body in self._versions(client)}
        last = held.get("pending") or held.get("base")
        return {} if last is None else loads(self.blobs.get(last))

    Store.memory = memory  # type: ignore[method-assign]


def two_writes() -> None:
    """A site writes its reply, and then its memory."""
    honest = Store.done

    def done(self: Store, job: str, client: int, body: bytes, memory: Any, booked: Any, about: Any) -> str:
        name = honest(self, job, client, body, None, booked, about)
        if memory is not None:
            pending = self.blobs.put(dumps(dict(memory)))
            self.write("INSERT OR REPLACE INTO memories VALUES (?, 'pending', ?, ?)", client, job, pending)
        return name

    Store.done = done  # type: ignore[method-assign]


def memory_after_answer() -> None:
    """A site writes its memory when the server has answered."""
    honest, do, kept = Store.done, Site._do, dict[str, Any]()

    def done(self: Store, job: str, client: int, body: bytes, memory: Any, booked: Any, about: Any) -> str:
        kept[job] = (client, memory)
        return honest(self, job, client, body, None, booked, about)

    def after(self: Site, given: Any) -> None:
        do(self, given)
        client, memory = kept.pop(given["id"], (0, None))
        if memory is not None:
            pending = self.store.blobs.put(dumps(dict(memory)))
            self.store.write(
                "INSERT OR REPLACE INTO memories VALUES (?, 'pending', ?, ?)", client, given["id"], pending
            )

    Store.done, Site._do = done, after  # type: ignore[method-assign]


def unjournaled_closing() -> None:
    """The server decides who was late, and does not write it down."""

    def close_exchange(self: Journal, exchange: str, round: int, content: dict[str, Any]) -> dict[str, Any]:
        return content

    Journal.close_exchange = close_exchange  # type: ignore[method-assign]


def sums_ignored() -> None:
    """Nobody looks at checksums."""
    sums.checksum = lambda data: ""
    sums.of_head = lambda *said: ""
    sums.of_answer = lambda status, body: ""


def hash_ignored() -> None:
    """Bytes are believed to be what they were announced as."""

    def place(self: Blobs, partial: Path, name: str) -> None:
        self._place(partial, name)

    sums.checksum = lambda data: ""
    sums.of_head = lambda *said: ""
    Blobs._finish = place  # type: ignore[method-assign]
    Blobs.get = lambda self, name: self.path(name).read_bytes()  # type: ignore[method-assign]


def deadline_by_the_wall() -> None:
    """A deadline is measured by a clock that can be set."""

    class Wall:
        monotonic = staticmethod(lambda: time.time())
        time = staticmethod(lambda: time.time())

    coordinator.time = Wall  # type: ignore[assignment]


def said_before_it_is_kept() -> None:
    """A reply is acknowledged although the disk was too full to write it down."""
    honest = Journal.reply

    def reply(self: Journal, job: str, body: str, refused: str | None, at: float) -> Replied:
        try:
            return honest(self, job, body, refused, at)
        except CannotWrite:
            return Replied(job, body, refused, at, 0)

    Journal.reply = reply  # type: ignore[method-assign]


def revocation_ignored() -> None:
    """Whoever has a certificate of the authority may speak."""
    Authority.refusal = lambda self, peer: None  # type: ignore[method-assign]


def anybodys_job() -> None:
    """Nobody looks whose job it is that a site answers."""
    honest = Coordinator.take

    def take(self: Coordinator, site: str, id: str, body: str) -> dict[str, Any]:
        job = self.journal.job(id)
        return honest(self, site if job is None else job.site, id, body)

    Coordinator.take = take  # type: ignore[method-assign]


def no_limits() -> None:
    """Bodies may be as large as they like."""
    honest = app.read_body

    async def read_body(request: Any, largest: int) -> bytes:
        return await honest(request, 1 << 40)

    app.read_body = read_body


def one_at_a_time() -> None:
    """All sites share the room for one piece, for as long as it takes."""
    honest = Uploads.__init__

    def init(self: Uploads, *args: Any) -> None:
        honest(self, *args)
        self._pieces = asyncio.Semaphore(1)
        self._uploading = Forgetful()

    Uploads.__init__ = init  # type: ignore[method-assign]


class Forgetful(dict[str, Any]):
    def get(self, key: str, default: Any = None) -> Any:
        return default


def lost_share() -> None:
    """What a worker had when it died is done by nobody."""
    from fedloom.engines.workers import Workers

    honest = Workers._tried

    def tried(self: Workers, fold: Any, shares: Any, wanted: Any) -> Any:
        yield from honest(self, fold, shares, wanted)
        return []

    Workers._tried = tried  # type: ignore[method-assign]
