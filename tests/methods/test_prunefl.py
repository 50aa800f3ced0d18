"""PruneFL against NumPy: masks by trying every subset, weights that return, a client that begins alone, bytes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from orders import overheard, rows
from worked import SIZES, START, N, Softmax, cohort, federation, gradient, run, same

import fedloom as fl
from fedloom.message import nbytes
from fedloom.methods.systems.masks import layers, prunable
from fedloom.testing import tiny_federation

SOLVER = fl.SGD(lr=0.2, epochs=2, batch_size=3)
PRUNE = fl.PruneFL(
    cohort=4, solver=SOLVER, every=2, initial=0, most=0.5, half_life=3.0, fixed=2.0, per_number=0.5, per_use=0.7
)
P = N / N.sum()


def work(w, mask, i, t, turn=0, training=0):
    """Masked steps, and the square of the sum of whole gradients."""
    total = np.zeros(12)
    for index in rows(SIZES[i], SOLVER, i, t, turn, training=training):
        g = gradient(w, i, index)
        w, total = w - 0.2 * g * mask, total + g
    return w, total**2


def choose(w, mask, g2, most):
    """Of all masks that contain what must stay, the one with most g^2 per time: every subset is tried."""
    there = int(mask[:9].sum())
    sure = mask.copy()
    sure[:9] &= np.abs(w[:9]) >= np.sort(np.abs(w[:9][mask[:9]]))[int(most * there)]
    maybe = np.flatnonzero(~sure)
    best, ratio = sure, -1.0
    for bits in range(2 ** len(maybe)):
        m = sure.copy()
        m[maybe[(bits >> np.arange(len(maybe))) & 1 == 1]] = True
        r = g2[m].sum() / (2.0 + 1.2 * m[:9].sum() + 0.5 * 3)
        if r > ratio:
            best, ratio = m, r
    return best


def reference(rounds):
    w, mask, masks = START, np.ones(12, dtype=bool), []
    for t in range(rounds):
        done = [work(w, mask, i, t) for i in range(4)]
        w, g2 = (sum(p * d[k] for p, d in zip(P, done)) for k in (0, 1))
        if t % 2 == 1:
            mask = choose(w, mask, g2, 0.5 * 0.5 ** (t / 3.0))
            w = w * mask
        masks.append(mask)
    return w, masks


@pytest.mark.parametrize("rounds", [1, 2, 4, 7])
def test_rounds(rounds):
    w, masks = reference(rounds)
    got = run(PRUNE, rounds=rounds)
    same(got.params, w)
    assert got.state.mask.tolist() == masks[-1].tolist()


def test_weights_are_pruned_and_return():
    _, masks = reference(8)
    assert not masks[1].all()
    assert any((after & ~before).any() for before, after in pairwise(masks))
    assert run(PRUNE, rounds=8).state.mask.tolist() == masks[-1].tolist()


@pytest.mark.parametrize(("round", "stay"), [(1, 5), (2, 7)])
def test_ever_less_of_a_layer_may_go(round, stay):
    """Of nine weights 0.9 / 2^t at most, and all these where hardly any time is fixed."""
    method = replace(PRUNE, every=round + 1, most=0.9, half_life=1.0, fixed=1e-9)
    assert run(method, rounds=round + 1).state.mask[:9].sum() == stay == 9 - int(9 * 0.9 / 2**round)


def test_one_client_begins_alone():
    who = cohort(0, 1)[0]
    w, mask = START, np.ones(12, dtype=bool)
    for k in range(3):
        w, g2 = work(w, mask, who, 0, training=k)
        mask = choose(w, mask, g2, 0.5)
        w = w * mask
    assert not mask.all()
    w = sum(p * work(w, mask, i, 0, turn=int(i == who))[0] for i, p in enumerate(P))
    got, heard = overheard(replace(PRUNE, initial=3, every=9), fl.Classification(model=Softmax), federation(), rounds=1)
    same(got.params, w)
    assert got.state.mask.tolist() == mask.tolist()
    assert [h.client for h in heard[:1]] == [who]
    assert nbytes(heard[0].reply) == 8 * mask.sum() + 2  # a bitmap of twelve


def test_alone_it_stops_when_sizes_have_settled():
    """Nothing may be pruned, so every size is that of before: five, and no more."""
    task = fl.Classification(model=Softmax)
    one, two = (
        overheard(replace(PRUNE, initial=n, most=0.0, every=9), task, federation(), rounds=1)[1][0].reply
        for n in (5, 50)
    )
    assert torch.equal(one.kept.values, two.kept.values)
    assert len(one.kept.index) == 12


def test_bytes_time_and_what_a_layer_keeps():
    method = fl.PruneFL(cohort=6, solver=fl.SGD(steps=2), initial=0, every=2, most=0.3, fixed=1e-6)
    data = tiny_federation(dtype=torch.float32)
    got, heard = overheard(method, fl.Classification(model="cnn:width=0.5"), data, rounds=4, dtype=torch.float32)
    model = got.plan.model
    d, among = model.layout.size, prunable(model)
    for h in heard:
        k = len(h.payload.kept)
        assert nbytes(h.reply) == 4 * k + (4 * d if h.round % 2 else 0)
    kept = [next(len(h.payload.kept) for h in heard if h.round == t) for t in range(4)]
    assert kept[0] == kept[1] == d
    assert kept[2] == kept[3] < d
    for name in layers(model.layout, among):  # two masks of 30 % at most
        stays = got.state.mask[model.layout.span(name)]
        assert int(stays.sum()) >= 0.7**2 * len(stays) - 2
    t = method.times(model)
    seconds = [row["notes"]["seconds"] for row in got.rows]
    assert seconds[0] == pytest.approx(1e-6 + float(t[among].sum()))
    assert seconds[1] == pytest.approx(seconds[0] + method.per_number / 2 * d)
    assert seconds[2] < seconds[0]


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"most": 1.5}, {"fixed": 0.0}, {"per_number": 0.0}, {"solver": fl.Adam()}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="PruneFL"):
        fl.PruneFL(**wrong)
