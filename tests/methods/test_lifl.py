"""LIFL: the tree's sums worked out in NumPy, the same bits for any workers, and what it goes around."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import fedloom as fl
from fedloom.engines.fold import Tree
from fedloom.methods.optimisation.fedavg import FedAvgState
from fedloom.methods.systems.lifl import Lifl
from fedloom.testing import Trial, difference, outcome

SIZES = (18, 1, 10, 4, 13, 7, 9, 2, 30, 5, 6)


# ---------------------------------------------------------------- in NumPy


@dataclass(frozen=True)
class Telling(fl.Method):
    """Clients send numbers of very different size, so that the order of a sum shows in its bits."""

    card = replace(fl.FedAvg.card, id="telling")
    mean: bool = True

    def start(self, clients, before=None):
        return FedAvgState(params=torch.zeros(5))

    async def local(self, client):
        return fl.Message(update=torch.from_numpy(update(client.id)), share=float(1 + client.id % 3))

    def round(self, state, clients):
        ask = clients.mean if self.mean else clients.sum
        got = ask(self.local, weight="share")
        return replace(state, params=state.params + got.update)


def update(i):
    return (np.random.default_rng(i).standard_normal(5) * 10.0 ** (i % 7)).astype(np.float32)


def by_hand(samples, fan_in):
    """Leaves of clients from the largest to the smallest, cut as evenly as can be; then neighbours, level by level."""
    n = len(samples)
    order = sorted(range(n), key=lambda i: (-samples[i], i))
    leaves = -(-n // fan_in)
    level = []
    for k in range(leaves):
        members = order[n * k // leaves : n * (k + 1) // leaves]
        assert len(members) <= fan_in
        total = np.float32(1 + members[0] % 3) * update(members[0])
        for i in members[1:]:
            total = total + np.float32(1 + i % 3) * update(i)
        level.append(total)
    while len(level) > 1:
        level = [level[k] + level[k + 1] if k + 1 < len(level) else level[k] for k in range(0, len(level), 2)]
    return level[0]


@pytest.mark.parametrize("fan_in", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("mean", [True, False])
def test_two_rounds_in_numpy(fan_in, mean):
    """In float32 the plain sum of these numbers is another one: the tree is where it is said to be."""
    method = Lifl(inner=Telling(mean=mean), fan_in=fan_in)
    run = Trial(method).run(sizes=SIZES, rounds=2, dtype=torch.float32)
    samples = [run.plan.federation.size(i) for i in range(len(SIZES))]
    total = by_hand(samples, fan_in)
    got = total / np.float32(sum(1 + i % 3 for i in range(len(SIZES)))) if mean else total
    # a multiply-add rounded once instead of twice is all that may differ
    scale = np.abs([update(i) for i in range(len(SIZES))]).max(0)
    assert np.abs(run.params.numpy() - 2 * got).max() <= 1e-6 * scale.max()
    if fan_in == 1:  # nothing is multiplied and added in one step: to the last bit
        assert np.array_equal(run.params.numpy(), got + got)


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("inner", [fl.FedAvg(), fl.Scaffold()])
def test_any_number_of_workers_gives_the_same_bits(inner, monkeypatch):
    monkeypatch.setattr("fedloom.training.stacked.best_path", lambda requests: ("stacked", "not measured here"))

    def played(engine, workers=None):
        return Trial(Lifl(inner=inner, fan_in=4)).run(sizes=SIZES, rounds=3, engine=engine, workers=workers)

    alone = outcome(played("pool", 1))
    for workers in (2, 3):
        assert difference(alone, outcome(played("pool", workers)), 0.0) == ""
    assert difference(alone, outcome(played("sequential")), 1e-9) == ""


@pytest.mark.parametrize("fan_in", [1, 2, 5, 8])
def test_it_is_the_method_inside(fan_in):
    for inner in (fl.FedAvg(), fl.Scaffold(), fl.FedProx()):
        one, other = Trial(inner).run(), Trial(Lifl(inner=inner, fan_in=fan_in)).run()
        assert difference(one.state, other.state.inner, 1e-12) == ""
        assert difference(one.memories, other.memories, 1e-12) == ""
        assert [r["bytes_up"] for r in one.rows] == [r["bytes_up"] for r in other.rows]


def test_one_leaf_is_the_flat_sum():
    """Of up to 32 clients that are not stacked, to the last bit what one server adds up in that order."""
    run = Trial(Lifl(inner=Telling(), fan_in=20)).run(sizes=SIZES, rounds=1, dtype=torch.float32)
    flat = Trial(Telling()).run(sizes=SIZES, rounds=1, dtype=torch.float32)
    assert torch.equal(run.params, flat.params)


def test_few_sums_are_held(monkeypatch):
    held, plain = [], Tree.add

    def counted(self, place, sums):
        plain(self, place, sums)
        held.append(self.held)

    monkeypatch.setattr(Tree, "add", counted)
    Trial(Lifl(inner=Telling(), fan_in=1)).run(sizes=(2,) * 64, rounds=1)
    assert len(held) == 64
    assert max(held) == 6


# ---------------------------------------------------------------- what it goes around


@pytest.mark.parametrize("name", ["fedbuff", "dpsgd", "feddisco"])
def test_methods_without_sums_are_refused(name):
    with pytest.raises(fl.FedloomError, match=r"clients\.mean or clients\.sum alone"):
        Lifl(inner=fl.catalogue()[name]())


def test_within_a_method_that_hears_replies():
    method = fl.catalogue()["feddisco"](inner=Lifl(inner=fl.FedAvg(), fan_in=2))
    plain = Trial(fl.catalogue()["feddisco"](inner=fl.FedAvg())).run()
    assert difference(plain.params, Trial(method).run().params, 1e-12) == ""


def test_a_fan_in_of_none():
    with pytest.raises(fl.FedloomError, match="at least 1 update"):
        Lifl(fan_in=0)
