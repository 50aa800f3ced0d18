"""FedAvgM against NumPy, its amplification of a steady update, and its reduction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, START, N, cohort, covered, end, far, run, same, trained

import fedloom as fl
from fedloom.testing.problems import quadratics

METHOD = fl.FedAvgM(cohort=4, solver=SGD, momentum=0.8, server_lr=0.5)


def test_three_rounds():
    x, m = START, np.zeros(12)
    for r in range(3):
        m = 0.8 * m + np.average([trained(x, i, r) for i in range(4)], axis=0, weights=N) - x
        x = x + 0.5 * m
    state = run(METHOD, rounds=3).state
    same(state.params, x)
    same(state.m, m)


def test_cohorts_with_equal_weights():
    x, m = START, np.zeros(12)
    for r in range(3):
        m = 0.8 * m + np.mean([trained(x, i, r) for i in cohort(r, 3)], axis=0) - x
        x = x + 0.5 * m
    same(run(replace(METHOD, cohort=3, weight="uniform"), rounds=3).params, x)


def test_without_momentum_it_is_fedavg_bit_for_bit():
    m = run(replace(METHOD, momentum=0.0, server_lr=1.0), rounds=3)
    assert torch.equal(m.params, run(fl.FedAvg(cohort=4, solver=SGD), rounds=3).params)


def test_a_steady_update_is_amplified():
    """On slopes without curvature Delta never changes: steps tend to Delta / (1 - momentum)."""
    q = quadratics()
    slopes = replace(q, a=1e-9 * q.a, b=1e9 * q.b)
    solver = fl.SGD(lr=0.1, steps=2)
    before, after = (end(slopes, fl.FedAvgM(cohort=5, momentum=0.5, solver=solver), r) for r in (40, 41))
    same(after - before, 2 * end(slopes, fl.FedAvg(cohort=5, solver=solver), 1).numpy(), 1e-6)


def test_momentum_does_not_move_the_fixed_point():
    q = quadratics()
    x = end(q, fl.FedAvgM(cohort=5, momentum=0.6, solver=fl.SGD(lr=0.2, steps=5)), 120)
    assert far(x, covered(q, 0.2, 5).optimum) < 1e-9


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"weight": "n"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match=r"FedAvgM|weight"):
        fl.FedAvgM(**wrong)
