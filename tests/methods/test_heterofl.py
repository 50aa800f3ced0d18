"""HeteroFL against plain torch on hand-cut slices: who holds which entry, the scaler, masked scores."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from orders import overheard, rows
from torch import nn
from worked import SGD, SIZES, X, Y, federation, run

import fedloom as fl
from fedloom.methods.systems.width import Scaler, first_units, own_classes, with_scalers
from fedloom.testing import tiny_federation
from fedloom.testing.trial import Trial

HIDDEN, RATES = 5, (1.0, 0.5)
HFL = fl.HeteroFL(cohort=4, rates=RATES, solver=SGD)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, HIDDEN, dtype=torch.float64)
        self.head = nn.Linear(HIDDEN, 3, dtype=torch.float64)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


TASK = fl.Classification(model=Mlp)


def slices(rate):
    """The entries of (first.weight, first.bias, head.weight, head.bias) that a rate keeps."""
    k = math.ceil(rate * HIDDEN)
    return [(slice(k), slice(None)), (slice(k),), (slice(None), slice(k)), (slice(None),)]


def trained(pieces, i, round, rate, scale=True, mask=True):
    """A client's local work on its slice, written out."""
    w = [p[s].clone().requires_grad_() for p, s in zip(pieces, slices(rate))]
    x, y = torch.from_numpy(X[i]), torch.from_numpy(Y[i])
    seen = torch.zeros(3, dtype=torch.float64)
    seen[y] = 1.0
    for index in rows(SIZES[i], SGD, i, round, 0):
        hidden = x[index] @ w[0].T + w[1]
        if scale:
            hidden = hidden * (HIDDEN / len(w[1]))
        scores = torch.relu(hidden) @ w[2].T + w[3]
        loss = F.cross_entropy(scores * seen if mask else scores, y[index])
        w = [(p - SGD.lr * g).detach().requires_grad_() for p, g in zip(w, torch.autograd.grad(loss, w))]
    return [p.detach() for p in w], seen.bool()


@pytest.mark.parametrize(("scale", "mask"), [(True, True), (True, False), (False, True)])
def test_rounds(scale, mask):
    got, _ = overheard(replace(HFL, scale=scale, mask=mask), TASK, federation(), rounds=2)
    pieces = [p.detach().clone() for p in got.plan.model.to_module(got.plan.model.initial()).parameters()]
    for r in range(2):
        total, held = [torch.zeros_like(p) for p in pieces], [torch.zeros_like(p) for p in pieces]
        for i in range(4):
            rate = RATES[i % 2]
            mine, seen = trained(pieces, i, r, rate, scale, mask)
            for name, t, n, s, w in zip(("first", "first", "head", "head"), total, held, slices(rate), mine):
                rows_kept = seen if mask and name == "head" else torch.ones(len(w), dtype=torch.bool)
                one = rows_kept.double().view(-1, *[1] * (w.dim() - 1)).expand_as(w)
                t[s] += one * w
                n[s] += one
        pieces = [torch.where(n > 0, t / n.clamp(min=1), p) for t, n, p in zip(total, held, pieces)]
    torch.testing.assert_close(got.params, torch.cat([p.flatten() for p in pieces]), rtol=0, atol=1e-12)


def test_full_rates_without_masks_are_fedavg_with_equal_weights():
    from worked import Softmax

    task = fl.Classification(model=Softmax)
    one, _ = overheard(fl.HeteroFL(cohort=3, rates=(1.0,), mask=False, solver=SGD), task, federation(), rounds=3)
    avg = run(fl.FedAvg(cohort=3, solver=SGD, weight="uniform"), rounds=3)
    torch.testing.assert_close(one.params, avg.params, rtol=0, atol=1e-12)


def test_entries_count_their_holders_and_what_nobody_holds_stays_bit_for_bit():
    method = fl.HeteroFL(cohort=6, rates=(0.5, 0.25), mask=False, solver=SGD)
    task, data = fl.Classification(model="cnn:width=0.5,depth=2"), tiny_federation()
    begun, _ = overheard(method, task, data, rounds=0)
    got, heard = overheard(method, task, data, rounds=1)
    layout, model = got.plan.model.layout, got.plan.model
    holders = torch.zeros(layout.size, dtype=torch.long)
    for h in heard:
        holders += torch.bincount(h.reply.params.index, minlength=layout.size)
        assert torch.equal(h.payload.params, begun.params[h.reply.params.index])
    half, quarter = (set(model.part(first_units(r)).index.tolist()) for r in (0.5, 0.25))
    assert quarter < half
    assert [int(n) for n in holders] == [(e in half) * 3 + (e in quarter) * 3 for e in range(layout.size)]
    assert torch.equal(got.params[holders == 0], begun.params[holders == 0])
    assert (got.params[holders > 0] != begun.params[holders > 0]).float().mean() > 0.9
    assert len(half) / layout.size == pytest.approx(0.5**2, rel=0.5)  # about r^2 d


def test_rows_of_classes_nobody_has_stay():
    parts = [(torch.from_numpy(x), torch.from_numpy(y % 2)) for x, y in zip(X, Y)]  # class 2 is nobody's
    data = fl.Federation.from_clients(parts, client_test=0.0, ordered=True, classes=3)
    begun, _ = overheard(HFL, TASK, data, rounds=0)
    got, heard = overheard(HFL, TASK, data, rounds=2)
    before, after = (got.plan.model.layout.tree(p) for p in (begun.params, got.params))
    for name in ("head.weight", "head.bias"):
        assert torch.equal(after[name][2], before[name][2])
        assert not torch.equal(after[name][:2], before[name][:2])
    assert not any(bool(h.reply.classes[2]) for h in heard)


def test_the_index_set_is_not_sent():
    got, heard = overheard(replace(HFL, mask=False), TASK, federation(), rounds=1)
    sizes = {r: got.plan.model.part(first_units(r)).model.layout.size for r in RATES}
    assert sizes == {1.0: 38, 0.5: 24}
    for h in heard:
        assert h.payload.nbytes - 8 == h.reply.nbytes == 8 * sizes[RATES[h.client % 2]]


def test_the_scaler_works_while_training_only():
    layer, x = Scaler(8, -1), torch.ones(2, 2)
    assert torch.equal(layer.train()(x), 4 * x)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Scaler(8, 1).train()(torch.ones(2, 4, 3)), 2 * torch.ones(2, 4, 3))
    net = with_scalers(Mlp())
    assert sum(isinstance(m, Scaler) for m in net.modules()) == 1  # none behind the head


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(3, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.head(self.encoder(self.into(x)[:, None])[:, 0])


def test_a_network_that_reads_its_layers_weights_as_attention_does_may_have_scalers():
    run = fl.run(HFL, fl.Classification(model=Attending), federation(), rounds=1, dtype=torch.float64)
    assert not torch.equal(run.params, run.plan.model.initial())
    net, x = Attending(), torch.randn(4, 3)
    assert torch.equal(with_scalers(net)(x), net(x))


def test_masked_scores_are_for_classes():
    numbers = fl.Federation.from_arrays(torch.randn(20, 3), torch.randn(20), clients=2)
    with pytest.raises(fl.FedloomError, match="these targets are numbers: mask=False"):
        fl.run(HFL, fl.Regression(model="mlp:8"), numbers, rounds=1)
    fl.run(replace(HFL, mask=False), fl.Regression(model="mlp:8"), numbers, rounds=1)


def test_slices_answer_as_they_are():
    got, _ = overheard(HFL, TASK, federation(), rounds=1)
    client = fl.Client(got.plan, 1, (1, 1, 0), {})
    with pytest.raises(StopIteration) as end:
        HFL.personalise(client, got.params).send(None)
    first, b, head, c = (p[s] for p, s in zip(got.plan.model.layout.tree(got.params).values(), slices(0.5)))
    x = torch.from_numpy(X[1])
    torch.testing.assert_close(end.value.value(x), torch.relu(x @ first.T + b) @ head.T + c)


def test_views_judge_the_whole_network_and_each_slice():
    got = Trial(fl.HeteroFL(cohort=4, rates=(1.0, 0.5, 0.25))).reference
    model, params, look = got.plan.model, got.params, got.host.clients.evaluate
    wanted = {"global": dict(look(params))}
    for rate in (0.5, 0.25):
        part = model.part(first_units(rate))
        net = part.model.to_module(params[part.index]).eval()
        wanted[f"rate{rate:g}"] = dict(look(lambda *x, net=net: net(*x)))
    views = {k: dict(v) for k, v in got.plan.method.evaluate(got.state, got.host.clients).items()}
    assert views.keys() == wanted.keys()
    for name, figures in wanted.items():
        assert views[name] == pytest.approx(figures, rel=1e-9)
    assert len({figures["loss"] for figures in wanted.values()}) == 3


def test_scores_of_unseen_classes_are_zero_and_get_no_gradient():
    model = fl.Model(Mlp())
    w = model.initial().requires_grad_()
    seen = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    batch = fl.Data(x=torch.from_numpy(X[0]), y=torch.tensor([0, 2, 0, 2, 0, 2, 0]))
    (g,) = torch.autograd.grad(own_classes(model, w, batch, {"seen": seen}).sum(), w)
    assert not model.layout.tree(g)["head.weight"][1].any()
    assert model.layout.tree(g)["head.weight"][0].any()


def test_wrong_settings_are_refused():
    for rates in ((), (0.0, 1.0), (1.5,)):
        with pytest.raises(fl.FedloomError, match="rates"):
            fl.HeteroFL(rates=rates)
    with pytest.raises(fl.FedloomError, match=r"`head`.*mask=False"):
        overheard(HFL, fl.Classification(model=lambda: nn.Linear(3, 3)), federation())
