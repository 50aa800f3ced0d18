"""FedStale against NumPy, its two ends, what is unbiased, and the card's experiment on noisy quadratics."""

from __future__ import annotations

import numpy as np
import pytest
from presence import TABLE, UNEVEN, share_of_rounds
from worked import SGD, START, N, run, same, trained

import fedloom as fl
from fedloom.keyed import choose


def worked_out(
    rounds: int, beta: float, k: int | None = None, equal: bool = False, lr: float = 1.0, floor: float = 0.02
) -> np.ndarray:
    a = np.full(4, 0.25) if equal else N / N.sum()
    x, h = START, np.zeros((4, len(START)))
    for r in range(rounds):
        here, p = [i for i in range(4) if i in TABLE[r % len(TABLE)]], np.maximum(share_of_rounds(r + 1), floor)
        if k is not None and k < len(here):
            p = p * k / len(here)
            here = [here[j] for j in choose(len(here), k, 0, "sample", r, 0)]
        new = {i: trained(x, i, r) - x for i in here}
        fresh = sum((a[i] / p[i] * (new[i] - beta * h[i]) for i in here), start=np.zeros_like(x))
        x = x + lr * (beta * a @ h + fresh)
        for i in here:
            h[i] = new[i]
    return x


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_rounds(beta):
    same(run(fl.FedStale(beta=beta, solver=SGD), rounds=8, world=UNEVEN).params, worked_out(8, beta))


def test_cohorts_and_equal_targets():
    method = fl.FedStale(beta=0.6, cohort=2, weight="uniform", solver=SGD)
    expected = worked_out(7, 0.6, k=2, equal=True)
    same(run(method, rounds=7, world=UNEVEN).params, expected)


def test_a_server_step_and_a_floor():
    method = fl.FedStale(beta=0.3, server_lr=0.4, floor=0.6, solver=SGD)
    same(run(method, rounds=8, world=UNEVEN).params, worked_out(8, 0.3, lr=0.4, floor=0.6))


def test_without_memory_it_is_inverse_availability():
    same(
        run(fl.FedStale(beta=0.0, cohort=2, solver=SGD), rounds=6, world=UNEVEN).params,
        run(fl.InverseAvailability(cohort=2, solver=SGD), rounds=6, world=UNEVEN).params.numpy(),
    )


def test_with_all_of_it_and_equal_targets_it_is_fedvarp():
    stale = run(fl.FedStale(beta=1.0, cohort=2, weight="uniform", solver=SGD), rounds=5).params
    same(stale, run(fl.FedVarp(cohort=2, solver=SGD), rounds=5).params.numpy())


def test_a_step_is_the_mixture_of_the_steps_of_its_ends():
    """Nothing is remembered in the first round, so that all start their second from one place."""

    def points(beta):
        return [run(fl.FedStale(beta=beta, cohort=2, solver=SGD), rounds=r).params.numpy() for r in (1, 2)]

    (first, fresh), (_, mixed), (_, stale) = points(0.0), points(0.3), points(1.0)
    np.testing.assert_allclose(mixed - first, 0.7 * (fresh - first) + 0.3 * (stale - first), atol=1e-12)
    assert np.abs(fresh - stale).max() > 1e-3


def test_nobody_there_moves_by_beta_times_the_memory():
    method = fl.FedStale(beta=0.4, solver=SGD)
    two, three = (run(method, rounds=r, world=UNEVEN) for r in (2, 3))
    same(three.params, (two.params + 0.4 * two.state.updates.mean).numpy())


@pytest.mark.parametrize("wrong", [{"beta": -0.1}, {"beta": 1.1}, {"floor": 0.0}])
def test_wrong_options(wrong):
    with pytest.raises(fl.FedloomError, match="FedStale"):
        fl.FedStale(**wrong)
