"""Transfers that share a cell: at every moment they divide its rate max-min fairly.

Each transfer under way gets an equal part of the cell, but never more than its own link carries; what slow links leave
is divided among the others. It takes part from its start to its arrival, its latency included; when one starts or
arrives, all are divided anew. So with n equal transfers of b bytes that start together over a cell of rate C (and links
faster than C / n) all arrive after latency + n * b / C.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedloom.written import record


@record
@dataclass
class Way:
    """A transfer under way, as it is saved.

    Attributes:
        most: bytes per second its own link carries.
        left: bytes not yet sent; `lag` seconds of latency not yet passed.
        rate: bytes per second since `at`, when all were last divided.
    """

    most: float
    left: float
    lag: float
    at: float
    rate: float = 0.0

    def pass_to(self, now: float) -> None:
        """What has been sent by now has been sent."""
        moving = max(0.0, now - self.at - self.lag)
        self.lag = max(0.0, self.lag - (now - self.at))
        self.left = max(0.0, self.left - self.rate * moving)
        self.at = now

    @property
    def due(self) -> float:
        """When it arrives if nothing changes."""
        return self.at + self.lag + (self.left / self.rate if self.left else 0.0)


def divide(ways: Iterable[Way], capacity: float, now: float) -> None:
    """Pass the time, and give every transfer its max-min fair rate."""
    ordered = sorted(ways, key=lambda way: way.most)
    for way, rate in zip(ordered, fair([way.most for way in ordered], capacity)):
        way.pass_to(now)
        way.rate = rate


def fair(most: Sequence[float], capacity: float) -> list[float]:
    """Max-min fair parts of a capacity; `most` is ascending: what each can take at most."""
    rates: list[float] = []
    for k, limit in enumerate(most):
        rates.append(min(limit, capacity / (len(most) - k)))
        capacity -= rates[-1]
    return rates
