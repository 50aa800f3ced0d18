"""Laws that draw a cohort: equal chances, chances in proportion to weights, one after the other, the highest first."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from fedloom.errors import ConfigError
from fedloom.replies import Cohort


def equal(ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
    """`k` of `ids` with equal chances: the very draw `clients.sample(k)` makes under this key."""
    if k >= len(ids):
        return everybody(ids)
    chosen = random.Random(rng.initial_seed()).sample(range(len(ids)), k)
    return Cohort([ids[j] for j in chosen], k / len(ids), float(k), "fixed")


def everybody(ids: Sequence[int]) -> Cohort:
    """All of them, each with chance 1."""
    return Cohort(ids, 1.0, float(len(ids)), "all")


def proportional(ids: Sequence[int], weights: Sequence[float], k: int, rng: torch.Generator) -> Cohort:
    """`k` of `ids`, each with exactly the chance min(1, c * weight) whose sum is k; `cohort.probability` has them.

    Systematic sampling in random order (Madow 1949): points one apart, from a random start, along the chances laid
    end to end.
    """
    if k >= len(ids):
        return everybody(ids)
    if k == 0:
        return Cohort([], dict.fromkeys(ids, 0.0), 0.0, "proportional")
    chance = inclusion(weights, k)
    order = torch.randperm(len(ids), generator=rng).numpy()
    ends = np.cumsum(chance[order])
    ends *= k / ends[-1]  # to the last bit, so that k points fall on it
    points = float(torch.rand((), generator=rng, dtype=torch.float64)) + np.arange(k)
    hit = order[np.minimum(np.searchsorted(ends, points, side="right"), len(ids) - 1)]
    return Cohort([ids[j] for j in hit], {i: float(p) for i, p in zip(ids, chance)}, float(k), "proportional")


def inclusion(weights: Sequence[float], k: int) -> np.ndarray:
    """Chances `(n,)` = min(1, c * weight) with sum k; equal ones where all weights are zero.

    Raises:
        ConfigError: a weight that is negative or not finite.
    """
    w = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise ConfigError(f"weights of clients must be finite and >= 0; given {w[~np.isfinite(w) | (w < 0)][:5]}")
    w = w / w.max() if w.any() else np.ones_like(w)
    if np.count_nonzero(w) < k:  # fewer than k can be drawn at all: the others share what is left
        w = np.maximum(w, 1e-12)
    chance, free = np.ones_like(w), np.ones(len(w), dtype=bool)
    while free.any():  # those that would exceed 1 are certain, and the others share the rest
        chance[free] = (k - np.count_nonzero(~free)) * w[free] / w[free].sum()
        over = free & (chance >= 1)
        if not over.any():
            break
        chance[over], free = 1.0, free & ~over
        if np.count_nonzero(~free) == k:
            chance[free] = 0.0
            break
    return chance


def successive(ids: Sequence[int], weights: Sequence[float], k: int, rng: torch.Generator) -> Cohort:
    """`k` of `ids` one after the other, each time with chances in proportion to the weights of those left.

    By exponential clocks (Efraimidis, Spirakis 2006); those of no weight come last, with equal chances. The chance to
    be in it has no closed form: `probability` is None.
    """
    if k >= len(ids):
        return everybody(ids)
    w = torch.tensor(list(weights), dtype=torch.float64)
    rings = torch.empty(len(ids), dtype=torch.float64).exponential_(generator=rng)
    order = np.lexsort((rings.numpy(), (rings / w).numpy()))  # the clocks themselves where none is sooner
    return Cohort([ids[j] for j in order[:k].tolist()], law="successive")


def highest(ids: Sequence[int], scores: Sequence[float], k: int, rng: torch.Generator) -> Cohort:
    """The `k` with the highest scores, the highest first; equal ones in random order."""
    order = torch.randperm(len(ids), generator=rng).tolist()
    ranked = sorted(order, key=lambda j: -scores[j])
    return Cohort([ids[j] for j in ranked[:k]], law="highest")
