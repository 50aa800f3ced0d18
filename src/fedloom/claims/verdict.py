"""The rule of a claim, and what it says of the figures of all seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Verdict = str
"""reproduced, mixed, or not reproduced."""

VERDICTS: tuple[Verdict, ...] = ("reproduced", "mixed", "not reproduced")


@dataclass(frozen=True)
class Comparison:
    """One arm against another over paired seeds: per-seed effects (positive: better), mean, 95 % interval, verdict."""

    arm: str
    than: str
    effects: list[float]
    mean: float
    low: float
    high: float
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Beats:
    """`arm` is better than `than`, by at least `by` (difference) or with at most `ratio` times its figure.

    Reproduced: the mean effect over seeds is at least what is claimed and its 95 % interval excludes no effect.
    Not reproduced: the mean effect is zero or in the other direction. Mixed: anything between.

    Args:
        by: a difference in the measure's own unit, >= 0.
        ratio: claimed `arm / than` where less is better (0.5: half the rounds); compared on a log scale.
    """

    arm: str
    than: str
    by: float = 0.0
    ratio: float | None = None

    def judge(self, figures: Mapping[str, Sequence[float]], lower: bool) -> Comparison:
        """Apply the rule to the figures per arm, one per seed in the same order."""
        pairs = list(zip(figures[self.arm], figures[self.than]))
        if self.ratio is None:
            effects = [(b - a) if lower else (a - b) for a, b in pairs]
            least = self.by
        else:
            effects = [_log_ratio(b, a) if lower else _log_ratio(a, b) for a, b in pairs]
            least = -math.log(self.ratio) if lower else math.log(self.ratio)
        mean, low, high = interval(effects)
        if not math.isfinite(mean) or mean <= 0:
            verdict = "not reproduced"
        else:
            verdict = "reproduced" if mean >= least and low > 0 else "mixed"
        if self.ratio is None:
            text = f"{self.arm} better than {self.than} by {mean:.4g} [{low:.4g}, {high:.4g}]"
        else:
            sign = -1 if lower else 1
            r = [math.exp(sign * e) for e in (mean, low, high)]
            text = f"{self.arm} / {self.than} = {r[0]:.3g} [{min(r[1:]):.3g}, {max(r[1:]):.3g}]"
        return Comparison(self.arm, self.than, effects, mean, low, high, verdict, text)

    def __str__(self) -> str:
        claimed = f"at most {self.ratio:g} times" if self.ratio is not None else f"better by at least {self.by:g} than"
        return (
            f"{self.arm} is {claimed} {self.than}. Reproduced: the mean over paired seeds is, and its 95 % interval "
            f"excludes no effect; not reproduced: no effect or the other way; mixed: between"
        )


def _log_ratio(a: float, b: float) -> float:
    """log(a / b), NaN where that says nothing: a figure that is 0, negative, or ran away."""
    return math.log(a / b) if 0 < a < math.inf and 0 < b < math.inf else math.nan


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval; infinitely wide for one value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2 or not math.isfinite(mean):
        return mean, -math.inf, math.inf
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """All reproduced, none better than not reproduced, or mixed."""
    kinds = set(verdicts)
    return kinds.pop() if len(kinds) == 1 else "mixed"
