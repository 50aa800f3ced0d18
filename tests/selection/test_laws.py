"""The draws: chances that are what a cohort says they are, sizes, extremes, and keys."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedloom as fl
from fedloom.keyed import choose, generator
from fedloom.selection import equal, highest, inclusion, proportional, successive

IDS = [3, 10, 11, 20, 21, 30]
WEIGHTS = [1.0, 2.0, 30.0, 0.5, 4.0, 2.5]
DRAWS = 6000


def counted(law, *args, k):
    counts = Counter(i for n in range(DRAWS) for i in law(IDS, *args, k, generator(0, n)))
    return np.array([counts[i] for i in IDS]) / DRAWS


def close(shares, chances):
    """Within five standard deviations of a binomial."""
    for share, p in zip(shares, chances):
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / DRAWS) + 1e-9


def test_equal_is_the_draw_clients_make():
    rng = generator(0, "sample", 2, 0)
    assert list(equal(IDS, 3, rng)) == [IDS[j] for j in choose(6, 3, 0, "sample", 2, 0)]
    close(counted(equal, k=2), [2 / 6] * 6)


def test_proportional_has_the_chances_it_tells():
    cohort = proportional(IDS, WEIGHTS, 3, generator(1))
    chance = np.array([cohort.probability[i] for i in IDS])
    assert chance[2] == 1.0  # 30 of 40: certain
    rest = np.array([1.0, 2.0, 0.5, 4.0, 2.5])
    np.testing.assert_allclose(np.delete(chance, 2), 2 * rest / rest.sum(), rtol=1e-12)
    close(counted(proportional, WEIGHTS, k=3), chance)
    assert cohort.law == "proportional"
    assert cohort.expected == 3.0


def test_several_rounds_of_certain_ones():
    np.testing.assert_allclose(inclusion([100.0, 10.0, 1.0, 1.0], 3), [1, 1, 0.5, 0.5])


def test_without_weights_chances_are_equal():
    np.testing.assert_allclose(inclusion([0.0] * 4, 2), [0.5] * 4)


def test_who_weighs_nothing_comes_only_where_others_are_missing():
    assert all(set(proportional(IDS, [1, 1, 0, 0, 0, 0], 2, generator(n))) == {3, 10} for n in range(50))
    assert all({3, 10} < set(proportional(IDS, [1, 5, 0, 0, 0, 0], 3, generator(n))) for n in range(50))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.integers(0, 29), st.integers(0, 99))
@settings(deadline=None, max_examples=100)
def test_always_so_many_different_ones(weights, k, seed):
    ids = list(range(100, 100 + len(weights)))
    k = min(k, len(ids) - 1)
    for law in (proportional, successive):
        drawn = law(ids, weights, k, generator(seed))
        assert len(drawn) == len(set(drawn)) == k
        assert set(drawn) <= set(ids)
    chance = inclusion(weights, k) if k else np.zeros(len(ids))
    assert ((chance >= 0) & (chance <= 1 + 1e-9)).all()
    assert chance.sum() == pytest.approx(k)


def test_successive_chances():
    """Of two drawn, the chance of i is w_i + sum_j w_j w_i / (1 - w_j)."""
    w = np.array(WEIGHTS) / sum(WEIGHTS)
    second = [sum(w[j] * w[i] / (1 - w[j]) for j in range(6) if j != i) for i in range(6)]
    close(counted(successive, WEIGHTS, k=2), w + second)
    assert successive(IDS, WEIGHTS, 2, generator(0)).probability is None


@pytest.mark.parametrize("weights", [[0.0] * 6, [math.inf] * 6], ids=["none", "all there is"])
def test_successive_chances_where_no_weight_says_more_than_another(weights):
    close(counted(successive, weights, k=2), [2 / 6] * 6)


def test_who_weighs_nothing_comes_after_the_others_with_equal_chances():
    close(counted(successive, [0.0, 2.0, 0.0, 0.0, 0.0, 0.0], k=3), [2 / 5, 1, 2 / 5, 2 / 5, 2 / 5, 2 / 5])


def test_highest_and_its_ties():
    assert next(iter(highest(IDS, [1, 5, 3, 5, 0, 9], 3, generator(0)))) == 30
    assert set(highest(IDS, [1, 5, 3, 5, 0, 9], 3, generator(0))) == {30, 10, 20}
    close(counted(highest, [0, 0, 1, 0, 0, 0], k=2), [0.2, 0.2, 1, 0.2, 0.2, 0.2])


def test_more_than_there_are_is_everybody():
    for law in (equal, lambda i, k, r: proportional(i, WEIGHTS, k, r), lambda i, k, r: successive(i, WEIGHTS, k, r)):
        cohort = law(IDS, 9, torch.Generator())
        assert (list(cohort), cohort.law, cohort.probability) == (IDS, "all", 1.0)


@pytest.mark.parametrize("wrong", [[-1.0, 1, 1], [math.nan, 1, 1], [math.inf, 1, 1]])
def test_weights_that_cannot_be(wrong):
    with pytest.raises(fl.FedloomError, match="finite and >= 0"):
        proportional([0, 1, 2], wrong, 2, generator(0))
