"""FedAMD against NumPy: roles, the gradients of clients that are away, and gradient descent where it reduces to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from corrected import recursed
from worked import SGD, START, cohort, end, far, gradient, run, same

import fedloom as fl
from fedloom.keyed import generator
from fedloom.testing.problems import quadratics

AMD = fl.FedAmd(cohort=3, anchors=(0.3, 0.6), solver=SGD, server_lr=0.8)


def roles(r: int, p: float) -> tuple[list[int], list[int]]:
    """Anchors and miners of a round of seed 0; everybody anchors first."""
    if r == 0:
        return [0, 1, 2, 3], []
    chosen = cohort(r, 3)
    draws = torch.rand(3, generator=generator(0, "roles", r, 0)).tolist()
    return [i for i, u in zip(chosen, draws) if u < p], [i for i, u in zip(chosen, draws) if u >= p]


def test_six_rounds():
    x, v, mixed = START, np.zeros((4, 12)), 0
    for r in range(6):
        anchors, miners = roles(r, (0.3, 0.6)[r % 2])
        mixed += bool(anchors and miners)
        before, g = x, v.mean(0)
        if miners:
            x = x + 0.8 * np.mean([recursed(x, g, i, r) - x for i in miners], axis=0)
        for i in anchors:
            v[i] = gradient(before, i)
    assert mixed > 1
    got = run(AMD, rounds=6)
    same(got.params, x)
    same(got.state.gradients.mean, v.mean(0))
    for i in range(4):
        same(got.state.gradients.of[i], v[i])


def test_every_mining_round_is_a_step_of_gradient_descent():
    """Everybody there, one step, and anchors in every other round."""
    x, solver = START, fl.SGD(lr=0.3, steps=1)
    for _ in range(3):
        x = x - 0.8 * 0.3 * np.mean([gradient(x, i) for i in range(4)], axis=0)
    same(run(replace(AMD, cohort=4, anchors=(1.0, 0.0), solver=solver), rounds=6).params, x)


def test_anchors_alone_move_nothing():
    same(run(replace(AMD, anchors=(1.0,)), rounds=4).params, START, 0)


def test_it_reaches_the_optimum_of_the_plain_mean():
    q, solver = quadratics(), fl.SGD(lr=0.2, steps=5)
    x = end(q, fl.FedAmd(cohort=5, anchors=(1.0, 0.0), solver=solver), 60)
    assert far(x, q.unweighted_optimum) < 1e-4
    assert far(end(q, fl.FedAvg(cohort=5, weight="uniform", solver=solver), 20), q.unweighted_optimum) > 1e-2


@pytest.mark.parametrize(
    "wrong",
    [{"anchors": ()}, {"anchors": (1.1,)}, {"solver": fl.SGD(momentum=0.9)}, {"solver": fl.Adam()}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match=r"FedA"):
        fl.FedAmd(**wrong)


def test_an_earlier_run_among_more_clients_speaks_for_those_that_are_still_there():
    first = run(AMD, rounds=3)
    known = run(AMD, rounds=0, ids=range(2), before=first).state.gradients
    assert set(known.of) == {0, 1}
    same(known.mean, ((first.state.gradients.of[0] + first.state.gradients.of[1]) / 2).numpy())
