"""FedKSeed against NumPy: two-point steps, a sum that replays them in any order, and bytes that no model changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard, rows
from torch import nn
from worked import SIZES, START, N, Softmax, X, Y, cohort, federation, same

import fedloom as fl
from fedloom.errors import ConfigError
from fedloom.keyed import generator
from fedloom.message import nbytes
from fedloom.methods.foundation.fedkseed import FedKSeedState
from fedloom.testing import tiny_federation
from fedloom.testing.trial import Trial

SOLVER = fl.SGD(lr=0.02, steps=7, batch_size=3)
KSEED = fl.FedKSeed(cohort=3, candidates=6, solver=SOLVER, eps=1e-3)
SOFTMAX = fl.Classification(model=Softmax)


def loss(w, i, index):
    z = X[i][index] @ w[:9].reshape(3, 3).T + w[9:]
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), Y[i][index]]).mean())


def z(seed):
    return torch.randn(12, generator=generator("direction", seed)).double().numpy()


def work(w, i, round, chance=None, clip=10.0):
    """Steps one after the other; the seeds and slopes of each, and where they end."""
    law = torch.ones(6) if chance is None else chance
    seeds = torch.multinomial(law, 7, replacement=True, generator=generator(0, "seeds", i, round, 0)).tolist()
    slopes = []
    for s, index in zip(seeds, rows(SIZES[i], SOLVER, i, round, 0)):
        rise = loss(w + 1e-3 * z(s), i, index) - loss(w - 1e-3 * z(s), i, index)
        slopes.append(rise / 2e-3 if abs(rise) <= clip else 0.0)
        w = w - SOLVER.lr * slopes[-1] * z(s)
    return seeds, slopes, w


def replayed(sums):
    return START - SOLVER.lr * sum(a * z(s) for s, a in enumerate(sums))


def test_rounds():
    sums = np.zeros(6)
    for r in range(3):
        w, members = replayed(sums), cohort(r, 3)
        for i in members:
            seeds, slopes, _ = work(w, i, r)
            np.add.at(sums, seeds, np.array(slopes) * N[i] / N[members].sum())
    got, _ = overheard(KSEED, SOFTMAX, federation(), rounds=3)
    same(got.state.sums, sums, 1e-9)  # differences of losses lose three digits
    same(KSEED.replay(got.plan.model, got.state.sums), replayed(sums), 1e-9)


def test_what_is_replayed_from_sums_is_what_the_client_reached_step_by_step():
    got, heard = overheard(replace(KSEED, cohort=1), SOFTMAX, federation(), rounds=1)
    _, _, w = work(START, heard[0].client, 0)
    same(KSEED.replay(got.plan.model, got.state.sums), w, 1e-10)

    seeds, slopes = [3, 1, 3, 5, 1, 3, 0], [0.4, -2.0, 0.3, 1.5, 0.1, -0.7, 2.2]
    w, sums = START, torch.zeros(6, dtype=torch.float64)
    for s, g in zip(seeds, slopes):
        w, sums[s] = w - SOLVER.lr * g * z(s), sums[s] + g
    same(KSEED.replay(got.plan.model, sums), w, 1e-12)
    order = torch.randperm(7).tolist()
    same(KSEED.replay(got.plan.model, sums), START - SOLVER.lr * sum(slopes[k] * z(seeds[k]) for k in order), 1e-12)


@pytest.mark.parametrize("model", ["softmax", "mlp:64,64"])
def test_a_round_is_under_18_kilobytes_whatever_the_model(model):
    """4,096 candidates and 200 steps: 4 * 4,096 + 8 * 200 = 17,984 bytes."""
    method = fl.FedKSeed(cohort=2, candidates=4096, solver=fl.SGD(lr=1e-3, steps=200, batch_size=1))
    task, data = fl.Classification(model=model), tiny_federation(dtype=torch.float32)
    _, heard = overheard(method, task, data, rounds=1, dtype=torch.float32)
    for h in heard:
        distinct = len(h.reply.seen.index)
        assert nbytes(h.payload) == 4 * 4096
        assert nbytes(h.reply) == 4 * distinct + min(4 * distinct, 512) <= 8 * 200
        assert nbytes(h.payload) + nbytes(h.reply) <= 17_984
    few, _ = overheard(replace(method, solver=fl.SGD(lr=1e-3, steps=5)), task, data, 1, dtype=torch.float32)
    assert few.summary["bytes_up"] <= 2 * 8 * 5


def test_pro_takes_a_seed_that_was_never_drawn_for_one_that_moves_nothing():
    size, draws = torch.tensor([4.0, 0.0, 1.0]), torch.tensor([2.0, 0.0, 1.0])
    state = FedKSeedState(sums=torch.zeros(3), size=size, draws=draws)
    assert torch.allclose(KSEED.chance(state), torch.tensor([1.0, 0.0, 0.5]).softmax(0))


def test_pro_prefers_seeds_that_moved_the_loss():
    pro = replace(KSEED, cohort=4, pro=True, pro_clip=5.0)
    sums, size, draws, chance = np.zeros(6), np.zeros(6), np.zeros(6), torch.ones(6, dtype=torch.float64) / 6
    for r in range(3):
        w, p = replayed(sums), N / N.sum()
        for i in range(4):
            seeds, slopes, _ = work(w, i, r, chance)
            for total, each in ((sums, slopes), (size, np.minimum(np.abs(slopes), 5.0)), (draws, np.ones(7))):
                np.add.at(total, seeds, p[i] * np.array(each))
        h = np.divide(size, draws, out=np.zeros(6), where=draws > 0)
        e = np.exp((h - h.min()) / (h.max() - h.min()))
        chance = torch.from_numpy(e / e.sum())
    got, heard = overheard(pro, SOFTMAX, federation(), rounds=3)
    same(got.state.sums, sums, 1e-8)
    same(pro.chance(got.state), chance.numpy(), 1e-8)
    assert float(chance.max() / chance.min()) == pytest.approx(np.e)
    assert nbytes(heard[0].payload) == 2 * 8 * 6


def test_steps_that_are_too_large_or_not_finite_are_skipped():
    got, _ = overheard(replace(KSEED, clip=1e-9), SOFTMAX, federation(), rounds=2)
    assert not got.state.sums.any()
    w, members, sums = START, cohort(0, 3), np.zeros(6)
    for i in members:
        seeds, slopes, _ = work(w, i, 0, clip=1e-3)
        np.add.at(sums, seeds, np.array(slopes) * N[i] / N[members].sum())
    some, _ = overheard(replace(KSEED, clip=1e-3), SOFTMAX, federation(), rounds=1)
    same(some.state.sums, sums, 1e-9)


def test_skipped_steps_say_nothing_about_their_seeds():
    clip = 2.5e-3  # of |f(w+) - f(w-)|: some steps are skipped, and some are not
    got, _ = overheard(replace(KSEED, cohort=4, pro=True, clip=clip), SOFTMAX, federation(), rounds=1)
    size, draws = np.zeros(6), np.zeros(6)
    for i in range(4):
        seeds, slopes, _ = work(START, i, 0, torch.ones(6) / 6, clip)
        np.add.at(size, seeds, np.abs(slopes) * N[i] / N.sum())
        np.add.at(draws, seeds, (np.array(slopes) != 0) * N[i] / N.sum())
    assert 0 < draws.sum() < 6
    same(got.state.draws, draws)
    same(got.state.size, size, 1e-9)


def test_what_is_judged_is_what_the_sums_replay():
    got = Trial(fl.FedKSeed(cohort=4, candidates=8, solver=fl.SGD(lr=0.05, steps=4, batch_size=4))).reference
    method, model, clients = got.plan.method, got.plan.model, got.host.clients
    w = model.initial()
    for seed, a in enumerate(got.state.sums.tolist()):
        w = w - 0.05 * a * torch.randn(len(w), generator=generator("direction", seed)).to(w)
    views = method.evaluate(got.state, clients)
    assert dict(views["global"]) == pytest.approx(dict(clients.evaluate(w)), rel=1e-9)
    assert views["global"]["loss"] != pytest.approx(clients.evaluate(model.initial())["loss"], rel=1e-6)
    with pytest.raises(StopIteration) as end:
        method.personalise(fl.Client(got.plan, 0, (0, 9, 0), {}), **method.down(got.state, 0)).send(None)
    same(end.value.value, w.numpy(), 1e-10)


def test_dropout_is_off_at_both_points():
    def net(p):
        made = nn.Sequential(nn.Dropout(p), Softmax())
        return fl.Classification(model=lambda: made)

    a, b = (overheard(KSEED, net(p), federation(), rounds=2)[0].state.sums for p in (0.0, 0.5))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": 0},
        {"eps": 0.0},
        {"clip": 0.0},
        {"pro_clip": 0.0},
        {"solver": fl.SGD(momentum=0.9)},
        {"solver": fl.SGD(weight_decay=0.1)},
        {"solver": fl.SGD(clip=1.0)},
        {"solver": fl.Adam()},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="FedKSeed"):
        fl.FedKSeed(**wrong)


def test_running_statistics_are_refused():
    task = fl.Classification(model=lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), buffers="vector")
    with pytest.raises(fl.FedloomError, match="running statistics"):
        overheard(KSEED, task, federation())


def test_a_run_with_another_number_of_seeds_is_refused():
    first, _ = overheard(KSEED, SOFTMAX, federation(), rounds=1)
    with pytest.raises(ConfigError, match="6 seeds: say candidates=6"):
        overheard(replace(KSEED, candidates=7), SOFTMAX, federation(), rounds=1, before=first)
