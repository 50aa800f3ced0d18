"""The coordinator's HTTP surface: a few addresses, every one of them for a peer whose certificate was verified.

What they are, and what a request must look like, is in `addresses`; how a body comes here piece by piece in `uploads`;
what requests and answers have in common in `answers`. Here is what is done.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from fedloom.errors import FedloomError, MessageError

from . import sums
from .addresses import ADDRESSES, REASONS, Address, Declared, Said, Sent, document, read_query, read_said
from .agreement import Agreement, Offer, compatible, differing
from .answers import SLOWEST, Answer, Halt, check_head, loopback_peer, read_body, summed
from .blobs import Blobs, CannotWrite, NotHere
from .certs import Peer
from .coordinator import Coordinator, Desk
from .journal import Journal
from .logs import say
from .metrics import exposition
from .uploads import Uploads
from .wire import round_of

# after `answers`, which says what to install where starlette is missing
# isort: split
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

LONGEST_WAIT = 30.0
"""Seconds a poll is held."""
_HEAD = 1 << 20  # bytes of a request that is not a piece of a message
_REPLIES = 4  # whole ones looked at, at a time

Handler = Callable[[Request, Peer], Awaitable[Response]]


class Gate(Protocol):
    """Who may speak."""

    def refusal(self, peer: Peer) -> str | None: ...


class Service:
    """What stands behind the addresses; `coordinator` is there once the plan is.

    Args:
        offer: what is to be run.
        gate: asked at every request, so that a revocation counts at once.
        journal, blobs: of the coordinator.
    """

    def __init__(self, offer: Offer, gate: Gate, journal: Journal, blobs: Blobs) -> None:
        self.offer, self.gate, self.journal, self.blobs = offer, gate, journal, blobs
        self.agreement: Agreement | None = None
        self.coordinator: Coordinator | None = None
        self.uploads = Uploads(offer.terms.names, blobs)
        self.progress: dict[str, Any] = {}
        self.ended: dict[str, Any] | None = None
        self.began = time.monotonic()
        self.seen: dict[str, float] = {}
        self.told: set[str] = set()
        self.leaving = False
        self.complete = threading.Event()
        self.refused: dict[str, int] = {}
        self._handed: dict[str, tuple[str, float]] = {}
        self._replies, self._declaring = asyncio.Semaphore(_REPLIES), asyncio.Lock()
        self._bells: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._agree()

    # ------------------------------------------------------------ what the run's thread calls
    def ring(self) -> None:
        """Something changed: who waits looks again."""
        for loop, bell in list(self._bells):
            loop.call_soon_threadsafe(bell.set)

    def leave(self) -> None:
        """Nobody waits any longer: this process ends."""
        self.leaving = True
        self.ring()

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run is over: sites are told when they ask next."""
        self.ended = dict(summary)
        self.ring()

    @property
    def plan(self) -> str:
        """Hash of the plan, "" before there is one."""
        return self.agreement.hash if self.agreement is not None else ""

    def _agree(self) -> None:
        """The plan stands once every site has declared its data."""
        held = self.journal.declarations()
        if set(held) == set(self.offer.terms.names):
            self.agreement = Agreement(self.offer, {name: held[name] for name in self.offer.terms.names})
            self.complete.set()

    # ------------------------------------------------------------ addresses
    def app(self) -> Starlette:
        paths: dict[str, dict[str, Address]] = {}
        for address in ADDRESSES:
            paths.setdefault(address.path, {})[address.method] = address
        routes = [Route(path, self._guarded(methods), methods=list(methods)) for path, methods in paths.items()]
        for route in routes:
            route.methods = {*paths[route.path]}  # no HEAD beside GET: it would be another way to ask for a job
        return Starlette(routes=routes, exception_handlers={HTTPException: self._unknown})

    async def get_offer(self, request: Request, peer: Peer) -> Response:
        return Answer({**self.offer.content(), "versions": self.offer.mine})

    async def hello(self, request: Request, peer: Peer) -> Response:
        site = peer.name
        content, clients = await self._said(request, Declared), self.offer.terms.names[site]
        if len(content["sizes"]) != clients:
            raise Halt(422, f"{site} is {clients} clients here, and said sizes of {len(content['sizes'])}")
        table = self.offer.terms.table
        if table is not None and table.classes not in (None, content["classes"]):
            raise Halt(
                422, f"{table.target} has {table.classes} labels here, and {site} said {content['classes']} classes"
            )
        async with self._declaring:  # two that come at once are held against each other
            others = {s: d for s, d in self.journal.declarations().items() if s != site}
            if why := compatible(content, others):
                raise Halt(409, f"the data of {site} cannot join: {why}")
            stands = await run_in_threadpool(self.journal.declare, site, content)
        if stands != content:
            raise Halt(409, f"{site} declared other data when it joined first ({differing(stands, content)})")
        self._agree()
        self.ring()
        count = {"sites": len(self.journal.declarations()), "of": len(self.offer.terms.names)}
        say("joined", site=site, samples=sum(stands["sizes"]), **count)
        return Answer(count)

    async def get_plan(self, request: Request, peer: Peer) -> Response:
        await self._until(lambda: self.agreement is not None, request)
        if self.agreement is None:
            return Response(status_code=204)
        return Answer({**self.agreement.content(), "hash": self.agreement.hash})

    async def next_job(self, request: Request, peer: Peer) -> Response:
        site, coordinator = self._agreed(request, peer), self.coordinator
        await self._until(lambda: self.ended is not None or self._waiting(site) is not None, request)
        self._admit(peer)  # it may have been revoked while it waited
        self.seen[site] = time.monotonic()
        job = self._waiting(site)
        if job is not None:
            self._say_handed(site, job)
            return Answer(job)
        if self.ended is not None and coordinator is not None:
            return Answer({"ended": self.ended}, status_code=410)
        return Response(status_code=204)

    async def get_blob(self, request: Request, peer: Peer) -> Response:
        site, name = self._agreed(request, peer, early=True), request.path_params["name"]
        if name not in self._readable(site) or name not in self.blobs:
            raise Halt(404, "no such bytes, or not for this site now")
        return FileResponse(self.blobs.path(name), media_type="application/octet-stream")

    async def put_blob(self, request: Request, peer: Peer) -> Response:
        site, name = self._agreed(request, peer), request.path_params["name"]
        offset, size = request.state.query["offset"], request.state.query["size"]
        if size > self.offer.terms.bytes_largest:
            raise Halt(413, f"{size:,} bytes, and the plan allows {self.offer.terms.bytes_largest:,}")
        coordinator = self.coordinator
        if coordinator is None or self._waiting(site) is None:
            raise Halt(409, "no reply of this site is waited for")
        async with self.uploads.one_piece(site):
            piece = await read_body(request, min(int(self.offer.terms.piece * 1e6), max(0, size - offset)))
            async with self.uploads.settling[site]:
                await run_in_threadpool(self.uploads.make_room, site, name, coordinator)
                try:
                    here = await run_in_threadpool(self.blobs.append, name, offset, piece, size, site)
                except MessageError as e:
                    raise Halt(422, str(e), missing=True) from None
        return Answer({"received": here})

    async def reply(self, request: Request, peer: Peer) -> Response:
        site = self._agreed(request, peer)
        said = await self._said(request, Sent)
        id, body = said["job"], said["body"]
        if self.coordinator is None:
            raise Halt(503, "the run is not ready yet")
        async with self.uploads.settling[site]:  # until the journal names the body, nothing takes its room
            if body not in self.blobs:
                raise Halt(409, "the bytes of this reply are not here yet", missing=True)
            async with self._replies:
                verdict = await run_in_threadpool(self.coordinator.take, site, id, body)
        self._say_reply(site, id, body, verdict)
        return Answer(verdict)

    async def question(self, request: Request, peer: Peer) -> Response:
        site = self._agreed(request, peer)
        if self.coordinator is None or self.coordinator.standing is None:
            raise Halt(503, "the run is not ready yet")
        id, number = request.state.query["job"], request.state.query["number"]
        async with self.uploads.one_piece(site):
            body = await read_body(request, int(self.offer.terms.piece * 1e6))
        async with self.uploads.settling[site]:  # a thread goes on where its request is ended: one at a time
            name = await run_in_threadpool(self.coordinator.question, site, id, number, body)
        return Answer({"answer": name})

    async def bye(self, request: Request, peer: Peer) -> Response:
        self.told.add(self._agreed(request, peer))
        say("left", site=peer.name, plan=self.plan)
        return Answer({})

    async def status(self, request: Request, peer: Peer) -> Response:
        return Answer(self.standing())

    async def health(self, request: Request, peer: Peer) -> Response:
        return PlainTextResponse("ok\n")

    async def metrics(self, request: Request, peer: Peer) -> Response:
        return PlainTextResponse(exposition(self.standing()), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request, peer: Peer) -> Response:
        return Answer(document(self.offer.mine["protocol"]))

    def standing(self) -> dict[str, Any]:
        """What `fedloom status` shows and `/metrics` counts."""
        now, names = time.monotonic(), self.offer.terms.names
        declared = self.journal.declarations()
        desk = self.coordinator.desk if self.coordinator else Desk()
        return {
            "method": self.offer.made.method,
            "plan": self.plan or None,
            "round": self.progress.get("round", 0),
            "rounds": self.offer.made.rounds,
            "figures": self.progress.get("figures", {}),
            "state": "ended" if self.ended is not None else "running" if self.coordinator else "waiting for sites",
            "uptime": round(now - self.began, 1),
            "bytes": self.progress.get("bytes", {}),
            "refused_requests": dict(self.refused),
            "refused_replies": dict(desk.reasons),
            "sites": {
                site: {
                    "joined": site in declared,
                    "heard": round(now - self.seen[site], 1) if site in self.seen else None,
                    "queue": len(desk.waiting.get(site, ())),
                    **{k: desk.counts[f"{k} {site}"] for k in ("replies", "again", "late", "refused", "excluded")},
                }
                for site in names
            },
        }

    # ------------------------------------------------------------ every request
    def _guarded(self, methods: Mapping[str, Address]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            return summed(await self._answered(methods[request.method], request))

        return guarded

    async def _answered(self, address: Address, request: Request) -> Response:
        who = ""
        try:
            peer = request.scope["state"].get("peer") or loopback_peer(request)
            who = peer.name
            self._admit(peer)
            if not address.look:
                check_head(request)
                self._site(peer)
            for name in address.named:
                self.blobs.path(request.path_params[name])
            asked = request.query_params
            request.state.query = read_query(address, {name: asked.getlist(name) for name in asked})
            handle: Handler = getattr(self, address.does)
            async with asyncio.timeout(LONGEST_WAIT + SLOWEST):
                return await handle(request, peer)
        except Halt as e:
            return self._refuse(e.status, e.content, who, request)
        except NotHere as e:
            return self._refuse(409, {"why": str(e), "missing": True}, who, request)
        except MessageError as e:
            return self._refuse(422, {"why": str(e)}, who, request)
        except CannotWrite as e:
            return self._refuse(507, {"why": str(e), "again": True}, who, request)
        except FedloomError as e:
            return self._refuse(409, {"why": str(e)}, who, request)
        except (ClientDisconnect, TimeoutError):
            return self._refuse(408, {"why": "nothing was heard for too long"}, who, request)

    def _admit(self, peer: Peer) -> None:
        """Raises Halt where the peer may not speak now. Where that cannot be looked up, it may come back."""
        try:
            why = self.gate.refusal(peer)
        except FedloomError as e:
            raise Halt(500, str(e), again=True) from None
        if why:
            raise Halt(403, why)

    async def _unknown(self, request: Request, e: Exception) -> Response:
        """No such address. What was damaged on the way is told so: it is one the next time."""
        assert isinstance(e, HTTPException)
        try:
            if sums.HEAD in request.headers:
                check_head(request)
        except Halt as damaged:
            return summed(self._refuse(damaged.status, damaged.content, "", request))
        known = sorted({address.path for address in ADDRESSES})
        answer = self._refuse(e.status_code, {"why": f"{e.detail}; addresses are {', '.join(known)}"}, "", request)
        answer.headers.update(e.headers or {})
        return summed(answer)

    def _refuse(self, status: int, content: Mapping[str, Any], who: str, request: Request) -> Response:
        reason = REASONS.get(status, str(status))
        self.refused[reason] = self.refused.get(reason, 0) + 1
        where = f"{request.method} {request.url.path}"
        said = {"path": where[:200], "status": status, "reason": reason, "why": str(content["why"])[:500]}
        say("turned away", logging.WARNING, site=who[:64], plan=self.plan, **said)
        return Answer(content, status_code=status)

    # ------------------------------------------------------------ lines of the log
    def _say_handed(self, site: str, job: Mapping[str, Any]) -> None:
        """The first time a site hears of a job."""
        if self._handed.get(site, ("", 0.0))[0] != job["id"]:
            self._handed[site] = (job["id"], time.monotonic())
            about = {"job": job["id"], "client": job["client"], "round": round_of(job), "plan": self.plan}
            say("handed", site=site, **about, judge=job["judge"], bytes=self.blobs.size(job["payload"]))

    def _say_reply(self, site: str, id: str, body: str, verdict: Mapping[str, Any]) -> None:
        job, (handed, since) = self.journal.job(id), self._handed.get(site, ("", 0.0))
        round = None if job is None else round_of(job.header)
        took = time.monotonic() - since if handed == id else None
        about = {"job": id, "round": round, "plan": self.plan, "bytes": self.blobs.size(body)}
        say("reply", site=site, **about, verdict=verdict["taken"], why=verdict.get("why"), seconds=took)

    def _site(self, peer: Peer) -> str:
        """Raises Halt where the peer is none of this federation's sites."""
        if peer.name not in self.offer.terms.names:
            raise Halt(403, f"{peer.name!r} is not a site of this federation")
        self.seen[peer.name] = time.monotonic()
        return peer.name

    def _agreed(self, request: Request, peer: Peer, early: bool = False) -> str:
        """The site, if it goes by the plan; with `early`, also before there is one."""
        site = peer.name
        if self.agreement is None:
            if early:
                return site
            raise Halt(409, "there is no plan yet")
        given = request.headers.get("fedloom-plan")
        if given != self.agreement.hash and not (early and given is None):
            raise Halt(412, f"this site goes by the plan {given}, and here it is {self.agreement.hash}")
        return site

    def _waiting(self, site: str) -> dict[str, Any] | None:
        return self.coordinator.desk.next(site) if self.coordinator is not None else None

    def _readable(self, site: str) -> set[str]:
        """What this site may fetch now: public data, the payload of its job, the answers to its job's questions."""
        job = self._waiting(site)
        names = {self.offer.public}
        if job is not None:
            names |= {job["payload"], *self.journal.answers(job["id"])}
        return names - {""}

    async def _until(self, ready: Callable[[], bool], request: Request) -> None:
        """Until something is so, or as long as the peer would wait."""
        end = time.monotonic() + min(float(request.state.query["wait"]), LONGEST_WAIT)
        entry = (asyncio.get_running_loop(), asyncio.Event())
        self._bells.add(entry)
        try:
            while not (ready() or self.leaving) and (left := end - time.monotonic()) > 0:
                entry[1].clear()
                if ready():
                    return
                try:
                    await asyncio.wait_for(entry[1].wait(), left)
                except TimeoutError:
                    return
        finally:
            self._bells.discard(entry)

    async def _said(self, request: Request, kind: type[Said]) -> dict[str, Any]:
        return read_said(kind, await read_body(request, _HEAD))
