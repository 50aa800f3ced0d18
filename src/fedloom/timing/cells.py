"""Transfers over cells that clients share: who is in which, and when each arrives."""

from __future__ import annotations

from collections.abc import Callable

from .posted import NEVER, Posted
from .sharing import Way, divide
from .world import World


class Cells:
    """The transfers under way in every cell, each way for itself.

    Args:
        tell: is told (job, time) whenever a transfer will arrive at another time than before.
    """

    def __init__(self, world: World, tell: Callable[[Posted, float], None]) -> None:
        self.world, self.tell = world, tell
        shared = world.network
        self._down, self._up = (shared.shared_down, shared.shared_up) if shared is not None else (NEVER, NEVER)
        self._inside: dict[tuple[int, bool], dict[int, Posted]] = {}

    def enter(self, posted: Posted, begins: float, now: float) -> bool:
        """Start a transfer of its `nbytes`: up where the job has a reply, else down. It may begin a little later than
        the event that led to it.

        Returns:
            False where links are not shared that way.
        """
        if self._capacity(posted) == NEVER:
            return False
        link = self.world.link(posted.id)
        most = link.down if posted.reply is None else link.up
        posted.way = Way(most, posted.nbytes, link.latency + max(0.0, begins - now), now)
        self.put_back(posted)
        self._divide(posted, now)
        return True

    def leave(self, posted: Posted, now: float) -> None:
        """A transfer is over; the others of its cell have more."""
        del self._inside[self._cell(posted)][posted.number]
        self._divide(posted, now)
        posted.way = None

    def put_back(self, posted: Posted) -> None:
        """A transfer that was under way before a kill is so again."""
        self._inside.setdefault(self._cell(posted), {})[posted.number] = posted

    def _divide(self, posted: Posted, now: float) -> None:
        beside = self._inside[self._cell(posted)].values()
        divide([p.way for p in beside if p.way is not None], self._capacity(posted), now)
        for other in beside:
            assert other.way is not None
            self.tell(other, other.way.due)

    def _capacity(self, posted: Posted) -> float:
        return self._down if posted.reply is None else self._up

    def _cell(self, posted: Posted) -> tuple[int, bool]:
        return self.world.link(posted.id).cell or 0, posted.reply is not None
