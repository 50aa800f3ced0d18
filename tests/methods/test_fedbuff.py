"""FedBuff against an event loop of our own, its ties, and what it reduces to."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

import numpy as np
import pytest
from worked import SGD, SIZES, START, run, same, trained

import fedloom as fl

WORLD = fl.World(step_seconds=1.0, spread=0.8, latency=0.05)
METHOD = fl.FedBuff(concurrency=4, buffer=2, solver=SGD, server_lr=0.7)


def worked_out(rounds: int, buffer: int, discount, server_lr: float = 0.7) -> tuple[np.ndarray, float, list[int]]:
    """All four clients always at work: x after some server steps, the time, and every staleness."""
    x, now, taus, numbers = START, 0.0, [], itertools.count()
    events: list[tuple[float, int, int, int, np.ndarray]] = []  # end, number, client, version, model sent
    turns: dict[tuple[int, int], int] = {}

    def send(i: int, version: int) -> None:
        turn = turns[i, version] = turns.get((i, version), -1) + 1
        took = SGD.work(SIZES[i]) * WORLD.device(i).step_seconds + 2 * WORLD.latency
        y = trained(x, i, version, turn=turn)
        heapq.heappush(events, (now + took, next(numbers), i, version, y - x))

    free = list(range(4))
    for version in range(rounds):
        update, got = np.zeros(12), 0
        while got < buffer:
            for i in sorted(free):
                send(i, version)
            free = []
            now, _, i, sent, delta = heapq.heappop(events)
            taus.append(version - sent)
            update = update + discount(version - sent) * delta
            free.append(i)
            got += 1
        x = x + server_lr * update / buffer
    return x, now, taus


@pytest.mark.parametrize("buffer", [1, 2, 3])
def test_seven_server_steps(buffer):
    x, now, taus = worked_out(7, buffer, lambda tau: (1 + tau) ** -0.5)
    got = run(replace(METHOD, buffer=buffer), rounds=7, world=WORLD)
    same(got.params, x)
    assert got.host.now == pytest.approx(now)
    assert max(taus) > 0


def test_staleness_can_be_left_out_or_cut_off():
    plain, _, _ = worked_out(6, 2, lambda tau: 1.0)
    same(run(replace(METHOD, staleness="constant"), rounds=6, world=WORLD).params, plain)
    hinge, _, _ = worked_out(6, 2, lambda tau: 1.0 if tau <= 4 else 1 / (0.5 * (tau - 4) + 1))
    same(run(replace(METHOD, staleness="hinge"), rounds=6, world=WORLD).params, hinge)


def test_with_all_clients_in_step_it_is_fedavg():
    """Equal durations, buffer = concurrency = everybody: nobody is ever stale."""
    solver = fl.SGD(lr=0.2, steps=3, batch_size=3)
    buff = run(fl.FedBuff(concurrency=4, buffer=4, solver=solver), rounds=3, world=fl.World())
    avg = run(fl.FedAvg(cohort=4, solver=solver, weight="uniform"), rounds=3, world=fl.World())
    same(buff.params, avg.params.numpy())
    assert buff.host.now == pytest.approx(avg.host.now)


def test_replies_of_one_instant_fill_one_buffer_after_the_other():
    """Four arrive together, two make a step: the other two are in the next one, one version old."""
    solver = fl.SGD(lr=0.2, steps=3, batch_size=3)
    got = run(fl.FedBuff(concurrency=4, buffer=2, solver=solver), rounds=2, world=fl.World())
    delta = [trained(START, i, 0, solver) - START for i in range(4)]
    same(got.params, START + (delta[0] + delta[1]) / 2 + (delta[2] + delta[3]) / 2 / np.sqrt(2))
    assert got.host.now == pytest.approx(0.03)


def test_no_more_jobs_are_under_way_than_allowed():
    got = run(replace(METHOD, concurrency=2, buffer=3), rounds=5, world=WORLD)
    posted, arrived = got.host.posted, sum(row["replies"] for row in got.rows)
    assert arrived == 15
    assert posted - arrived <= 2


def test_nobody_there_is_a_legal_round():
    same(run(METHOD, world=fl.World(present=1e-12)).params, START, 0)


@pytest.mark.parametrize("wrong", [{"buffer": 0}, {"concurrency": 0}, {"staleness": "old"}, {"a": -1.0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match=r"FedBuff|staleness"):
        fl.FedBuff(**wrong)
