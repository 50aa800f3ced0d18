"""FedProx against NumPy: the pull, partial work, what is dropped, and what it reduces to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, START, N, cohort, covered, end, far, run, same, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.testing.problems import quadratics

PROX = fl.FedProx(cohort=4, mu=0.7, solver=SGD)


def part(i: int, round: int, chance: float, parts: int) -> int | None:
    """The part of its work a client can do, None for all: drawn as the docstring says."""
    rng = generator(0, "straggler", i, round, 0)
    straggles = float(torch.rand((), generator=rng)) < chance
    return int(torch.randint(1, parts + 1, (), generator=rng)) if straggles else None


def test_two_rounds():
    x = START
    for r in range(2):
        x = np.average([trained(x, i, r, add=lambda w, x=x: 0.7 * (w - x)) for i in range(4)], axis=0, weights=N)
    same(run(PROX).params, x)


def test_stragglers_do_some_of_their_epochs_and_count():
    x, seen = START, set()
    solver = replace(SGD, epochs=5)
    for r in range(3):
        models = []
        for i in range(4):
            epochs = part(i, r, 0.6, 5)
            seen.add(epochs)
            steps = None if epochs is None else epochs * -(-int(N[i]) // 3)
            models.append(trained(x, i, r, solver, steps, add=lambda w, x=x: 0.7 * (w - x)))
        x = np.average(models, axis=0, weights=N)
    assert None in seen
    assert len(seen) > 2
    same(run(replace(PROX, solver=solver, stragglers=0.6), rounds=3).params, x)


def test_where_the_solver_counts_steps_so_do_stragglers():
    x, solver = START, fl.SGD(lr=0.2, steps=4, batch_size=3)
    for r in range(2):
        steps = [part(i, r, 1.0, 4) for i in range(4)]
        x = np.average([trained(x, i, r, solver, steps[i]) for i in range(4)], axis=0, weights=N)
    same(run(replace(PROX, mu=0.0, solver=solver, stragglers=1.0)).params, x)


def test_dropped_stragglers_are_left_out_and_counted():
    x, late = START, 0
    for r in range(3):
        there = [i for i in range(4) if part(i, r, 0.5, 2) is None]
        late += 4 - len(there)
        if there:
            x = np.average([trained(x, i, r) for i in there], axis=0, weights=N[there])
    got = run(replace(PROX, mu=0.0, stragglers=0.5, drop=True), rounds=3)
    same(got.params, x)
    assert 0 < late == sum(row["excluded"] for row in got.rows)


def test_all_dropped_is_a_legal_round():
    same(run(replace(PROX, stragglers=1.0, drop=True)).params, START, 0)


def test_the_same_jobs_straggle_in_every_arm():
    arms = [replace(PROX, mu=mu, stragglers=0.5, drop=True) for mu in (0.0, 1.0)]
    a, b = ([row["excluded"] for row in run(m, rounds=6).rows] for m in arms)
    assert a == b
    assert len(set(a)) > 1


def test_without_pull_and_stragglers_it_is_fedavg_bit_for_bit():
    for weight in ("samples", "uniform"):
        prox = run(replace(PROX, cohort=3, mu=0.0, weight=weight), rounds=3)
        avg = run(fl.FedAvg(cohort=3, solver=SGD, weight=weight), rounds=3)
        assert torch.equal(prox.params, avg.params)


def test_a_strong_pull_keeps_clients_near():
    moved = [np.linalg.norm(run(replace(PROX, mu=mu), rounds=1).params.numpy() - START) for mu in (0.0, 1.0, 4.0)]
    assert moved[0] > moved[1] > moved[2] > 0


def test_its_fixed_point_is_nearer_the_optimum_than_that_of_fedavg():
    q, solver = quadratics(), fl.SGD(lr=0.2, steps=5)
    x = end(q, fl.FedProx(cohort=5, mu=2.0, solver=solver), 120)
    assert far(x, covered(q, 0.2, 5, pull=2.0).optimum) < 1e-9
    assert far(x, q.optimum) < 0.8 * far(covered(q, 0.2, 5).optimum, q.optimum)


def test_cohorts():
    x = START
    for r in range(3):
        chosen = cohort(r, 2)
        x = np.average([trained(x, i, r) for i in chosen], axis=0, weights=N[chosen])
    same(run(replace(PROX, cohort=2, mu=0.0), rounds=3).params, x)


@pytest.mark.parametrize("wrong", [{"mu": -0.1}, {"stragglers": 1.1}, {"stragglers": -0.1}, {"weight": "n"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match=r"FedProx|weight"):
        fl.FedProx(**wrong)
