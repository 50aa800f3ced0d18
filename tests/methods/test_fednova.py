"""FedNova against NumPy for plain, momentum and proximal local work, its reduction, and its fixed point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, SIZES, START, N, cohort, covered, end, far, run, same, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.testing.problems import quadratics

METHOD = fl.FedNova(cohort=4, solver=SGD)


def weight_of_gradients(tau: int, momentum: float = 0.0, shrink: float = 0.0) -> float:
    """How much all gradients of a job count in its way, by running the local rule on gradients of one."""
    m = moved = 0.0
    for _ in range(tau):
        m = momentum * m + 1.0 - shrink * moved
        moved += m
    return moved


def worked_out(rounds: int, k: int = 4, solver: fl.SGD = SGD, mu: float = 0.0, fastest: int = 0) -> np.ndarray:
    x = START
    for r in range(rounds):
        chosen = cohort(r, k) if k < 4 else list(range(4))
        p = N[chosen] / N[chosen].sum()
        directions, norms = [], []
        for i in chosen:
            tau = solver.work(SIZES[i])
            if fastest:
                drawn = torch.randint(solver.epochs, fastest + 1, (), generator=generator(0, "epochs", i, r, 0))
                tau = int(drawn) * -(-SIZES[i] // solver.batch_size)
            y = trained(x, i, r, solver, tau, add=lambda w, x=x: mu * (w - x))
            norms.append(weight_of_gradients(tau, solver.momentum, solver.lr * mu))
            directions.append((y - x) / norms[-1])
        x = x + (p @ norms) * (p @ np.array(directions))
    return x


def test_three_rounds():
    same(run(METHOD, rounds=3).params, worked_out(3))


def test_cohorts():
    same(run(replace(METHOD, cohort=2), rounds=3).params, worked_out(3, k=2))


def test_momentum():
    solver = replace(SGD, momentum=0.6)
    same(run(replace(METHOD, solver=solver)).params, worked_out(2, solver=solver))


def test_proximal():
    same(run(replace(METHOD, mu=0.7)).params, worked_out(2, mu=0.7))


def test_drawn_epochs():
    same(run(replace(METHOD, fastest=5), rounds=3).params, worked_out(3, fastest=5))


@pytest.mark.parametrize("tau", [0, 1, 2, 7])
def test_weights_of_gradients(tau):
    for momentum, mu in ((0.0, 0.0), (0.9, 0.0), (0.0, 3.0)):
        method = fl.FedNova(solver=fl.SGD(lr=0.1, momentum=momentum), mu=mu)
        assert method.norm(tau) == pytest.approx(weight_of_gradients(tau, momentum, 0.1 * mu), abs=1e-12)


@pytest.mark.parametrize("solver", [fl.SGD(lr=0.2, steps=4, batch_size=3), fl.SGD(lr=0.1, steps=3, momentum=0.5)])
def test_with_equal_steps_it_is_fedavg(solver):
    nova = run(fl.FedNova(cohort=3, solver=solver), rounds=3).params
    same(nova, run(fl.FedAvg(cohort=3, solver=solver), rounds=3).params.numpy())


def test_jobs_without_steps_change_nothing():
    got = run(replace(METHOD, solver=fl.SGD(steps=0)))
    same(got.params, START, 0)
    assert [(row["replies"], row["excluded"]) for row in got.rows] == [(4, 0)] * 2  # 0 / 0 would be left out, unseen


def test_unequal_steps_hardly_move_its_fixed_point_and_that_of_fedavg_far():
    """Clients hold 1 .. 40 samples and do as many steps: FedAvg weighs with steps, FedNova with what the paper says."""
    q = quadratics(samples=(1, 2, 5, 20, 40))
    solver = fl.SGD(lr=0.005, batch_size=1)
    nova = end(q, fl.FedNova(cohort=5, solver=solver), 150)
    average = end(q, fl.FedAvg(cohort=5, solver=solver), 150)
    ways = covered(q, 0.005, q.samples)
    per_step = replace(ways, a=ways.a / torch.tensor(q.samples)[:, None, None])
    assert far(average, ways.optimum) < 1e-6
    assert far(nova, per_step.optimum) < 1e-6
    assert far(nova, q.optimum) < 0.1 * far(average, q.optimum)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mu": 0.1, "solver": fl.SGD(momentum=0.9)},
        {"mu": -1.0},
        {"mu": 10.0, "solver": fl.SGD(lr=0.1)},
        {"fastest": 2, "solver": fl.SGD(epochs=5)},
        {"solver": fl.Adam()},
    ],
    ids=["both", "push", "beyond", "slowest", "adam"],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="FedNova"):
        fl.FedNova(**wrong)
