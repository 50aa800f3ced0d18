"""Oort: utilities against NumPy, who is admitted, who is new, the pacer, and rounds of a run."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard
from worked import SGD, SIZES, START, N, Softmax, federation, run, same, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.selection import History, Oort, OortHistory, Seen

TASK = fl.Classification(model=Softmax)
CLIENTS = fl.Experiment(fl.FedAvg(), TASK, federation(), dtype=torch.float64)


def known(losses, samples=None, seconds=None, last=None, round=10, **more):
    n = len(losses)
    seen = {
        i: Seen(
            times=1,
            last=(last or [1] * n)[i],
            samples=(samples or [10] * n)[i],
            loss=losses[i],
            seconds=(seconds or [1.0] * n)[i],
        )
        for i in range(n)
    }
    return OortHistory(round=round, seen=seen, quantile=0.5, **more)


def test_utilities():
    policy = Oort(alpha=2.0, bonus=0.1, clip=1.0)
    history = known([2.0, 1.0, 3.0], [5, 20, 1], [1.0, 2.0, 8.0], [9, 2, 4])
    told = np.array([10.0, 20.0, 3.0]) + np.sqrt(0.1 * math.log(10) / np.array([9, 2, 4]))
    np.testing.assert_allclose(policy.utilities(history, [0, 1, 2]), told * [1, 1, (2 / 8) ** 2], rtol=1e-12)


def test_ten_times_slower_counts_a_hundredth():
    equal = Oort().utilities(known([1.0] * 3, seconds=[1.0, 1.0, 1.0]), [0, 1, 2])
    slow = Oort().utilities(known([1.0] * 3, seconds=[1.0, 1.0, 10.0]), [0, 1, 2])
    assert slow[2] == pytest.approx(equal[2] / 100)
    assert slow[:2] == pytest.approx(equal[:2])
    assert Oort(alpha=0).utilities(known([1.0] * 3, seconds=[1.0, 1.0, 10.0]), [0, 1, 2]) == pytest.approx(equal)


def test_who_never_replied_has_no_duration_that_could_make_others_slow():
    history = known([1.0, 2.0], seconds=[1.0, 8.0])
    silent = {i: Seen(times=1, last=1) for i in range(2, 9)}
    with_silent = replace(history, seen={**history.seen, **silent})
    assert Oort().utilities(with_silent, [0, 1]) == Oort().utilities(history, [0, 1])


def test_outliers_are_clipped():
    utilities = Oort(clip=0.5, bonus=0).utilities(known([1.0, 2.0, 900.0]), [0, 1, 2])
    assert utilities == pytest.approx([10, 20, 20])


def test_equal_clients_have_equal_chances_and_the_useless_none():
    policy, history = Oort(), known([1.0] * 4 + [0.01])
    drawn = [policy.exploited(history, list(range(5)), 2, generator(n)) for n in range(2000)]
    counts = Counter(i for d in drawn for i in d)
    assert counts[4] == 0
    assert all(abs(counts[i] - 1000) < 5 * math.sqrt(2000 * 0.25) for i in range(4))


def test_all_admitted_are_drawn_in_proportion():
    policy, history = Oort(cutoff=0.0, bonus=0, clip=1.0), known([1.0, 3.0])
    first = Counter(policy.exploited(history, [0, 1], 1, generator(n))[0] for n in range(2000))
    assert abs(first[1] - 1500) < 5 * math.sqrt(2000 * 0.75 * 0.25)


def test_the_share_of_new_clients_falls():
    policy = Oort()
    assert policy.share(1) == 0.9
    assert policy.share(3) == pytest.approx(0.9 * 0.98**2)
    assert policy.share(500) == 0.2


def test_new_clients_fill_a_cohort_and_known_ones_the_rest():
    clients = fl.runs.Run(CLIENTS).host.clients
    rng = generator(1)
    fresh = OortHistory(round=1, quantile=0.3)
    assert len(set(Oort().draw(clients, fresh, range(4), 3, rng))) == 3
    half = known([1.0, 1.0], round=400)  # two known, two new; a share of 0.2 of 3 is one
    drawn = Oort().draw(clients, half, range(4), 3, rng)
    assert sorted(drawn)[:2] == [0, 1]
    assert len(set(drawn)) == 3
    mixed = Oort(explore=0.5, decay=1.0).draw(clients, known([1.0] * 3), range(4), 2, rng)
    assert len(mixed) == 2
    assert mixed[1] == 3


def test_those_asked_most_are_set_aside_while_there_are_others():
    history = known([1.0, 1.0, 9.0])
    history = replace(history, seen={**history.seen, 2: replace(history.seen[2], times=5)})
    assert list(Oort(most=5)._spared(history, [0, 1, 2], 2)) == [0, 1]
    assert list(Oort(most=5)._spared(history, [0, 1, 2], 3)) == [0, 1, 2]


def test_the_pacer_relaxes_when_utility_falls():
    policy = Oort(window=2, pace=0.1, preferred=0.3)
    history = policy.begin(policy.start())
    told = iter([4.0, 4.0, 1.0, 1.0, 5.0, 5.0, 5.0])
    quantiles = []
    for _ in range(7):
        loss = next(told)
        history = replace(history, seen={0: Seen(times=1, last=history.round, samples=1, loss=loss)})
        history = policy.begin(history)
        quantiles.append(round(history.quantile, 6))
    assert quantiles == [0.3, 0.3, 0.3, 0.4, 0.4, 0.4, 0.4]  # after the fall from 8 to 2, not after the rise
    assert len(history.gained) == 4


def test_rounds():
    method = fl.Oort(inner=fl.FedAvg(cohort=2, solver=SGD))
    world = fl.World(step_seconds=0.1, spread=0.5)
    done, heard = overheard(method, TASK, federation(), rounds=4, world=world)
    x = START
    for r in range(4):
        ids = sorted(h.client for h in heard if h.round == r)
        n = N[ids] / N[ids].sum()
        x = x + n @ np.array([trained(x, i, r) - x for i in ids])
    same(done.params, x)
    assert {h.client for h in heard if h.round < 2} == {0, 1, 2, 3}
    for i in range(4):
        seconds = world.device(i).step_seconds * SGD.work(SIZES[i])
        assert done.state.history.of(i).seconds == pytest.approx(seconds)


def test_shape_of_what_is_kept():
    history = run(fl.Oort(inner=fl.FedAvg(cohort=2, solver=SGD)), rounds=1).state.history
    assert isinstance(history, OortHistory)
    assert isinstance(history, History)
    assert len(history.seen) == 2
