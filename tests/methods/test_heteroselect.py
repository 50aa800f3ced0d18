"""HeteRo-Select: each part of the score by hand, chances, the horizon within which everybody is chosen, and rounds."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from orders import overheard
from worked import SGD, START, N, Softmax, federation, same, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.selection import HeteRoSelect, History, Seen
from fedloom.selection.heteroselect import divergences, scaled

NONE = {"diversity": 0.0, "trend": 0.0, "fairness": 0.0, "staleness": 0.0, "norm": 0.0}
TASK = fl.Classification(model=Softmax)


def of(seen, round=5, **weights):
    history = History(round=round, seen=dict(enumerate(seen)))
    return HeteRoSelect(**{**NONE, **weights}).scores(history, range(len(seen)))


def alone(seen, part, **options):
    """The scaled score where only one part differs between clients."""
    return of([Seen(loss=1.0, **s) for s in seen], **{part: 1.0}, **options)


def test_value_is_the_scaled_loss_and_the_unknown_count_as_the_highest():
    np.testing.assert_allclose(of([Seen(loss=1.0), Seen(loss=3.0), Seen(loss=2.0), Seen()]), [0, 1, 0.5, 1])


def test_diversity_is_the_divergence_of_labels_in_bits():
    seen = [Seen(labels=(8.0, 0.0)), Seen(labels=(2.0, 2.0)), Seen()]
    p, q = np.array([1.0, 0.0]), np.array([10 / 12, 2 / 12])
    m = (p + q) / 2
    first = (math.log2(1 / m[0]) + q @ np.log2(q / m)) / 2
    found = divergences(seen)
    assert found[0] == pytest.approx(first)
    assert 0 < found[1] < 1
    assert found[2] == 0.5
    assert list(divergences([Seen(labels=(1.0, 0.0)), Seen(labels=(0.0, 1.0))])) == pytest.approx([0.311278] * 2)


def test_next_to_no_temperature_takes_the_best():
    history = History(round=5, seen={i: Seen(loss=float(i)) for i in range(6)})
    coldest = HeteRoSelect(**NONE, tau=1e-3, coldest=1e-3)
    assert list(coldest.draw(None, history, range(6), 1, generator(0))) == [5]


def test_trend_rewards_a_falling_loss():
    falling, flat, rising = alone([{"before": 2.0}, {"before": 1.0}, {"before": 0.5}], "trend")
    assert (falling, rising) == (1.0, 0.0)
    low, mid, high = (1 / (1 + math.exp(-z)) for z in (-1.0, 0.0, 0.5))
    assert flat == pytest.approx((mid - low) / (high - low))


def test_fairness_and_staleness():
    np.testing.assert_allclose(alone([{"times": 0}, {"times": 2}, {"times": 4}], "fairness"), [1, 0.5, 0])
    waits = np.log1p([5.0, 1.0, 3.0])
    np.testing.assert_allclose(alone([{"last": 0}, {"last": 4}, {"last": 2}], "staleness"), scaled(waits))


def test_long_updates_are_held_back():
    calm = [1 / (1 + 1 / 5), 1 / (1 + 9 / 5), 1.0]
    np.testing.assert_allclose(alone([{"norm": 1.0}, {"norm": 3.0}, {}], "norm"), scaled(np.array(calm)))


def test_without_differences_chances_are_equal():
    policy, history = HeteRoSelect(**NONE), History(round=1)
    counts = Counter(i for n in range(6000) for i in policy.draw(None, history, range(5), 2, generator(n)))
    assert all(abs(counts[i] - 2400) < 5 * math.sqrt(6000 * 0.4 * 0.6) for i in range(5))


def test_chances_follow_the_softmax_and_the_temperature():
    seen = {0: Seen(loss=1.0), 1: Seen(loss=2.0)}
    for tau in (1.0, 0.5):
        policy = HeteRoSelect(**NONE, tau=tau, coldest=0.1)
        first = Counter(policy.draw(None, History(1, seen), [0, 1], 1, generator(n))[0] for n in range(3000))
        p = 1 / (1 + math.exp(-1 / tau))
        assert abs(first[1] - 3000 * p) < 5 * math.sqrt(3000 * p * (1 - p))


def test_everybody_is_chosen_in_the_end():
    """Losses always favour the same clients; staleness and fairness bring in the others."""
    policy, history = HeteRoSelect(tau=0.05, coldest=0.05, staleness=2.0), HeteRoSelect().start()
    history = History(0, {i: Seen(loss=float(i)) for i in range(10)})
    for n in range(60):
        history = policy.begin(history)
        history = history.chosen(policy.draw(None, history, range(10), 2, generator(n)))
    assert all(history.of(i).times > 0 for i in range(10))


def test_rounds_are_those_of_fedprox():
    method = fl.HeteRoSelect(inner=fl.FedProx(cohort=2, mu=0.5, solver=SGD))
    done, heard = overheard(method, TASK, federation(), rounds=3)
    x = START
    for r in range(3):
        ids = sorted(h.client for h in heard if h.round == r)
        n = N[ids] / N[ids].sum()
        x = x + n @ np.array([trained(x, i, r, add=lambda w, x=x: 0.5 * (w - x)) - x for i in ids])
    same(done.params, x)


def test_asking_everybody_costs_a_model_each():
    method = fl.HeteRoSelect(inner=fl.FedProx(cohort=2, solver=SGD), policy=HeteRoSelect(loss="asked"))
    done, heard = overheard(method, TASK, federation(), rounds=2)
    trained_once = [i for i in range(4) if done.state.history.of(i).times]
    assert all(done.state.history.of(i).norm for i in trained_once)  # answers are no updates of length 0
    assert all(done.state.history.of(i).norm is None for i in range(4) if i not in trained_once)
    assert len({(h.client, h.round) for h in heard if "loss" in h.reply}) == 2 * 4
