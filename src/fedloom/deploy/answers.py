"""What every answer is, and what every request must be: from somebody, as it was sent, not too large and not too slow.

First of the modules that need starlette: here is said what to install without it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from fedloom.errors import MissingExtra

from . import sums
from .certs import Peer

try:
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
except ImportError as e:
    raise MissingExtra("starlette", "deploy", "a coordinator of sites") from e

SLOWEST = 30.0
"""Seconds without a byte after which a request is given up."""


class Halt(Exception):
    """Ends a request with a status and a reason."""

    def __init__(self, status: int, why: str, **more: Any) -> None:
        super().__init__(why)
        self.status, self.content = status, {"why": why, **more}


class Answer(JSONResponse):
    """JSON, in which a number that is not finite is null: a run that diverges can be told of, too."""

    def render(self, content: Any) -> bytes:
        return super().render(_finite(content))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summed(answer: Response) -> Response:
    """With the checksum of what it says. Bytes that go by their hash need none."""
    if not isinstance(answer, FileResponse):
        answer.headers[sums.BODY] = sums.of_answer(answer.status_code, bytes(answer.body))
    return answer


def loopback_peer(request: Request) -> Peer:
    """Without TLS a peer is who it says it is; `serve` allows that on loopback alone."""
    if request.scope["scheme"] == "https":
        raise Halt(403, "no certificate")
    return Peer(request.headers.get("fedloom-site", ""), "", float("inf"))


def check_head(request: Request) -> None:
    """Raises Halt where a request's method, address or headers are not what was sent."""
    query = request.scope["query_string"]
    target = request.scope["raw_path"] + (b"?" + query if query else b"")
    site, plan, body = (request.headers.get(name, "") for name in ("fedloom-site", "fedloom-plan", sums.BODY))
    if request.headers.get(sums.HEAD) != sums.of_head(request.method, target, site, plan, body):
        raise Halt(400, "damaged on the way; send it again", again=True)


async def read_body(request: Request, largest: int) -> bytes:
    """All of a request's body, if it is not too large and comes in time."""
    stream, read = request.stream(), bytearray()  # one buffer: small parts would leave holes in memory
    while True:
        async with asyncio.timeout(SLOWEST):  # not `wait_for`: its task at the end keeps this frame, which keeps it
            part = await anext(stream, None)
        if part is None:
            break
        read += part
        if len(read) > largest:
            raise Halt(413, f"more than {largest:,} bytes")
    body = bytes(read)
    del read
    if request.headers.get(sums.BODY) != sums.checksum(body):
        raise Halt(400, "damaged on the way; send it again", again=True)
    return body
