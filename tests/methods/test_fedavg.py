"""FedAvg against NumPy, against centralised training, and at the biased point where it is known to stall."""

from __future__ import annotations

import numpy as np
import pytest
from worked import SGD, START, N, cohort, covered, end, far, gradient, run, same, trained

import fedloom as fl
from fedloom.testing.problems import quadratics


def test_two_rounds_with_all_clients():
    x = START
    for r in range(2):
        x = np.average([trained(x, i, r) for i in range(4)], axis=0, weights=N)
    same(run(fl.FedAvg(cohort=4, solver=SGD)).params, x)


def test_cohorts_uniform_weights_and_a_server_step():
    x = START
    for r in range(3):
        chosen = cohort(r, 2)
        x = x + 0.5 * (np.mean([trained(x, i, r) for i in chosen], axis=0) - x)
    same(run(fl.FedAvg(cohort=2, solver=SGD, server_lr=0.5, weight="uniform"), rounds=3).params, x)


def test_one_step_on_all_data_is_gradient_descent():
    whole = fl.SGD(lr=0.3, steps=1, batch_size=100)
    x = START
    for _ in range(5):
        x = x - 0.3 * np.average([gradient(x, i) for i in range(4)], axis=0, weights=N)
    same(run(fl.FedAvg(cohort=4, solver=whole), rounds=5).params, x)


def test_one_client_is_centralised_training():
    x = START
    for r in range(3):
        x = trained(x, 0, r)
    same(run(fl.FedAvg(solver=SGD), rounds=3, ids=[0]).params, x)


def test_it_stalls_where_the_shares_of_the_way_balance():
    q = quadratics()
    x = end(q, fl.FedAvg(cohort=5, solver=fl.SGD(lr=0.2, steps=5)), 60)
    assert far(x, covered(q, 0.2, 5).optimum) < 1e-9
    assert far(x, q.optimum) > 0.1


def test_of_one_step_it_ends_at_the_optimum():
    q = quadratics()
    assert far(end(q, fl.FedAvg(cohort=5, solver=fl.SGD(lr=0.4, steps=1)), 120), q.optimum) < 1e-9


def test_a_poisson_cohort_may_be_empty():
    r = run(fl.FedAvg(cohort=1e-9, solver=SGD))
    same(r.params, START, 0)
    assert [row["replies"] for row in r.rows] == [0, 0]


def test_it_continues_from_an_earlier_run():
    before = run(fl.FedAvg(solver=SGD)).state
    x = before.params.numpy()
    x = np.average([trained(x, i, 0) for i in range(4)], axis=0, weights=N)
    same(run(fl.FedAvg(solver=SGD), rounds=1, before=before).params, x)


def test_wrong_options_are_refused():
    with pytest.raises(fl.FedloomError, match=r"unknown weight 'sample'\. Did you mean 'samples'"):
        fl.FedAvg(weight="sample")  # type: ignore[arg-type]
    with pytest.raises(fl.FedloomError, match="chance"):
        run(fl.FedAvg(cohort=1.5))
