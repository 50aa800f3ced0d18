"""Masks against brute force and NumPy: which entries stay, densities, schedules, bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import fedloom as fl
from fedloom.message import nbytes, opened
from fedloom.methods.systems.costs import uses
from fedloom.methods.systems.masks import best_ratio, erk, largest, largest_per_layer, layers, prunable
from fedloom.methods.systems.schedules import cubic, stepped
from fedloom.methods.systems.sparse import Mask, filled, sparse
from fedloom.vector import Layout
from fedloom.written import dumps, loads

LAYOUT = Layout({"a.weight": (4, 3), "a.bias": (4,), "b.weight": (20, 10)})
AMONG = torch.tensor([True] * 12 + [False] * 4 + [True] * 200)


def test_weights_of_linear_and_convolutional_layers_may_go():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.Embedding(4, 2))
    model = fl.Model(net, buffers="vector")
    assert layers(model.layout, prunable(model)) == ["0.weight", "3.weight"]
    assert int(prunable(model).sum()) == 18 + 24


def test_largest_keeps_as_many_as_asked_and_everything_else():
    scores = torch.tensor([5.0, 1.0, 3.0, 3.0, 9.0, 0.0])
    among = torch.tensor([True, True, True, True, False, False])
    assert largest(scores, among, 2).tolist() == [True, False, True, False, True, True]  # of equals the first
    assert largest(scores, among, 0).tolist() == [False, False, False, False, True, True]
    assert largest(scores, among, 4).all()


def test_of_many_equal_scores_the_first_stay():
    scores = torch.arange(100) % 2
    stays = largest(scores, torch.ones(100, dtype=torch.bool), 70)
    assert stays.nonzero().flatten().tolist() == [j for j in range(100) if j % 2 or j < 40]


def test_per_layer():
    scores = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(1))
    mask = largest_per_layer(scores, AMONG, LAYOUT, {"a.weight": 0.5, "b.weight": 0.1})
    assert mask[12:16].all()
    for at, count in ((slice(0, 12), 6), (slice(16, 216), 20)):
        assert mask[at].sum() == count
        assert scores[at][mask[at]].min() > scores[at][~mask[at]].max()


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9, 1.0])
def test_erk(density):
    got = erk(LAYOUT, AMONG, density)
    assert 12 * got["a.weight"] + 200 * got["b.weight"] == pytest.approx(212 * density)
    assert all(0 < d <= 1 for d in got.values())
    if density == 0.05:  # nothing is clamped: 7 / 12 against 30 / 200
        assert got["a.weight"] / got["b.weight"] == pytest.approx((7 / 12) / (30 / 200))
    else:
        assert got["a.weight"] == 1.0


def test_a_network_with_nothing_to_prune_has_no_densities():
    with pytest.raises(fl.FedloomError, match="this network trains none"):
        erk(LAYOUT, torch.zeros_like(AMONG), 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_ratio_is_that_of_every_subset_tried(seed):
    rng = np.random.default_rng(seed)
    gain, cost, sure = rng.exponential(size=12), rng.uniform(0.1, 2.0, 12), rng.random(12) < 0.2
    subsets = (np.arange(2**12)[:, None] >> np.arange(12)) & 1 | sure
    ratios = subsets @ gain / (3.0 + subsets @ cost)
    got = best_ratio(*map(torch.from_numpy, (gain, cost)), 3.0, torch.from_numpy(sure))
    assert got.tolist() == subsets[ratios.argmax()].astype(bool).tolist()
    assert sure.sum() < int(got.sum()) < 12


def test_how_often_a_weight_is_used():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    model = fl.Model(net, example=(torch.zeros(1, 1, 4, 4),))
    count = model.layout.tree(uses(model))
    assert {name: c.unique().tolist() for name, c in count.items()} == {
        "0.weight": [16.0], "0.bias": [0.0], "3.weight": [1.0], "3.bias": [0.0],
    }  # fmt: skip
    with pytest.raises(fl.FedloomError, match="example"):
        uses(fl.Model(net))


def test_schedules():
    assert [cubic(t, 10, 0.5, 0.9) for t in (0, 5, 10, 99)] == pytest.approx([0.5, 0.9 - 0.4 / 8, 0.9, 0.9])
    # segments of ten rounds: 0, then four steps from 1 to 4
    assert [stepped(t, 50, 5, 1.0, 4.0) for t in (0, 9, 10, 20, 30, 49, 99)] == [0, 0, 1, 2, 3, 4, 4]
    assert all(np.diff([stepped(t, 33, 20, 5e-4, 1e-3) for t in range(33)]) >= 0)


@pytest.mark.parametrize("stays", [0, 1, 3, 40, 400])
def test_a_mask_travels_as_the_smaller_of_positions_and_a_bitmap(stays):
    mask = torch.zeros(400, dtype=torch.bool)
    mask[torch.randperm(400, generator=torch.Generator().manual_seed(0))[:stays]] = True
    sent = Mask.of(mask)
    assert nbytes(sent) == min(4 * stays, math.ceil(400 / 8))
    assert torch.equal(sent.dense(), mask)
    assert torch.equal(loads(dumps(sent)).dense(), mask)


def test_a_pruned_network_as_a_payload():
    params, mask = torch.arange(1.0, 401.0), torch.arange(400) % 7 == 0
    heard = opened(fl.Message(sparse(params, mask)))
    assert torch.equal(filled(heard.kept, heard.mask), params * mask)
    assert nbytes(fl.Message(sparse(params, mask))) == 4 * int(mask.sum()) + 50
