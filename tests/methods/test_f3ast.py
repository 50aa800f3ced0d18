"""F3AST against NumPy: who is furthest behind, what each counts for, and rates that follow what happened."""

from __future__ import annotations

import numpy as np
import pytest
from orders import overheard
from presence import TABLE, UNEVEN, written
from worked import SGD, START, N, Softmax, end, far, federation, run, same, trained

import fedloom as fl
from fedloom.testing.problems import quadratics

TASK = fl.Classification(model=Softmax)
SHARES = N / N.sum()


def worked_out(
    rounds: int, k: int, beta: float, a: np.ndarray = SHARES, lr: float = 1.0
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    x, r, chosen = START, np.full(4, k / 4), []
    for t in range(rounds):
        here = sorted(TABLE[t % len(TABLE)], key=lambda i: -a[i] / r[i])[:k]
        x = x + lr * np.sum([a[i] / r[i] * (trained(x, i, t) - x) for i in here], axis=0) if here else x
        r = (1 - beta) * r + beta * np.isin(range(4), here)
        chosen.append(sorted(here))
    return x, r, chosen


def test_rounds():
    x, r, chosen = worked_out(9, k=2, beta=0.3)
    done, heard = overheard(fl.F3ast(cohort=2, beta=0.3, solver=SGD), TASK, federation(), rounds=9, world=UNEVEN)
    assert [sorted({h.client for h in heard if h.round == t}) for t in range(9)] == chosen
    same(done.params, x)
    np.testing.assert_allclose(done.state.rates.numpy(), r, atol=1e-12)


def test_equal_targets_and_a_server_step():
    x, _, _ = worked_out(9, k=4, beta=0.3, a=np.full(4, 0.25), lr=0.4)
    method = fl.F3ast(cohort=4, beta=0.3, weight="uniform", server_lr=0.4, solver=SGD)
    same(run(method, rounds=9, world=UNEVEN).params, x)


def test_rates_become_the_shares_of_rounds_they_can():
    """Two of four a round, all there: rates go towards those that make sum a^2 / r least, in proportion to a."""
    done = run(fl.F3ast(cohort=1, beta=0.05, solver=SGD, weight="samples"), rounds=250)
    np.testing.assert_allclose(done.state.rates.numpy(), N / N.sum(), atol=0.06)


def test_with_everybody_there_and_asked_it_is_fedavg():
    method = fl.F3ast(cohort=4, solver=SGD)
    same(run(method, rounds=3).params, run(fl.FedAvg(cohort=4, solver=SGD), rounds=3).params.numpy())


def test_it_ends_nearer_the_optimum_of_everybody():
    q = quadratics(clients=4, samples=(2, 2, 2, 2))
    world = written((0, 1, 2, 3), (0, 1))
    solver = fl.SGD(lr=0.04, steps=1)
    f3ast = end(q, fl.F3ast(cohort=2, beta=0.05, solver=solver), 200, world=world)
    biased = end(q, fl.FedAvg(cohort=2, solver=solver), 200, world=world)
    assert far(f3ast, q.optimum) < 0.5 * far(biased, q.optimum)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": 1.0}, {"cohort": 0}])
def test_wrong_options(wrong):
    with pytest.raises(fl.FedloomError, match="F3ast"):
        fl.F3ast(**wrong)
