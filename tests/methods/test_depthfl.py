"""DepthFL against plain torch on hand-cut networks: owners, mutual distillation, FedDyn; what it reduces to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from orders import overheard, rows
from torch import nn
from worked import SGD, SIZES, X, Y, cohort, federation

import fedloom as fl
from fedloom.methods.systems.exits import EarlyExit
from fedloom.testing import tiny_federation

DFL = fl.DepthFL(cohort=3, depths=(1.0, 0.5, 0.3), lam=0.7, ramp=3, alpha=0.4, solver=SGD)
NAMES = ("blocks.0", "blocks.1", "heads.0", "heads.1")
OWNED = {1: (0, 2), 2: (0, 1, 2, 3)}
"""Depth -> which of NAMES a client has."""


class Two(EarlyExit):
    """x (n, 3) -> tanh (n, 4) -> tanh (n, 2), a head behind each; weights are not zero."""

    def __init__(self) -> None:
        blocks = [nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Sequential(nn.Linear(4, 2), nn.Tanh())]
        super().__init__(nn.ModuleList(blocks), nn.ModuleList([nn.Linear(4, 3), nn.Linear(2, 3)]))
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(torch.sin(torch.arange(p.numel()) + 2.0 * k).view(p.shape))


TASK = fl.Classification(model=Two)


def depth(i):
    return (2, 1, 1)[i % 3]


def flat(pieces):
    return torch.cat([t.flatten() for pair in pieces for t in pair])


def scores(pieces, x, k):
    out = []
    for block, head in zip(pieces[:k], pieces[k:]):
        x = torch.tanh(x @ block[0].T + block[1])
        out.append(x @ head[0].T + head[1])
    return out


def trained(pieces, i, r, lam, linear, alpha):
    """A client's local work on what it owns, written out; pieces are (weight, bias) of blocks, then heads."""
    k, start = depth(i), [tuple(t.clone() for t in pair) for pair in pieces]
    w = [tuple(t.clone().requires_grad_() for t in pair) for pair in pieces]
    x, y = torch.from_numpy(X[i]), torch.from_numpy(Y[i])
    for index in rows(SIZES[i], SGD, i, r, 0):
        z = scores(w, x[index], k)
        loss = sum(F.cross_entropy(one, y[index]) for one in z)
        for a in range(k):
            for b in set(range(k)) - {a}:
                loss = loss + lam / (k - 1) * F.kl_div(
                    F.log_softmax(z[a], 1), F.softmax(z[b].detach(), 1), reduction="batchmean"
                )
        leaves = [t for pair in w for t in pair]
        for t, g, at in zip(leaves, linear, [t for pair in start for t in pair]):
            loss = loss - (t * g).sum() + alpha / 2 * (t - at).square().sum()
        grads = iter(torch.autograd.grad(loss, leaves))
        w = [tuple((t - SGD.lr * next(grads)).detach().requires_grad_() for t in pair) for pair in w]
    return [tuple(t.detach() for t in pair) for pair in w]


@pytest.mark.parametrize(("size", "lam", "alpha"), [(3, 0.7, 0.4), (1, 0.7, 0.4), (3, 0.0, 0.4), (3, 0.7, 0.0)])
def test_rounds(size, lam, alpha):
    method = replace(DFL, cohort=size, lam=lam, alpha=alpha)
    net = Two().double()
    x = [(m.weight.detach(), m.bias.detach()) for m in net.modules() if isinstance(m, nn.Linear)]
    h = [[torch.zeros_like(t) for t in pair] for pair in x]
    linear = {i: [torch.zeros_like(t) for j in OWNED[depth(i)] for t in x[j]] for i in range(4)}
    for r in range(4):
        ramped = lam * math.exp(-5 * (1 - min(r / 3, 1)) ** 2)
        sums, owners = [[torch.zeros_like(t) for t in pair] for pair in x], [0, 0, 0, 0]
        for i in cohort(r, size):
            mine = OWNED[depth(i)]
            y = trained([x[j] for j in mine], i, r, ramped, linear[i], alpha)
            moved = [b - a for j, pair in zip(mine, y) for a, b in zip(x[j], pair)]
            linear[i] = [g - alpha * d for g, d in zip(linear[i], moved)]
            for n, j in enumerate(mine):
                owners[j] += 1
                for t in range(2):
                    sums[j][t] += moved[2 * n + t]
        fresh = []
        for j in range(4):
            h[j] = [a - alpha / 4 * s for a, s in zip(h[j], sums[j])]
            mean = [a + s / max(owners[j], 1) for a, s in zip(x[j], sums[j])]
            fresh.append(tuple(m - b / alpha if alpha and owners[j] else m for m, b in zip(mean, h[j])))
        x = fresh
        got, heard = overheard(method, TASK, federation(), rounds=r + 1)
        torch.testing.assert_close(got.params, flat(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(got.state.h, flat(h) if alpha else torch.zeros_like(got.state.h), rtol=0, atol=1e-12)
        for i, memory in got.memories.items():
            if alpha:
                torch.testing.assert_close(
                    memory["linear"], torch.cat([g.flatten() for g in linear[i]]), rtol=0, atol=1e-12
                )
    assert len({depth(h.client) for h in heard}) == 2


def test_a_round_with_nobody_there_is_one_of_the_ramp():
    got, _ = overheard(DFL, TASK, federation(), rounds=2, world=fl.World(present=1e-12))
    assert got.state.round == 2
    assert torch.equal(got.params, got.plan.model.initial())


def test_one_block_without_feddyn_is_fedavg_with_equal_weights():
    data, solver = tiny_federation(), fl.SGD(lr=0.1, epochs=2, batch_size=4)
    one = replace(DFL, cohort=4, alpha=0.0, solver=solver)
    options = {"rounds": 3, "engine": "sequential", "dtype": torch.float64, "evaluate_every": 0}
    got = fl.run(one, fl.Classification(model="mlp:8"), data, **options)
    avg = fl.run(
        fl.FedAvg(cohort=4, solver=solver, weight="uniform"), fl.Classification(model="mlp:8"), data, **options
    )
    torch.testing.assert_close(got.params, avg.params, rtol=0, atol=1e-12)


def test_one_block_is_feddyn():
    options = {"rounds": 4, "engine": "sequential", "dtype": torch.float64, "evaluate_every": 0}
    data, task, solver = tiny_federation(), fl.Classification(model="mlp:8"), fl.SGD(lr=0.1, epochs=2, batch_size=4)
    got = fl.run(replace(DFL, cohort=3, solver=solver), task, data, **options)
    dyn = fl.run(fl.FedDyn(cohort=3, alpha=0.4, solver=solver), task, data, **options)
    torch.testing.assert_close(got.params, dyn.params, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.state.h, dyn.state.h, rtol=0, atol=1e-12)


def test_what_nobody_owns_stays_bit_for_bit_and_only_owned_entries_travel():
    shallow = replace(DFL, depths=(0.5,))
    begun, _ = overheard(shallow, TASK, federation(), rounds=0)
    got, heard = overheard(shallow, TASK, federation(), rounds=3)
    layout = got.plan.model.layout
    deep = layout.where("exits.blocks.1.*", "exits.heads.1.*")
    assert torch.equal(got.params[deep], begun.params[deep])
    assert not torch.equal(got.params[~deep], begun.params[~deep])
    for h in heard:
        assert h.reply.nbytes == 8 * int((~deep).sum())
        assert h.payload.nbytes == h.reply.nbytes + 8


def test_running_statistics_take_no_part_in_feddyn():
    task = fl.Classification(model="cnn-bn:width=0.25", buffers="vector")
    got, _ = overheard(replace(DFL, cohort=6, depths=(1.0, 0.5)), task, tiny_federation(), rounds=2)
    trainable = got.plan.model.layout.trainable
    assert got.state.h[:trainable].abs().max() > 0
    assert not got.state.h[trainable:].any()


def test_every_exit_is_judged_and_clients_answer_with_their_own():
    got, _ = overheard(DFL, TASK, federation(), rounds=1)
    client = fl.Client(got.plan, 1, (1, 1, 0), {})
    with pytest.raises(StopIteration) as end:
        DFL.personalise(client, got.params).send(None)
    x, net = torch.from_numpy(X[1]), got.plan.model.to_module(got.params)
    torch.testing.assert_close(end.value.value(x), net.exits(x)[:, 0])
    judged = fl.run(DFL, fl.Classification(model="mlp:8,dim=6"), tiny_federation(), rounds=1, dtype=torch.float64)
    assert {"global", "exit1", "exit2"} <= set(judged.rows[-1])


def test_wrong_settings_are_refused():
    for depths in ((), (0.0, 1.0), (1.5,)):
        with pytest.raises(fl.FedloomError, match="depths"):
            fl.DepthFL(depths=depths)
    for options in ({"lam": -1.0}, {"alpha": -0.1}, {"ramp": 0}):
        with pytest.raises(fl.FedloomError, match="DepthFL"):
            fl.DepthFL(**options)
