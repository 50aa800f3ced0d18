"""GHBM, LocalGHBM and FedHBM against NumPy; heavy ball; the local form is GHBM where clients take turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from presence import written
from worked import SGD, SIZES, START, N, batches, cohort, end, far, gradient, run, same, trained

import fedloom as fl
from fedloom.testing.problems import quadratics

BETA = 0.7
WORK = np.array([SGD.work(n) for n in SIZES]) * SGD.lr
TURNS = written((0, 3), (1, 2))


def mean(vectors: list[np.ndarray], ids: list[int]) -> np.ndarray:
    """Weighted with samples."""
    return np.average(vectors, axis=0, weights=N[ids])


def test_four_rounds():
    x, m, past = START, np.zeros(12), []
    for r in range(4):
        ids = cohort(r, 3)
        past.append(x)
        x = mean([trained(x, i, r, add=lambda w, i=i, m=m: BETA / WORK[i] * m) for i in ids], ids)
        m = (past[-2] - x) / 2 if len(past) > 1 else m
    got = run(fl.Ghbm(cohort=3, solver=SGD, beta=BETA, tau=2), rounds=4).state
    same(got.params, x)
    same(got.momentum, m)
    assert len(got.past) == 2


@pytest.mark.parametrize("method", [fl.Ghbm, fl.LocalGhbm, fl.FedHbm])
def test_clients_may_count_alike(method):
    """There is no momentum in the first round."""
    first = run(method(cohort=3, solver=SGD, weight="uniform"), rounds=1).params
    same(first, np.mean([trained(START, i, 0) for i in cohort(0, 3)], axis=0))


def test_four_rounds_with_gradients_ahead():
    x, m, past = START, np.zeros(12), []
    for r in range(4):
        ids, ys = cohort(r, 3), []
        past.append(x)
        for i in ids:
            y, steps = x, SGD.work(SIZES[i])
            for rows in batches(i, r):
                y = y - BETA / steps * m
                y = y - SGD.lr * gradient(y, i, rows)
            ys.append(y)
        x = mean(ys, ids)
        m = (past[-2] - x) / 2 if len(past) > 1 else m
    same(run(fl.Ghbm(cohort=3, solver=SGD, beta=BETA, tau=2, nesterov=True), rounds=4).params, x)


def test_four_rounds_of_the_local_form():
    x, anchors = START, {}
    for r in range(4):
        ids, sent = cohort(r, 3), x
        m = {i: 0.75 * (anchors.get(i, x) - x) for i in ids}
        x = mean([trained(x, i, r, add=lambda w, i=i, m=m: BETA / WORK[i] * m[i]) for i in ids], ids)
        anchors |= dict.fromkeys(ids, sent)
    got = run(fl.LocalGhbm(cohort=3, solver=SGD, beta=BETA), rounds=4)
    same(got.params, x)
    for i, memory in got.memories.items():
        same(memory["anchor"], anchors[i])


def test_four_rounds_of_fedhbm():
    x, anchors = START, {}

    def push(w: np.ndarray, i: int) -> np.ndarray:
        return BETA / WORK[i] * 0.75 * (anchors[i] - w) if i in anchors else 0 * w

    for r in range(4):
        ids = cohort(r, 3)
        ends = {i: trained(x, i, r, add=lambda w, i=i: push(w, i)) for i in ids}
        x = mean(list(ends.values()), ids)
        anchors.update(ends)
    got = run(fl.FedHbm(cohort=3, solver=SGD, beta=BETA), rounds=4)
    same(got.params, x)
    for i, memory in got.memories.items():
        same(memory["anchor"], anchors[i])


def test_one_step_and_one_round_is_heavy_ball():
    q, lr = quadratics(clients=4), 0.1
    got = end(q, fl.Ghbm(cohort=4, solver=fl.SGD(lr=lr, steps=1), beta=BETA, tau=1), 6)
    share = torch.tensor(q.samples, dtype=torch.float64) / sum(q.samples)
    x, old = q.start, q.start
    for _ in range(6):
        g = sum(share[i] * q.gradient(i, x) for i in range(4))
        x, old = x - lr * g + BETA * (x - old), x
    same(got, x.numpy())


def test_the_local_form_is_ghbm_where_clients_take_turns():
    """Two of four a round: two rounds lie between a client's jobs."""
    local = run(fl.LocalGhbm(cohort=2, solver=SGD, beta=BETA), rounds=6, world=TURNS)
    same(local.params, run(fl.Ghbm(cohort=2, solver=SGD, beta=BETA, tau=2), rounds=6, world=TURNS).params.numpy())


@pytest.mark.parametrize("cls", [fl.Ghbm, fl.LocalGhbm, fl.FedHbm])
def test_without_momentum_it_is_fedavg(cls):
    same(
        run(cls(cohort=3, solver=SGD, beta=0.0), rounds=3).params,
        run(fl.FedAvg(cohort=3, solver=SGD), 3).params.numpy(),
    )


def test_a_long_memory_is_nearer_the_optimum_than_the_last_cohort():
    """Clients take turns, one at a time, as in the paper's analysis."""
    q = quadratics(clients=5, dim=4, samples=(1,) * 5, spread=3.0)
    turns, solver = written(*((i,) for i in range(5))), fl.SGD(lr=0.01, steps=5)

    def floor(tau: int) -> float:
        return far(end(q, fl.Ghbm(cohort=1, solver=solver, tau=tau), 150, world=turns), q.optimum)

    assert floor(5) < floor(1)


@pytest.mark.parametrize("cls", [fl.Ghbm, fl.LocalGhbm, fl.FedHbm])
def test_wrong_options_are_refused(cls):
    with pytest.raises(fl.FedloomError, match="beta >= 0"):
        cls(beta=-0.1)
    with pytest.raises(fl.FedloomError, match="pile it up"):
        cls(solver=replace(SGD, momentum=0.9))


def test_a_momentum_spans_at_least_one_round():
    with pytest.raises(fl.FedloomError, match="tau >= 1"):
        fl.Ghbm(tau=0)
