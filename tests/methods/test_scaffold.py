"""SCAFFOLD against NumPy in both options, its invariant, and the optimum that FedAvg misses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, SIZES, START, cohort, end, far, gradient, run, same, trained

import fedloom as fl
from fedloom.testing.problems import quadratics

METHOD = fl.Scaffold(cohort=3, solver=SGD, server_lr=0.8)


@pytest.mark.parametrize("option", ["I", "II"])
def test_three_rounds(option):
    x, c, own = START, np.zeros(12), np.zeros((4, 12))
    for r in range(3):
        deltas, changes = [], []
        for i in cohort(r, 3):
            y = trained(x, i, r, add=lambda w, shift=c - own[i]: shift)
            new = gradient(x, i) if option == "I" else own[i] - c + (x - y) / (SGD.work(SIZES[i]) * SGD.lr)
            deltas.append(y - x)
            changes.append(new - own[i])
            own[i] = new
        x = x + 0.8 * np.mean(deltas, axis=0)
        c = c + np.sum(changes, axis=0) / 4
    got = run(replace(METHOD, option=option), rounds=3)
    same(got.state.params, x)
    same(got.state.control, c)
    for i, memory in got.memories.items():
        same(memory["control"], own[i])


def test_the_servers_variate_is_the_mean_of_all_clients():
    got = run(replace(METHOD, cohort=2), rounds=5)
    total = sum(memory["control"] for memory in got.memories.values()) / 4
    same(got.state.control, total.numpy())


def test_option_two_is_the_mean_local_gradient():
    """Of plain SGD with zero variates: what moved y, per step."""
    got = run(replace(METHOD, cohort=4), rounds=1)
    for i in range(4):
        same(got.memories[i]["control"], (START - trained(START, i, 0)) / (SGD.work(SIZES[i]) * SGD.lr))


def test_the_first_round_is_that_of_fedavg():
    got = run(METHOD, rounds=1).params
    same(got, run(fl.FedAvg(cohort=3, solver=SGD, server_lr=0.8, weight="uniform"), rounds=1).params.numpy())


def test_one_client_is_centralised_training():
    """With one client c = c_i, so that nothing is corrected."""
    x = START
    for r in range(3):
        x = trained(x, 0, r)
    same(run(replace(METHOD, server_lr=1.0), rounds=3, ids=[0]).params, x)


@pytest.mark.parametrize("option", ["I", "II"])
def test_it_reaches_the_optimum_where_fedavg_stalls(option):
    q, solver = quadratics(clients=6, samples=(1,) * 6, spread=3.0), fl.SGD(lr=0.2, steps=5)
    x = end(q, fl.Scaffold(cohort=3, solver=solver, option=option), 180)
    assert far(x, q.optimum) < 1e-9
    assert far(end(q, fl.FedAvg(cohort=6, solver=solver), 60), q.optimum) > 0.1


def test_it_minimises_the_plain_mean_whatever_clients_hold():
    q = quadratics(clients=4)
    x = end(q, fl.Scaffold(cohort=4, solver=fl.SGD(lr=0.2, steps=5)), 120)
    assert far(x, q.unweighted_optimum) < 1e-9
    assert far(x, q.optimum) > 0.1


def test_jobs_without_steps_change_nothing():
    got = run(replace(METHOD, solver=fl.SGD(steps=0)))
    same(got.params, START, 0)
    assert [(row["replies"], row["excluded"]) for row in got.rows] == [(3, 0)] * 2  # 0 / 0 would be left out, unseen
    assert not any(memory["control"].any() for memory in got.memories.values())


def test_adam_works_with_option_one():
    got = run(replace(METHOD, option="I", solver=fl.Adam(lr=0.01, batch_size=3)), rounds=2)
    assert bool(torch.isfinite(got.params).all())


@pytest.mark.parametrize(
    "solver",
    [fl.SGD(momentum=0.9), fl.SGD(weight_decay=0.1), fl.SGD(clip=1.0), fl.Adam()],
    ids=["momentum", "decay", "clip", "adam"],
)
def test_option_two_refuses_what_moves_y_otherwise(solver):
    with pytest.raises(fl.FedloomError, match="option II"):
        fl.Scaffold(solver=solver)
    fl.Scaffold(solver=solver, option="I")


def test_wrong_options_are_refused():
    with pytest.raises(fl.FedloomError, match="Known: I, II"):
        fl.Scaffold(option="III")  # type: ignore[arg-type]
