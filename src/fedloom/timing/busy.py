"""Which clients are at work, in the order of their numbers: kept up as jobs come and go, not looked for each time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

_MANY = 8
"""Where more than one in so many has changed, all are sorted anew."""


class Busy:
    """Counts the jobs of each client; the order is brought up to date when somebody asks for it."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._jobs: dict[int, int] = {}
        self._order: list[int] = []
        self._changed: set[int] = set()
        for id in ids:
            self.add(id)

    def add(self, id: int) -> None:
        """One more job of that client."""
        before = self._jobs.get(id, 0)
        self._jobs[id] = before + 1
        if not before:
            self._changed.add(id)

    def remove(self, id: int) -> None:
        """One job less."""
        left = self._jobs[id] - 1
        if left:
            self._jobs[id] = left
        else:
            del self._jobs[id]
            self._changed.add(id)

    def ids(self) -> list[int]:
        """Those that have any, ascending."""
        if len(self._changed) * _MANY > len(self._jobs):
            self._order = sorted(self._jobs)
        else:
            for id in self._changed:
                self._place(id)
        self._changed.clear()
        return self._order.copy()

    def _place(self, id: int) -> None:
        k = bisect_left(self._order, id)
        there = k < len(self._order) and self._order[k] == id
        if there and id not in self._jobs:
            del self._order[k]
        elif not there and id in self._jobs:
            self._order.insert(k, id)
