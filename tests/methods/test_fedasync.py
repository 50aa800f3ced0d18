"""FedAsync against an event loop of our own, its discounts, and what it reduces to."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest
from worked import SGD, SIZES, START, run, same, trained

import fedloom as fl
from fedloom.methods.systems.staleness import discount

WORLD = fl.World(step_seconds=1.0, spread=0.8, latency=0.05)
METHOD = fl.FedAsync(concurrency=4, alpha=0.7, rho=0.3, solver=SGD)


def worked_out(rounds: int, s, alpha: float = 0.7, rho: float = 0.3) -> tuple[np.ndarray, list[int]]:
    """Every arrival is a server step, and its client starts again from the new model."""
    x, now, number, taus = START, 0.0, 0, []
    events: list[tuple[float, int, int, int, np.ndarray]] = []
    free = list(range(4))
    for version in range(rounds):
        for i in free:
            took = SGD.work(SIZES[i]) * WORLD.device(i).step_seconds + 2 * WORLD.latency
            y = trained(x, i, version, add=lambda w, x=x: rho * (w - x))
            heapq.heappush(events, (now + took, number, i, version, y))
            number += 1
        now, _, i, sent, y = heapq.heappop(events)
        taus.append(version - sent)
        mix = alpha * s(version - sent)
        x = (1 - mix) * x + mix * y
        free = [i]
    return x, taus


def test_ten_arrivals():
    x, taus = worked_out(10, lambda tau: (1 + tau) ** -0.5)
    same(run(METHOD, rounds=10, world=WORLD).params, x)
    assert max(taus) > 2


@pytest.mark.parametrize("kind", ["constant", "hinge"])
def test_other_discounts(kind):
    x, _ = worked_out(10, lambda tau: 1.0 if kind == "constant" or tau <= 1 else 1 / (10 * (tau - 1) + 1))
    same(run(replace(METHOD, staleness=kind, a=10.0, b=1.0), rounds=10, world=WORLD).params, x)


def test_discounts():
    assert [discount("constant", tau) for tau in (0, 9)] == [1, 1]
    assert [discount("polynomial", tau, 0.5) for tau in (0, 3)] == [1, 0.5]
    assert [discount("hinge", tau, 10, 4) for tau in (0, 4, 5)] == [1, 1, 1 / 11]


def test_hinge_bends_at_b_and_does_not_jump():
    assert discount("hinge", 4 + 1e-9, 10, 4) == pytest.approx(1.0)  # type: ignore[arg-type]


def test_replies_that_are_too_old_are_dropped():
    x, taus = worked_out(10, lambda tau: (1 + tau) ** -0.5 if tau <= 2 else 0.0)
    assert max(taus) > 2
    same(run(replace(METHOD, oldest=2), rounds=10, world=WORLD).params, x)


def test_one_client_and_full_weight_is_local_training():
    x = START
    for r in range(3):
        x = trained(x, 0, r)
    same(run(fl.FedAsync(alpha=1.0, rho=0.0, solver=SGD), rounds=3, ids=[0]).params, x)


def test_replies_of_one_instant_are_mixed_one_by_one():
    solver = fl.SGD(lr=0.2, steps=3, batch_size=3)
    got = run(replace(METHOD, solver=solver, rho=0.0), rounds=4, world=fl.World())
    x = START
    for tau in range(4):
        mix = 0.7 * (1 + tau) ** -0.5
        x = (1 - mix) * x + mix * trained(START, tau, 0, solver)
    same(got.params, x)
    assert got.host.now == pytest.approx(0.03)


def test_no_more_jobs_are_under_way_than_allowed():
    got = run(replace(METHOD, concurrency=2), rounds=6, world=WORLD)
    arrived = sum(row["replies"] for row in got.rows)
    assert arrived == 6
    assert got.host.posted - arrived == len(got.host.dispatch.jobs) == 1  # the next is sent when the next round begins


def test_nobody_there_is_a_legal_round():
    same(run(METHOD, world=fl.World(present=1e-12)).params, START, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": 1.1},
        {"rho": -1.0},
        {"concurrency": 0},
        {"staleness": "old"},
        {"b": -1.0},
        {"oldest": -1},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match=r"FedAsync|staleness"):
        fl.FedAsync(**wrong)
