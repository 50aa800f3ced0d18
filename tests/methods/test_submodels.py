"""What sub-model methods share: choices of units, costs, coverage, rates by device, statistics of batch norm."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from orders import overheard
from torch import nn
from worked import SGD, N, X, federation

import fedloom as fl
from fedloom.message import At, Covered
from fedloom.methods.systems.costs import cost
from fedloom.methods.systems.coverage import coverage
from fedloom.methods.systems.width import first_units, kept, random_units, rolling_units
from fedloom.models import build
from fedloom.testing import tiny_federation
from fedloom.timing.devices import Device


# ------------------------------------------------------------------------------------------------ units
def test_a_rate_of_units_is_rounded_up_and_never_none():
    assert [kept(r, 100) for r in (0.55, 0.07, 0.29, 1.0, 1e-9)] == [55, 7, 29, 100, 1]
    assert kept(0.5, 5) == 3


def test_a_window_goes_around_and_covers_every_unit_equally_often():
    assert rolling_units(0.5, 4)("", 6).tolist() == [4, 5, 0]
    for n in (5, 6, 7):
        counts = torch.zeros(n)
        for shift in range(n):
            counts[rolling_units(0.4, shift)("", n)] += 1
        assert counts.unique().tolist() == [kept(0.4, n)]
    assert rolling_units(0.5, 0)("", 6).tolist() == first_units(0.5)("", 6).tolist()


def test_random_units_are_a_function_of_their_seed():
    a, b, c = (random_units(0.5, draw)("g", 40).sort().values for draw in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert len(a.unique()) == 20
    assert not torch.equal(a, random_units(0.5, 1)("h", 40).sort().values)


# ------------------------------------------------------------------------------------------------ costs
class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


def test_the_cost_of_a_dense_network_counted_by_hand():
    model = fl.Model(Mlp, example=(torch.zeros(4, 3),))
    for rate, k in ((1.0, 6), (0.5, 3)):
        c = cost(model.part(first_units(rate)).model, model.example)
        forward, weights, inputs = 3 * k + k * 3, 3 * k + k * 3, k * 3  # no gradient of the data
        assert c.flops == 2 * (forward + weights + inputs)
        assert c.parameters == 3 * k + k + k * 3 + 3
        assert c.activations == 4 * (3 + k)  # the data, and what relu let through
        assert c.memory(batch_size=8) == 8 * c.parameters + 8 * c.activations
    with pytest.raises(fl.FedloomError, match="example"):
        cost(fl.Model(Mlp))


def test_a_cost_is_that_of_the_example_given():
    model = fl.Model(nn.Conv1d(2, 3, 3), example=(torch.zeros(1, 2, 10),))
    short, long = cost(model).flops, cost(model, (torch.zeros(1, 2, 18),)).flops
    assert (short, long) == (8 * 72, 16 * 72)  # positions times 3 x 2 x 3 products, of which each is two, both ways
    assert cost(model).flops == short


# ------------------------------------------------------------------------------------------------ coverage
def test_coverage_counted_one_by_one():
    params = torch.tensor([3.0, 0.0, 4.0, 0.0, 12.0])
    indices = [torch.tensor(i) for i in ([0, 1], [0, 2, 4], [0, 4])]
    got = Covered(torch.zeros(5), torch.bincount(torch.cat(indices), minlength=5).float())
    c = coverage(params, indices)
    assert torch.equal(c.holders, coverage(params, indices, got).holders)
    assert c.holders.tolist() == [3, 1, 1, 0, 2]
    assert c.gamma == 0
    assert c.histogram == {0: 1, 1: 2, 2: 1, 3: 1}
    assert c.noise == pytest.approx(max(1 - sum(params[i].square()) / 169 for i in indices))
    assert c.notes["held_by_1"] == 0.4
    assert coverage(torch.zeros(5), indices).noise == 0.0


def test_rounds_note_their_coverage_over_the_clients_that_replied():
    task = fl.Classification(model=Mlp)
    method = fl.HeteroFL(cohort=4, rates=(1.0, 0.5), mask=False, solver=SGD)
    run, heard = overheard(method, task, federation(), rounds=1)
    counts = torch.zeros(run.plan.model.layout.size, dtype=torch.long)
    for h in heard:
        assert isinstance(h.reply.params, At)
        counts[h.reply.params.index] += 1
    notes = run.rows[-1]["notes"]
    assert notes["gamma_min"] == counts.min() == 2
    assert {k: v for k, v in notes.items() if k.startswith("held")} == {
        f"held_by_{k}": pytest.approx(float((counts == k).float().mean())) for k in (2, 4)
    }
    start = run.plan.model.initial()
    half = run.plan.model.part(first_units(0.5)).index
    assert notes["reduction_noise"] == pytest.approx(1 - float(start[half].square().sum() / start.square().sum()))

    async def leaves(client, honest, **payload):
        raise fl.Declined("away")

    few = fl.run(method, task, federation(), rounds=1, behave={0: leaves}, on_failure="exclude", dtype=torch.float64)
    assert few.rows[-1]["notes"]["gamma_min"] == 1  # one of the two with the whole network is left


# ------------------------------------------------------------------------------------------------ who gets which rate
def sent_rates(method, rounds=1, model=Mlp, **options):
    _, heard = overheard(method, fl.Classification(model=model), federation(), rounds=rounds, **options)
    return [(h.client, h.payload.rate) for h in heard]


def test_rates_go_by_number_or_by_chance():
    method = fl.HeteroFL(cohort=4, rates=(1.0, 0.5, 0.25), mask=False, solver=SGD)
    assert sorted(sent_rates(method)) == [(0, 1.0), (1, 0.5), (2, 0.25), (3, 1.0)]
    drawn = sent_rates(replace(method, dynamic=True), rounds=30)
    assert drawn[:4] != drawn[4:8]
    each = [rate for _, rate in drawn]
    assert all(each.count(r) > 25 for r in (1.0, 0.5, 0.25))  # 40 expected


def test_a_device_gets_the_largest_rate_it_can_do_in_time():
    world = fl.World(step_seconds=1.0, spread=0.8, seed=3)
    method = fl.HeteroFL(cohort=4, rates=(1.0, 0.5, 0.25), step_budget=0.45, mask=False, solver=SGD)

    def net():
        return build("mlp:6,6,6", (3,), 3)

    model = fl.Model(net, example=(torch.zeros(1, 3, dtype=torch.float64),), dtype=torch.float64)
    work = {r: cost(model.part(first_units(r)).model, model.example).flops / cost(model).flops for r in method.rates}
    got = dict(sent_rates(method, model=net, world=world))
    for i, rate in got.items():
        seconds = world.device(i).step_seconds
        fits = [r for r in method.rates if work[r] * seconds <= 0.45]
        assert rate == max(fits, default=0.25)
    assert len(set(got.values())) > 1
    c = {r: cost(model.part(first_units(r)).model, model.example) for r in method.rates}
    room = [(c[0.5].memory(3) + c[1.0].memory(3)) / 2, 1.0, c[1.0].memory(3) * 1.2, 1e9]
    devices = [Device(speed=1e9, memory=m) for m in room]
    got = dict(sent_rates(replace(method, step_budget=math.inf), model=net, world=fl.World(devices=devices)))
    assert got == {0: 0.5, 2: 1.0, 3: 1.0}  # one device has room for nothing, and is left out
    slow = [Device(speed=3 * c[r].flops) for r in (0.25, 0.5, 1.0, 0.5)]  # a batch of three in a second
    got = dict(sent_rates(replace(method, step_budget=1.0), model=net, world=fl.World(devices=slow)))
    assert got == {0: 0.25, 1: 0.5, 2: 1.0, 3: 0.5}
    for wrong in ({"step_budget": 0.0}, {"step_budget": 1.0, "dynamic": True}):
        with pytest.raises(fl.FedloomError, match="step_budget"):
            fl.HeteroFL(**wrong)


def test_what_every_clients_slice_costs():
    method = fl.HeteroFL(cohort=4, rates=(1.0, 0.5), mask=False, scale=False, solver=SGD)
    run, heard = overheard(method, fl.Classification(model=Mlp), federation(), rounds=1)
    costs = method.costs(run.host.clients)
    assert {h.client: len(h.payload.params) for h in heard} == {i: c.parameters for i, c in costs.items()}
    assert costs[1].flops == costs[3].flops < costs[0].flops
    assert costs[0] is costs[2]  # measured once


# ------------------------------------------------------------------------------------------------ static batch norm
class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first = nn.BatchNorm1d(3, momentum=0.3, dtype=torch.float64), nn.Linear(3, 4).double()
        self.inner, self.head = nn.BatchNorm1d(4, dtype=torch.float64), nn.Linear(4, 3).double()

    def forward(self, x):
        return self.head(torch.relu(self.inner(self.first(self.norm(x)))))


@pytest.mark.parametrize("rounds", [1, 2])
def test_statistics_are_those_of_the_pooled_samples_of_the_cohort(rounds):
    method = fl.HeteroFL(cohort=3, rates=(1.0, 0.5), mask=False, scale=False, solver=SGD)
    ids = (0, 1, 2)  # a batch of one has no variance
    task = fl.Classification(model=Normed, buffers="vector")
    solver = replace(SGD, batch_size=100, epochs=1)
    run, heard = overheard(replace(method, solver=solver), task, federation(ids), rounds=rounds)
    tree = run.plan.model.layout.tree(run.params)
    n = torch.tensor([N[i] for i in ids])
    x = [torch.from_numpy(X[i]) for i in ids]
    means = torch.stack([v.mean(0) for v in x])
    mean = (n[:, None] * means).sum(0) / n.sum()
    spread = torch.stack([v.var(0) for v in x]) + (means - mean).square()
    torch.testing.assert_close(tree["norm.running_mean"], mean)
    torch.testing.assert_close(tree["norm.running_var"], (n[:, None] * spread).sum(0) / n.sum())
    # the inner layer reads what the whole network makes of each client's samples, normalised by themselves
    inner = []
    for v in x:
        z = (v - v.mean(0)) / (v.var(0, correction=0) + 1e-5).sqrt() * tree["norm.weight"] + tree["norm.bias"]
        inner.append(z @ tree["first.weight"].T + tree["first.bias"])
    means = torch.stack([v.mean(0) for v in inner])
    torch.testing.assert_close(tree["inner.running_mean"], (n[:, None] * means).sum(0) / n.sum())
    trained = run.plan.model.layout.trainable  # no client's own statistics are averaged over widths
    slices = [h for h in heard if hasattr(h.reply, "params")]
    assert len(slices) == len(heard) / 2
    assert all(int(h.reply.params.index.max()) < trained for h in slices)


def test_momentum_none_is_refused():
    def net():
        return nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.Linear(3, 3))

    solver = replace(SGD, batch_size=100)

    method = fl.HeteroFL(cohort=3, rates=(1.0,), mask=False, solver=solver)
    with pytest.raises(fl.FedloomError, match="momentum"):
        overheard(method, fl.Classification(model=net, buffers="vector"), federation((0, 1, 2)), rounds=1)


def test_a_network_with_batch_norm_learns_and_its_slices_work():
    task = fl.Classification(model="cnn-bn:width=0.5", buffers="vector")
    method = fl.HeteroFL(cohort=6, rates=(1.0, 0.5), solver=fl.SGD(lr=0.05, epochs=3, batch_size=4))
    run = fl.run(method, task, tiny_federation(sizes=(20, 16, 24, 18, 20, 22), dtype=torch.float32), rounds=6, seed=0)
    last = run.rows[-1]
    assert last["global"]["accuracy"] > 0.6
    assert math.isfinite(last["rate0.5"]["loss"])
