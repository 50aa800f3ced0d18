"""Oort's policy (Lai et al., OSDI 2021): clients that are useful and fast, and some that nobody knows yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.replies import Cohort

from .history import History
from .laws import successive
from .policy import Hears, Policy


@dataclass(frozen=True)
class OortHistory(History):
    """And the pacer's: `quantile` of known durations that is fast enough, `gained` summed utility of each round."""

    quantile: float = 0.0
    gained: tuple[float, ...] = ()


@dataclass(frozen=True)
class Oort(Policy):
    """Utility-guided selection, the paper's Algorithm 1; U_i = n_i |loss_i|, t_i seconds of the last job.

        Util_i = (U_i + sqrt(bonus ln R / L_i)) * (T / t_i)^alpha where t_i > T             R: this round, L_i: its last

    Args:
        explore: share of a cohort that is new, at first; times `decay` each round, not below `least`; all in [0, 1].
        cutoff: c: those above c times the utility of the last that would get in are admitted (0 to 1).
        clip: utilities are cut at this quantile of all known ones (0 to 1]: outliers are not trusted.
        alpha: penalty of the slow, >= 0 (0: none).
        bonus: weight of not having been asked for long, >= 0.
        preferred: the preferred duration T is this quantile of known durations, in (0, 1].
        pace: added to `preferred` when utility falls from one `window` of rounds to the next, up to 1.
        most: clients that were in so many cohorts are set aside while there are others; 0: never.
    """

    explore: float = 0.9
    decay: float = 0.98
    least: float = 0.2
    cutoff: float = 0.95
    clip: float = 0.95
    alpha: float = 2.0
    bonus: float = 0.1
    preferred: float = 0.3
    pace: float = 0.05
    window: int = 20
    most: int = 0

    def __post_init__(self) -> None:
        shares = (self.explore, self.decay, self.least, self.cutoff, self.clip, self.preferred, self.pace)
        if not all(0 <= s <= 1 for s in shares) or self.clip == 0 or self.preferred == 0:
            raise ConfigError(f"{self} cannot be: shares and quantiles lie in [0, 1], clip and preferred above 0")
        if self.alpha < 0 or self.bonus < 0 or self.window < 1 or self.most < 0:
            raise ConfigError(f"{self} cannot be: alpha, bonus, most >= 0 and window >= 1")

    @property
    def hears(self) -> frozenset[Hears]:
        return frozenset({"loss", "seconds"})

    def start(self) -> OortHistory:
        return OortHistory(quantile=self.preferred)

    def begin(self, history: OortHistory) -> OortHistory:
        """The pacer: T is relaxed when the last `window` rounds brought less utility than those before them."""
        w = self.window
        gained = history.gained
        if history.round:
            cohort = [i for i, s in history.seen.items() if s.last == history.round]
            gained = (*gained, sum(self.statistical(history, i) for i in cohort))[-2 * w :]
        relaxed = len(gained) == 2 * w and history.round % w == 0 and sum(gained[:w]) > sum(gained[w:])
        quantile = min(1.0, history.quantile + self.pace) if relaxed else history.quantile
        return replace(history, round=history.round + 1, gained=gained, quantile=quantile)

    def draw(self, clients: Clients, history: OortHistory, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        known = [i for i in ids if history.of(i).loss is not None]
        fresh = [i for i in ids if history.of(i).loss is None]
        new = min(len(fresh), max(round(self.share(history.round) * k), k - len(known)))
        useful = self.exploited(history, self._spared(history, known, k - new), k - new, rng)
        speeds = [clients.info(i)["device"].speed for i in fresh]
        return Cohort([*useful, *successive(fresh, speeds, new, rng)], law="oort")

    def share(self, round: int) -> float:
        """Of a cohort, that is new."""
        return max(self.least, self.explore * self.decay ** (round - 1))

    def exploited(self, history: OortHistory, ids: Sequence[int], k: int, rng: torch.Generator) -> Sequence[int]:
        """`k` of the clients near the top, in proportion to their utilities."""
        if k >= len(ids):
            return ids
        utility = dict(zip(ids, self.utilities(history, ids)))
        bar = self.cutoff * sorted(utility.values(), reverse=True)[k - 1] if k else math.inf
        admitted = [i for i in ids if utility[i] >= bar]
        return successive(admitted, [utility[i] for i in admitted], k, rng)

    def utilities(self, history: OortHistory, ids: Sequence[int]) -> list[float]:
        """Util_i of clients that have spoken."""
        seen = [history.of(i) for i in ids]
        told = np.array([self.statistical(history, i) for i in ids])
        told = np.minimum(told, np.quantile(told, self.clip))
        times = np.array([s.seconds or 0.0 for s in seen])
        wait = np.array([max(s.last, 1) for s in seen])
        known = [s.seconds for s in history.seen.values() if s.seconds is not None]
        preferred = np.quantile(known, history.quantile) if known else math.inf
        late = times > preferred
        slow = np.where(late, preferred / np.where(late, times, 1.0), 1.0)
        return list((told + np.sqrt(self.bonus * math.log(max(history.round, 1)) / wait)) * slow**self.alpha)

    @staticmethod
    def statistical(history: OortHistory, id: int) -> float:
        """U_i = n_i |loss_i|; 0 where it has not spoken."""
        seen = history.of(id)
        return seen.samples * abs(seen.loss or 0.0)

    def _spared(self, history: OortHistory, ids: Sequence[int], k: int) -> Sequence[int]:
        """Without those that were chosen most, as long as enough are left."""
        rested = [i for i in ids if not self.most or history.of(i).times < self.most]
        return rested if len(rested) >= k else ids
