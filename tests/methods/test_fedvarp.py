"""FedVARP against NumPy, its reduction, the mean it keeps, static clients, and its fixed point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from presence import UNEVEN, written
from worked import SGD, START, cohort, covered, end, far, run, same, trained

import fedloom as fl
from fedloom.testing.problems import quadratics

METHOD = fl.FedVarp(cohort=2, solver=SGD)


def worked_out(rounds: int, k: int, lr: float = 1.0) -> np.ndarray:
    x, h = START, np.zeros((4, len(START)))
    for r in range(rounds):
        chosen = cohort(r, k) if k < 4 else list(range(4))
        new = {i: trained(x, i, r) - x for i in chosen}
        x = x + lr * (h.mean(0) + np.mean([new[i] - h[i] for i in chosen], axis=0))
        for i in chosen:
            h[i] = new[i]
    return x


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rounds(k):
    same(run(fl.FedVarp(cohort=k, solver=SGD), rounds=5).params, worked_out(5, k))


def test_a_server_step():
    same(run(fl.FedVarp(cohort=2, solver=SGD, server_lr=0.4), rounds=4).params, worked_out(4, 2, 0.4))


def test_with_everybody_it_is_fedavg():
    everybody = run(fl.FedVarp(cohort=4, solver=SGD), rounds=3).params
    same(everybody, run(fl.FedAvg(cohort=4, solver=SGD, weight="uniform"), rounds=3).params.numpy())


def test_the_mean_it_keeps_is_that_of_what_it_remembers():
    state = run(METHOD, rounds=6).state
    mean = sum(state.updates.of.values(), torch.zeros_like(state.params)) / 4
    same(state.updates.mean, mean.numpy())


def test_nobody_there_moves_by_what_is_remembered():
    done = run(METHOD, rounds=3, world=UNEVEN)  # nobody in the third round
    before = run(METHOD, rounds=2, world=UNEVEN)
    same(done.params, (before.params + before.state.updates.mean).numpy())


@pytest.mark.parametrize("method", [METHOD, fl.Mifa(solver=SGD)])
def test_an_earlier_run_among_more_clients_speaks_for_those_that_are_still_there(method):
    first = run(method, rounds=4)
    updates = run(method, rounds=0, ids=range(2), before=first).state.updates
    assert set(first.state.updates.of) > set(updates.of) == {0, 1}
    same(updates.mean, ((first.state.updates.of[0] + first.state.updates.of[1]) / 2).numpy())


def test_constant_updates_become_exact_after_one_visit_to_each():
    """Clients whose update never changes: after one visit to each, every step is the mean of all, whoever is drawn."""
    q = quadratics(clients=4, samples=(1, 1, 1, 1))

    class Linear(fl.FedVarp):
        async def local(self, client, params):
            return fl.Message(delta=client.data.x[0])

    world = written((0,), (1,), (2,), (3,), (2,), (0,))
    method = Linear(cohort=4)
    ends = [fl.run(method, q.task, q.federation, rounds=r, world=world, dtype=torch.float64).params for r in (4, 5, 6)]
    same(ends[1] - ends[0], q.b.mean(0).numpy())
    same(ends[2] - ends[1], q.b.mean(0).numpy())


def test_it_comes_to_rest_where_full_participation_does():
    """One of four clients a round and a constant step: no noise is left, where FedAvg keeps jumping."""
    q = quadratics(clients=4)
    solver = fl.SGD(lr=0.05, steps=5)
    rest = covered(q, 0.05, 5).unweighted_optimum
    assert far(end(q, fl.FedVarp(cohort=1, solver=solver, server_lr=0.5), 120), rest) < 1e-3
    assert far(end(q, fl.FedAvg(cohort=1, solver=solver, server_lr=0.5), 120), rest) > 1e-2
