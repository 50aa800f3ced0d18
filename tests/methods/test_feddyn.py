"""FedDyn against NumPy, its invariant, and the optimum that FedAvg misses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, START, cohort, end, far, run, same, trained

import fedloom as fl
from fedloom.testing.problems import quadratics
from fedloom.testing.trial import Trial

METHOD = fl.FedDyn(cohort=3, alpha=0.3, solver=SGD)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_three_rounds(clip):
    solver, alpha = replace(SGD, clip=clip), 0.3
    x, h, g = START, np.zeros(12), np.zeros((4, 12))
    mean = x
    for r in range(3):
        models = []
        for i in cohort(r, 3):
            y = trained(x, i, r, solver, add=lambda w, x=x, i=i: alpha * (w - x) - g[i])
            g[i] -= alpha * (y - x)
            models.append(y)
        h = h - alpha / 4 * np.sum([y - x for y in models], axis=0)
        mean = np.mean(models, axis=0)
        x = mean - h / alpha
    got = run(replace(METHOD, solver=solver), rounds=3)
    same(got.state.params, x)
    same(got.state.h, h)
    same(got.state.mean, mean)
    for i, memory in got.memories.items():
        same(memory["linear"], g[i])


def test_h_is_the_mean_of_all_linear_terms():
    got = run(replace(METHOD, cohort=2), rounds=5)
    same(got.state.h, sum(memory["linear"] for memory in got.memories.values()).numpy() / 4)


@pytest.mark.parametrize("cohort", [6, 3])
def test_it_reaches_the_optimum_where_fedavg_stalls(cohort):
    q, solver = quadratics(clients=6, samples=(1,) * 6, spread=3.0), fl.SGD(lr=0.2, steps=5)
    assert far(end(q, fl.FedDyn(cohort=cohort, alpha=0.7, solver=solver), 180), q.optimum) < 1e-7
    assert far(end(q, fl.FedAvg(cohort=6, solver=solver), 60), q.optimum) > 0.1


def test_at_the_optimum_linear_terms_are_gradients():
    q = quadratics(clients=4, samples=(1,) * 4)
    got = fl.run(fl.FedDyn(cohort=4, alpha=0.7, solver=fl.SGD(lr=0.2, steps=5)), q.task, q.federation, rounds=200,
                 dtype=torch.float64, evaluate_every=0, engine="sequential")  # fmt: skip
    for i, memory in got.memories.items():
        assert far(memory["linear"], q.gradient(i, q.optimum)) < 1e-7
    assert float(got.state.h.norm()) < 1e-7
    assert far(got.state.mean, got.params) < 1e-7


def test_exact_local_work_is_the_papers_closed_form():
    """argmin f_i(y) - <g, y> + alpha/2 |y - x|^2 = (A + alpha)^-1 (A b + g + alpha x); then g is grad f_i(y)."""
    q, alpha = quadratics(clients=3, samples=(1,) * 3), 1.0
    x, h, g = q.start, torch.zeros(3), torch.zeros(3, 3, dtype=torch.float64)
    one = torch.eye(3, dtype=torch.float64)
    for _ in range(4):
        y = [torch.linalg.solve(q.a[i] + alpha * one, q.a[i] @ q.b[i] + g[i] + alpha * x) for i in range(3)]
        g = torch.stack([q.gradient(i, y[i]) for i in range(3)])
        h = g.mean(0)
        x = torch.stack(y).mean(0) - h / alpha
    got = end(q, fl.FedDyn(cohort=3, alpha=alpha, solver=fl.SGD(lr=0.4, steps=60)), 4)
    assert far(got, x) < 1e-9


def test_both_models_are_judged():
    got = Trial(fl.FedDyn(cohort=4, alpha=0.3)).reference
    look = got.host.clients.evaluate
    views = got.plan.method.evaluate(got.state, got.host.clients)
    assert {k: dict(v) for k, v in views.items()} == {
        "global": dict(look(got.state.params)),
        "mean": dict(look(got.state.mean)),
    }
    assert views["global"]["loss"] != views["mean"]["loss"]


@pytest.mark.parametrize("alpha", [0.0, -0.1])
def test_wrong_options_are_refused(alpha):
    with pytest.raises(fl.FedloomError, match="alpha > 0"):
        fl.FedDyn(alpha=alpha)
