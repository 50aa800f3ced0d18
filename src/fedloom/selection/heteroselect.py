"""HeteRo-Select's policy (2025): a sum of scores, turned into chances by a softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fedloom.clients import Clients
from fedloom.errors import ConfigError, unknown
from fedloom.replies import Cohort

from .history import History, Seen
from .laws import successive
from .policy import Hears, Policy

Vector = np.ndarray


@dataclass(frozen=True)
class HeteRoSelect(Policy):
    """Chances in proportion to exp(score / tau), one after the other; each part of the score lies in [-1, 1].

        score = value + diversity D + trend M + fairness F + staleness St + norm N         then scaled to [0, 1]
        V: the loss, scaled to [0, 1]          D: Jensen-Shannon divergence of its labels from all known ones, in bits
        M: 1 / (1 + exp(-drop of its loss))    F: 1 - times / mean times, within [-1, 1]
        St: ln(1 + rounds since its last cohort), scaled       N: 1 / (1 + norm^2 / mean norm^2)

    A client that has not told a loss yet is taken for one with the highest; D and M are then 1/2 and N is 1.

    Args:
        diversity, trend, fairness, staleness, norm: weights of the parts beside the loss, >= 0.
        tau: temperature, > 0; times `cooling` each round, in (0, 1], not below `coldest`, > 0.
        loss: "last" (what each told when it last took part) or "asked" (all available are sent the model and asked).
    """

    diversity: float = 0.3
    trend: float = 0.2
    fairness: float = 0.2
    staleness: float = 0.2
    norm: float = 0.1
    tau: float = 1.0
    cooling: float = 0.99
    coldest: float = 0.3
    loss: Literal["last", "asked"] = "last"

    def __post_init__(self) -> None:
        weights = (self.diversity, self.trend, self.fairness, self.staleness, self.norm)
        if min(weights) < 0 or self.tau <= 0 or not 0 < self.cooling <= 1 or self.coldest <= 0:
            raise ConfigError(f"{self} cannot be: weights >= 0, tau and coldest > 0, cooling in (0, 1]")
        if self.loss not in ("last", "asked"):
            raise unknown("loss", self.loss, ("last", "asked"))

    @property
    def hears(self) -> frozenset[Hears]:
        return frozenset({"loss", "labels", "norm"})

    @property
    def asks(self) -> bool:
        return self.loss == "asked"

    def draw(self, clients: Clients, history: History, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        tau = max(self.coldest, self.tau * self.cooling ** (history.round - 1))
        score = self.scores(history, ids)
        return successive(ids, np.exp((score - score.max()) / tau).tolist(), k, rng)

    def scores(self, history: History, ids: Sequence[int]) -> Vector:
        """One number in [0, 1] per client `(n,)`."""
        seen = [history.of(i) for i in ids]
        known = [s.loss for s in seen if s.loss is not None]
        value = scaled(np.array([max(known, default=0.0) if s.loss is None else s.loss for s in seen]))
        times = np.array([float(s.times) for s in seen])
        fair = np.clip(1 - times / (times.mean() or 1.0), -1, 1)
        stale = scaled(np.log1p([float(history.round - s.last) for s in seen]))
        return scaled(
            value
            + self.diversity * divergences(seen)
            + self.trend * np.array([_trend(s) for s in seen])
            + self.fairness * fair
            + self.staleness * stale
            + self.norm * _calm(seen)
        )


def scaled(x: Vector) -> Vector:
    """To [0, 1] by smallest and largest; all alike are 0."""
    spread = x.max() - x.min()
    return (x - x.min()) / spread if spread > 0 else np.zeros_like(x)


def divergences(seen: Sequence[Seen]) -> Vector:
    """Jensen-Shannon divergence of each client's labels from those of all, in bits (0 to 1); 1/2 where not told."""
    told = [s.labels for s in seen if s.labels]
    pooled = np.sum(told, axis=0) / np.sum(told) if told else np.zeros(0)

    def one(s: Seen) -> float:
        mine = np.array(s.labels) / sum(s.labels)
        middle = (mine + pooled) / 2
        return float((_bits(mine, middle) + _bits(pooled, middle)) / 2)

    return np.array([one(s) if s.labels else 0.5 for s in seen])


def _bits(p: Vector, q: Vector) -> Vector:
    """KL(p || q) in bits; 0 ln 0 = 0."""
    some = p > 0
    return (p[some] * np.log2(p[some] / q[some])).sum()


def _trend(seen: Seen) -> float:
    """The share by which its loss fell between the last two times, through a sigmoid."""
    if seen.before is None or seen.loss is None or seen.before <= 0:
        return 0.5
    return 1 / (1 + math.exp(-(seen.before - seen.loss) / seen.before))


def _calm(seen: Sequence[Seen]) -> Vector:
    """Near 1 for short updates, below 1/2 for those longer than most."""
    norms = [s.norm for s in seen if s.norm is not None]
    usual = float(np.mean(np.square(norms))) if norms else 0.0
    return np.array([1 / (1 + s.norm**2 / usual) if s.norm is not None and usual else 1.0 for s in seen])
