"""Pieces of replies on their way here: whose turn it is, and room for one reply of every site."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from .answers import Halt
from .blobs import Blobs
from .coordinator import Coordinator

PATIENCE = 20.0
"""Seconds a piece of a message waits for its turn."""
_PIECES = 8  # taken at a time


class Uploads:
    """What is on its way, site by site.

    Args:
        sites: who may send.
        blobs: where the pieces go.

    Attributes:
        settling: held while what a site's bodies are is looked at and changed.
    """

    def __init__(self, sites: Iterable[str], blobs: Blobs) -> None:
        self.settling = {site: asyncio.Lock() for site in sites}
        self._blobs = blobs
        self._pieces = asyncio.Semaphore(_PIECES)
        self._uploading: dict[str, asyncio.Task[Any]] = {}  # a site's piece that is on its way
        self._sending: dict[str, str] = {}  # the body a site sends

    @asynccontextmanager
    async def one_piece(self, site: str) -> AsyncIterator[None]:
        """A site sends one piece at a time. A newer one ends what came before it, so that neither a dead connection
        nor a slow one keeps its place.
        """
        mine, before = asyncio.current_task(), self._uploading.get(site)
        assert mine is not None
        if before is not None:
            before.cancel()
        self._uploading[site] = mine
        try:
            async with self._turn():
                yield
        except asyncio.CancelledError:
            if self._uploading.get(site) is mine:
                raise
            mine.uncancel()
            raise Halt(408, "the site has begun anew") from None
        finally:
            if self._uploading.get(site) is mine:
                del self._uploading[site]

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Few pieces are taken at a time. Others wait, still on their way, and after a while are told to come back."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._pieces.acquire()
        except TimeoutError:
            raise Halt(503, "too much at a time; come back") from None
        try:
            yield
        finally:
            self._pieces.release()

    def make_room(self, site: str, name: str, coordinator: Coordinator) -> None:
        """A site has room for one reply: another that it sent before, and that no reply names, goes. What was here
        before it came is not its own.
        """
        before = self._sending.get(site)
        if before is not None and before != name:
            coordinator.make_room(before)
            del self._sending[site]
        if name not in self._blobs:
            self._sending[site] = name
