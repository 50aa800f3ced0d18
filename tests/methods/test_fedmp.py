"""FedMP against NumPy: which units stay, residual recovery, rewards; the bandit by hand; what it reduces to."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from narrow import HIDDEN, START, TASK, entries, pieces, scores, trained
from orders import overheard
from torch import nn
from worked import SGD, N, Softmax, X, Y, federation, run, same

import fedloom as fl
from fedloom.keyed import generator
from fedloom.methods.systems.bandit import Arms
from fedloom.methods.systems.fedmp import FedMP
from fedloom.methods.systems.width import strongest_units, unit_norms
from fedloom.models import build
from fedloom.timing.devices import Device

FEDMP = FedMP(cohort=4, most=0.7, solver=SGD)
WORLD = fl.World(devices=[Device(speed=s) for s in (1e3, 4e3, 2e3, 1e3)])


def loss(w, i):
    z = scores(w, X[i])
    return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), Y[i]]))


def strongest(w, rho):
    """Hidden units of largest incoming L1 norm that stay."""
    norms = np.abs(pieces(w)[0]).sum(1)
    return np.argsort(-norms)[: math.ceil(round((1 - rho) * HIDDEN, 9))]


def test_rounds():
    got, heard = overheard(FEDMP, TASK, federation(), rounds=3, world=WORLD)
    w, arms = START, dict.fromkeys(range(4), Arms(cuts=(0.0, 0.7)))
    for t in range(3):
        where = torch.rand(4, generator=generator(0, "ratios", t, 0)).tolist()
        rho = {i: arms[i].choose(0.95, u) for i, u in enumerate(where)}
        recovered, decrease, seconds = [], {}, {}
        for i in range(4):
            k = entries(strongest(w, rho[i]))
            y = trained(w[k], i, t)
            whole = w.copy()
            whole[k] = y
            recovered.append(whole)
            decrease[i] = loss(w[k], i) - loss(y, i)
            hidden = (len(k) - 3) // 7
            step = 2 * (6 * hidden + 6 * hidden + 3 * hidden)  # forward, weights, inputs of the head; per sample
            flops = SGD.epochs * N[i] * step + 2 * N[i] * 2 * 6 * hidden  # and two passes to tell the losses
            seconds[i] = flops / WORLD.device(i).speed
        assert {h.client: h.payload.rho for h in heard if h.round == t} == rho
        w = np.mean(recovered, 0)
        for i in range(4):
            gap = abs(seconds[i] / fmean(seconds.values()) - 1)
            arms[i] = arms[i].learnt(rho[i], decrease[i] / max(gap, 0.01), 0.05)
    same(got.params, w)
    for i in range(4):
        assert got.state.arms[i].cuts == pytest.approx(arms[i].cuts)
        assert got.state.arms[i].rewards == pytest.approx(arms[i].rewards)


def test_no_entry_shrinks_because_it_was_pruned():
    still = replace(SGD, steps=0)
    got, heard = overheard(replace(FEDMP, solver=still), TASK, federation(), rounds=4)
    assert any(h.payload.rho > 0.3 for h in heard)
    same(got.params, START, 0.0)


def test_norms_of_units_of_convolutions():
    model = fl.Model(build("cnn:width=0.25", (1, 8, 8), 3), example=(torch.zeros(1, 1, 8, 8),))
    w = model.initial()
    norms, layers = unit_norms(model, w), model.layout.tree(w)
    kernels = [t for t in layers.values() if t.dim() == 4]
    for norm, kernel in zip(norms.values(), kernels, strict=True):
        torch.testing.assert_close(norm, kernel.abs().sum((1, 2, 3)))
    choose = strongest_units(model, w, 0.5)
    group, n = next(iter(model.units.sizes.items()))
    left = choose(group, n)
    gone = [u for u in range(n) if u not in left.tolist()]
    assert len(left) == n / 2
    assert norms[group][left].min() >= norms[group][gone].max()


def test_norms_of_units_made_along_another_axis():
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.up, self.head = nn.Embedding(7, 5), nn.ConvTranspose1d(5, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.up(self.words(x).transpose(1, 2)).mean(2))

    model = fl.Model(Other, example=(torch.zeros(1, 6, dtype=torch.int64),))
    w = model.initial()
    norms = unit_norms(model, w)
    torch.testing.assert_close(norms["words"], model.layout.view(w, "words.weight").abs().sum(0))
    torch.testing.assert_close(norms["up"], model.layout.view(w, "up.weight").abs().sum((0, 2)))


# ------------------------------------------------------------------------------------------------ the bandit
def test_bounds_by_hand():
    arms = Arms(cuts=(0.0, 0.3, 1.0), pulls=(0.1, 0.5, 0.3), rewards=(1.0, 0.2, 0.6))
    low = 0.5**3
    high = 0.5**2 + 0.5  # 0.3 belongs to the region it begins
    log = math.log(max(low + high, 1.0))
    assert arms.bounds(0.5) == pytest.approx(
        [1.0 + math.sqrt(2 * log / low), (0.25 * 0.2 + 0.5 * 0.6) / high + math.sqrt(2 * log / high)]
    )
    one = arms.bounds(1.0)
    assert one == pytest.approx([1.0 + math.sqrt(2 * math.log(3)), 0.4 + math.sqrt(math.log(3))])
    assert arms.choose(1.0, 0.25) == pytest.approx(0.075)


def test_regions_are_cut_where_they_are_tried_down_to_theta():
    arms = Arms(cuts=(0.0, 0.8))
    assert arms.bounds(0.9) == [math.inf]
    arms = arms.learnt(0.5, 1.0, theta=0.35)
    assert arms.cuts == (0.0, 0.5, 0.8)
    assert arms.learnt(0.6, 1.0, theta=0.35).cuts == (0.0, 0.5, 0.8)  # 0.3 long
    assert arms.learnt(0.2, 1.0, theta=0.35).cuts == (0.0, 0.2, 0.5, 0.8)
    assert Arms(cuts=(0.0, 0.0)).learnt(0.0, 1.0, theta=0.35).cuts == (0.0, 0.0)
    assert arms.bounds(0.9)[0] == math.inf  # begins at 0.5, so what was tried is in the upper region
    assert arms.choose(0.9, 0.5) == 0.25


def test_it_finds_the_best_region_and_follows_it_when_it_moves():
    rng = np.random.default_rng(1)
    arms, tried = Arms(cuts=(0.0, 0.9)), []
    for k in range(400):
        x = arms.choose(0.98, float(rng.random()))
        best = 0.7 if k < 200 else 0.2
        arms = arms.learnt(x, max(0.0, 1 - 4 * abs(x - best)), theta=0.1)
        tried.append(x)
    assert abs(np.median(tried[150:200]) - 0.7) < 0.15
    assert abs(np.median(tried[350:]) - 0.2) < 0.15


# ------------------------------------------------------------------------------------------------ reductions
def test_without_pruning_it_is_fedavg_with_equal_weights():
    task = fl.Classification(model=Softmax)
    avg = run(fl.FedAvg(cohort=3, solver=SGD, weight="uniform"), rounds=3)
    one, _ = overheard(replace(FEDMP, cohort=3, most=0.0), task, federation(), rounds=3)
    torch.testing.assert_close(one.params, avg.params, rtol=0, atol=1e-12)
    whole, _ = overheard(replace(FEDMP, cohort=3, most=0.0), TASK, federation(), rounds=3)
    avg, _ = overheard(fl.FedAvg(3, SGD, weight="uniform"), TASK, federation(), rounds=3)
    torch.testing.assert_close(whole.params, avg.params, rtol=0, atol=1e-12)


def test_wrong_settings_are_refused():
    for wrong in ({"most": 1.0}, {"discount": 0.0}, {"theta": 0.0}, {"slack": 0.0}):
        with pytest.raises(fl.FedloomError, match="FedMP"):
            FedMP(**wrong)
