"""Groups of clients that get as many steps as make them arrive together: the schedule of FedCompass, no training."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedloom.method import State

IN_TIME = 1 + 1e-9
"""A group waits at least this long: who takes as long as expected is in time, whatever its sum rounds to."""


@dataclass(frozen=True)
class Update(State):
    """Delta `(d,)` waiting for a server step, its client's share p, and the model `(d,)` and version it began with."""

    delta: Tensor
    begun: Tensor
    share: float
    version: int


@dataclass(frozen=True)
class Group(State):
    """Clients that should arrive at a time, in seconds since the run began.

    Attributes:
        expected: when they should; `latest` when the group is closed whoever is missing.
        out: members whose jobs are under way; `here` the updates of those that have arrived.
    """

    expected: float
    latest: float
    out: frozenset[int] = frozenset()
    here: dict[int, Update] = field(default_factory=dict[int, Update])

    @property
    def members(self) -> set[int]:
        return {*self.out, *self.here}

    def arrived(self, i: int, update: Update) -> Group:
        return replace(self, out=self.out - {i}, here=self.here | {i: update})


def place(
    groups: Mapping[int, Group], i: int, seconds: Mapping[int, float], now: float, least: int, most: int, slack: float
) -> tuple[dict[int, Group], int]:
    """A group for client i, and the steps that take it there.

    It joins the group for which it has the most time, if that is for `least` to `most` steps; else it opens one of its
    own, timed to meet the next arrival of another group (its fastest member's, after `most` steps more), or, where none
    can be met in `most` steps, as late as possible.

    Args:
        seconds: of a step, by client; of i and of all members.
        slack: how many times the expected duration a group is waited for.
    """
    left = {k: replace(g, out=g.out - {i}) for k, g in groups.items()}  # where its last job failed
    groups, s = {k: g for k, g in left.items() if g.members}, seconds[i]
    joins = {k: whole(g.expected - now, s) for k, g in groups.items()}
    joins = {k: q for k, q in joins.items() if least <= q <= most}
    if joins:
        k = max(joins, key=lambda k: (joins[k], k))
        group, steps = groups[k], joins[k]
    else:
        again = [g.latest + most * min(seconds[j] for j in g.members) for g in groups.values() if now < g.latest]
        meets = [q for end in again if (q := whole(end - now, s)) <= most]
        steps = max(least, max(meets, default=most))
        lasts = steps * s
        k, group = max(groups, default=-1) + 1, Group(now + lasts, now + max(slack, IN_TIME) * lasts)
    return groups | {k: replace(group, out=group.out | {i})}, steps


def whole(seconds: float, each: float) -> int:
    """Steps that fit into so many seconds, which may be a rounding short; no end of them where they take none."""
    return math.floor(seconds / each + 1e-9) if each else sys.maxsize
