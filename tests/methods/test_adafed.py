"""AdaFed against NumPy, its weights' sum, and what it is when everybody is there equally often."""

from __future__ import annotations

import numpy as np
from presence import TABLE, UNEVEN, share_of_rounds, written
from worked import SGD, START, N, end, far, run, same, trained

import fedloom as fl
from fedloom.keyed import choose
from fedloom.testing.problems import quadratics

METHOD = fl.AdaFed(solver=SGD)


def test_rounds():
    x = START
    for r in range(8):
        here = TABLE[r % len(TABLE)]
        pi = np.maximum(share_of_rounds(r + 1), 0.02)
        w = np.array([N[i] / pi[i] for i in here])
        if len(here):
            x = x + (w / w.sum()) @ np.array([trained(x, i, r) - x for i in here])
    same(run(METHOD, rounds=8, world=UNEVEN).params, x)


def test_a_cohort_equal_targets_and_a_server_step():
    """Of those that are there an equal draw, whose chances are alike and drop out of the mean."""
    x = START
    for r in range(8):
        here = TABLE[r % len(TABLE)]
        here = [here[j] for j in choose(len(here), 2, 0, "sample", r, 0)] if len(here) > 2 else here
        w = 1 / np.array(share_of_rounds(r + 1))[list(here)]
        if len(here):
            x = x + 0.4 * (w / w.sum()) @ np.array([trained(x, i, r) - x for i in here])
    method = fl.AdaFed(cohort=2, weight="uniform", server_lr=0.4, solver=SGD)
    same(run(method, rounds=8, world=UNEVEN).params, x)


def test_with_everybody_there_it_is_fedavg():
    same(run(METHOD, rounds=3).params, run(fl.FedAvg(cohort=4, solver=SGD), rounds=3).params.numpy())


def test_equally_frequent_clients_are_weighed_as_fedavg_does():
    world = written((0, 1), (2, 3))
    fed = run(fl.FedAvg(cohort=4, solver=SGD), rounds=4, world=world).params
    first_round_knows_only_two = run(METHOD, rounds=4, world=world).params
    same(first_round_knows_only_two, fed.numpy())


def test_it_is_less_biased_than_fedavg_over_those_there():
    q = quadratics(clients=4, samples=(2, 2, 2, 2))
    world = written((0, 1, 2, 3), (0, 1))
    solver = fl.SGD(lr=0.05, steps=1)
    ada = end(q, fl.AdaFed(solver=solver), 150, world=world)
    biased = end(q, fl.FedAvg(cohort=4, solver=solver), 150, world=world)
    assert far(ada, q.optimum) < 0.7 * far(biased, q.optimum)


def test_its_variance_is_bounded_where_the_unbiased_sum_is_not():
    """A client seen once in fifty rounds moves the model as far as itself, not fifty times as far."""
    world = written(*[(0, 1)] * 49, (0, 1, 2, 3))
    x = run(METHOD, rounds=50, world=world)
    before = run(METHOD, rounds=49, world=world).params.numpy()
    step = np.abs(x.params.numpy() - before).max()
    longest = max(np.abs(trained(before, i, 49) - before).max() for i in range(4))
    assert step <= longest + 1e-12
