"""Quadratics: their optimum is one, and methods find what theory says they find."""

from __future__ import annotations

import numpy as np
import torch

import fedloom as fl
from fedloom.testing.problems import quadratics


def run(problem, rounds, **solver):
    method = fl.FedAvg(cohort=5, solver=fl.SGD(batch_size=99, **solver))
    return fl.run(method, problem.task, problem.federation, rounds, engine="sequential", dtype=torch.float64)


def test_optimum_has_no_gradient():
    p = quadratics()
    total = sum(n * p.gradient(i, p.optimum) for i, n in enumerate(p.samples))
    assert torch.allclose(total, torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert p.value(p.optimum) < p.value(p.optimum + 0.01)


def test_one_local_step_converges_to_the_optimum_linearly():
    p = quadratics(curvature=(0.5, 2.0))
    gaps = [float((run(p, r, lr=0.4, steps=1).params - p.optimum).norm()) for r in (20, 40)]
    assert gaps[1] < gaps[0] * (1 - 0.4 * 0.5) ** 20 * 1.01
    assert gaps[1] < 1e-3


def test_many_local_steps_stop_at_the_fixed_point_theory_gives():
    """FedAvg with K steps of size h solves sum_i n_i (I - (I - h A_i)^K) (w - b_i) = 0, not sum_i n_i grad f_i = 0."""
    p = quadratics()
    h, steps = 0.3, 4
    a, b, n = p.a.numpy(), p.b.numpy(), np.array(p.samples, dtype=float)
    pull = np.stack([np.eye(3) - np.linalg.matrix_power(np.eye(3) - h * m, steps) for m in a])
    fixed = np.linalg.solve(np.einsum("n,nij->ij", n, pull), np.einsum("n,nij,nj->i", n, pull, b))
    got = run(p, 150, lr=h, steps=steps).params.numpy()
    assert np.allclose(got, fixed, atol=1e-10)
    assert np.linalg.norm(fixed - p.optimum.numpy()) > 1e-3


def test_the_objective_is_the_run_s_loss():
    p = quadratics()
    out = run(p, 3, lr=0.1, steps=1)
    assert np.isclose(out.history["global.loss"].iloc[-1], p.value(out.params))
