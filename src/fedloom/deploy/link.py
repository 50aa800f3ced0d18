"""A site's way to its coordinator: outward only, over mutual TLS, and patient. Everything may be sent twice."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedloom.errors import ConfigError, FedloomError, MessageError, MissingExtra

from . import sums
from .blobs import Blobs
from .certs import ISSUE, RENEW, Untrusted, counting, site_context
from .listening import is_loopback
from .logs import say

try:
    import httpx
except ImportError as e:
    raise MissingExtra("httpx", "deploy", "joining a coordinator") from e

_AGAIN = (408, 425, 429, 500, 502, 503, 504, 507)
_BUSY = (429, 503)
_NO_TRUST = re.compile("CERTIFICATE|UNKNOWN_CA|BAD_CERT")  # in what OpenSSL says of a connection
_THEIRS = re.compile("has expired|is not valid for")  # where the coordinator's is at fault
_PATIENCE = (0.05, 5.0)  # seconds before the second try, and at most


class Turned(FedloomError):
    """The coordinator refused a request for good; `status` and what it said."""

    def __init__(self, status: int, content: Mapping[str, Any]) -> None:
        super().__init__(str(content.get("why") or f"the coordinator answered {status}"))
        self.status, self.content = status, content


class Damaged(FedloomError):
    """An answer that is not what was sent."""


class Unreachable(FedloomError):
    """Nobody answered for longer than this site waits."""


class Ended(FedloomError):
    """The run is over; `summary` is what the coordinator says of it."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        super().__init__("the run is over")
        self.summary = summary


class Link:
    """Requests that are tried again until they are answered.

    Args:
        url: of the coordinator. Plain `http` is for loopback alone.
        site: its name; with certificates it must be the one they were issued to.
        certs: the folder `fedloom certs issue` made.
        patience: seconds without any answer after which to give up.
        wait: seconds one poll is held.
    """

    def __init__(
        self, url: str, site: str, certs: Path | None, patience: float = float("inf"), wait: float = 20.0
    ) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"a coordinator's address is https://HOST:PORT; given {url!r}")
        if parsed.scheme == "http" and not is_loopback(parsed.host):
            raise ConfigError(f"{url} is not encrypted; only a coordinator on this very machine is spoken to like that")
        if parsed.scheme == "https" and certs is None:
            raise ConfigError(
                f"{url} asks who you are: name the folder `fedloom certs issue {site}` made, --certs FOLDER"
            )
        verify = site_context(certs) if parsed.scheme == "https" and certs is not None else False
        self.site, self.patience, self.wait, self.plan = site, patience, wait, ""
        self._certs = certs if parsed.scheme == "https" else None
        self._met = False  # whether it ever answered
        self._heard = 0.0  # when the coordinator last said something, or was first asked for it
        self._http = httpx.Client(
            base_url=url,
            verify=verify,
            trust_env=False,
            headers={"fedloom-site": site},
            timeout=httpx.Timeout(30.0, read=wait + 30.0),
        )

    def close(self) -> None:
        self._http.close()

    # ------------------------------------------------------------ addresses
    def offer(self) -> dict[str, Any]:
        return self._json("GET", "/v1/offer")

    def hello(self, declaration: Mapping[str, Any]) -> dict[str, Any]:
        return self._json("POST", "/v1/hello", json.dumps(dict(declaration)).encode())

    def standing(self) -> dict[str, Any]:
        """How the run stands."""
        return self._json("GET", "/v1/status")

    def agreement(self) -> dict[str, Any] | None:
        """The plan, None while others are waited for."""
        return self._json("GET", f"/v1/plan?wait={self.wait:g}")

    def next_job(self) -> dict[str, Any] | None:
        """The next job, None while there is none.

        Raises:
            Ended: the run is over.
        """
        try:
            return self._json("GET", f"/v1/jobs?wait={self.wait:g}")
        except Turned as e:
            if e.status == 410:
                raise Ended(e.content.get("ended", {})) from None
            raise

    def bye(self) -> None:
        """The coordinator need not stay for this site. It leaves anyway after a while, so a few tries will do."""
        self.patience = min(self.patience, 1.0)
        with contextlib.suppress(FedloomError):
            self._json("POST", "/v1/bye")

    def reply(self, job: str, body: str, blobs: Blobs, piece: int) -> dict[str, Any]:
        """Send a reply until it is taken; pieces that are there already are not sent again."""
        while True:
            try:
                self._upload(body, blobs, piece)
                return self._json("POST", "/v1/replies", json.dumps({"job": job, "body": body}).encode())
            except Turned as e:
                if not e.content.get("missing"):
                    raise
                blobs.checked(body)  # what is sent again is what it was

    def ask(self, job: str, number: int, body: bytes, blobs: Blobs) -> Path:
        """A question in mid-job, and where its answer lies."""
        answer = self._json("POST", f"/v1/questions?job={job}&number={number}", body)
        return self.fetch(answer["answer"], blobs)

    def fetch(self, name: str, blobs: Blobs) -> Path:
        """Where bytes of that name lie, fetched from where an earlier transfer stopped, and checked."""
        if name not in blobs:
            self._patiently(lambda: self._download(name, blobs))
        return blobs.checked(name)

    # ------------------------------------------------------------
    def _download(self, name: str, blobs: Blobs) -> None:
        here = blobs.received(name)
        request = self._request("GET", f"/v1/blobs/{name}")
        if here:
            request.headers["range"] = f"bytes={here}-"
        with self._answer(request) as response:
            if response.status_code == 416:  # all of it was there before a kill, or too much
                blobs.forget(name)
                raise Damaged("a transfer that cannot be continued")
            if response.status_code >= 400:
                response.read()
                _check(response)
                raise _turned(response)
            if here and response.status_code != 206:  # from the beginning, then
                blobs.forget(name)
                here = 0
            try:
                total = here + int(response.headers["content-length"])
            except (KeyError, ValueError):
                raise Damaged("an answer was damaged on the way") from None
            try:
                for piece in response.iter_bytes(1 << 20):
                    here = blobs.append(name, here, piece, total)
                    self._heard = time.monotonic()
            except MessageError as e:  # all of it came, and is gone again
                raise Damaged(str(e)) from None
            if name not in blobs:
                raise Damaged("an answer was damaged on the way")

    def _upload(self, name: str, blobs: Blobs, piece: int) -> None:
        path = blobs.path(name)
        offset, size = 0, path.stat().st_size
        with open(path, "rb") as f:
            while offset < size:
                f.seek(offset)
                part = f.read(piece)
                where = f"/v1/blobs/{name}?offset={offset}&size={size}"
                offset = int(self._json("PUT", where, part)["received"])

    def _request(self, method: str, where: str, body: bytes = b"") -> httpx.Request:
        """With checksums of all of it."""
        headers = {"fedloom-plan": self.plan, sums.BODY: sums.checksum(body)}
        made = self._http.build_request(method, where, content=body, headers=headers)
        made.headers[sums.HEAD] = sums.of_head(method, made.url.raw_path, self.site, self.plan, headers[sums.BODY])
        return made

    def _json(self, method: str, where: str, body: bytes = b"") -> Any:
        def once() -> Any:
            with self._answer(self._request(method, where, body)) as response:
                response.read()
                _check(response)
                if response.status_code >= 400:
                    raise _turned(response)
                return response.json() if response.content else None

        return self._patiently(once)

    @contextlib.contextmanager
    def _answer(self, request: httpx.Request) -> Iterator[httpx.Response]:
        """The answer to a request, its body still to be read. Afterwards what was sent is nobody's any more."""
        response = self._http.send(request, stream=True)
        self._met = True
        try:
            yield response
        finally:
            response.close()
            del response.stream  # it and the response hold each other, and the piece that was sent

    def _patiently(self, once: Callable[[], Any]) -> Any:
        """Try until there is an answer; cut, slow and overloaded connections are tried again, later and later."""
        self._heard, pause = time.monotonic(), _PATIENCE[0]
        while True:
            try:
                return once()
            except Turned as e:
                if e.status not in _AGAIN and not e.content.get("again"):
                    raise
                why = str(e)
                if e.status in _BUSY:  # it is there, and answers
                    self._heard = time.monotonic()
            except (httpx.RequestError, Damaged) as e:
                if _NO_TRUST.search(str(e)):
                    anew = RENEW if _THEIRS.search(str(e)) else ISSUE
                    why = f"{self._http.base_url} and this site do not trust each other: {e}"
                    raise Untrusted(why, anew) from None
                why = self._reason(e)  # words: an error that is kept here keeps this frame, and it the error
            if time.monotonic() - self._heard > self.patience:
                raise Unreachable(f"no answer from {self._http.base_url} for {self.patience:.0f} s: {why}")
            say("again", logging.WARNING, site=self.site, plan=self.plan, why=why)
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _PATIENCE[1])

    def _reason(self, e: Exception) -> str:
        why = str(e) or type(e).__name__
        if self._met or self._certs is None or not isinstance(e, httpx.RemoteProtocolError | httpx.ReadError):
            return why
        return (
            f"{why.rstrip('.')}. A coordinator hangs up like that on a certificate that does not count by its clock: "
            f"this site's counts {counting(self._certs)}"
        )


def _check(response: httpx.Response) -> None:
    """Raises Damaged where this is not what the coordinator sent: changed on the way, or by something in between."""
    if response.headers.get(sums.BODY) != sums.of_answer(response.status_code, response.content):
        raise Damaged("an answer was damaged on the way, or is none of a coordinator's")


def _turned(response: httpx.Response) -> Turned:
    try:
        content = response.json()
    except ValueError:
        content = {}
    return Turned(response.status_code, content if isinstance(content, dict) else {})
