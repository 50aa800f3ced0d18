"""Early exits: what an ordinary network becomes, what a prefix owns, and the losses against plain loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedloom as fl
from fedloom.methods.systems.depth import entries_of, exits_of, first_exits, prefix
from fedloom.methods.systems.exit_losses import all_exits, kl_from_last, mutual_kl
from fedloom.methods.systems.exits import EarlyExit, with_exits
from fedloom.models import build
from fedloom.runs import Experiment
from fedloom.testing import tiny_federation

SPECS = (
    ("mlp:8,7,dim=6", (1, 8, 8), 3),
    ("cnn", (1, 16, 16), 2),
    ("cnn-bn:dim=6", (1, 16, 16), 3),
    ("resnet8", (1, 16, 16), 4),
    ("har-cnn", (9, 64), 2),
    ("softmax", (5,), 1),
)


class Exits(fl.FedAvg):
    def module(self, net):
        return with_exits(net)


def model_of(spec: str, shape: tuple[int, ...]) -> fl.Model:
    return fl.Model(with_exits(build(spec, shape, 5)), buffers="vector", example=(torch.zeros(1, *shape),))


@pytest.mark.parametrize(("spec", "shape", "exits"), SPECS)
def test_the_last_exit_is_the_network(spec, shape, exits):
    net, x = build(spec, shape, 5).eval(), torch.randn(4, *shape)
    model = model_of(spec, shape)
    scores = model["exits"](model.initial(), x)
    torch.testing.assert_close(model(model.initial(), x), scores.mean(1))
    assert exits_of(model) == exits
    assert scores.shape == (4, exits, 5)
    torch.testing.assert_close(scores[:, -1], net(x))


@pytest.mark.parametrize(("spec", "shape", "exits"), SPECS)
def test_a_prefix_is_the_first_exits_and_can_be_made_narrower(spec, shape, exits):
    model, x = model_of(spec, shape), torch.randn(4, *shape)
    w = model.initial()
    inside: set[int] = set()
    for k in range(1, exits + 1):
        part = model.cut(first_exits, k)
        torch.testing.assert_close(part.model["exits"](w[part.index], x), model["exits"](w, x)[:, :k])
        assert inside < set(part.index.tolist())
        inside = set(part.index.tolist())
        narrow = part.model.part(lambda group, n: torch.arange((n + 1) // 2))
        assert narrow.model["exits"](w[part.index][narrow.index], x).shape == (4, k, 5)
    assert inside == set(range(len(w)))
    assert model.cut(first_exits, 1) is model.cut(first_exits, 1)  # or nothing of it could be stacked


def test_what_is_cut_out_keeps_names_and_shapes():
    with pytest.raises(fl.FedloomError, match=r"'weight' \(3, 2\)"):
        fl.Model(nn.Sequential(nn.Linear(3, 2))).cut(lambda net: nn.Linear(2, 3))


def test_layers_added_to_a_finished_module_are_drawn_from_the_seed():
    net, data = build("mlp:8,7", (1, 8, 8), 4), tiny_federation()

    def heads(seed):
        torch.manual_seed(torch.randint(1000, ()).item())
        model = Experiment(Exits(), fl.Classification(model=net), data, seed=seed, dtype=torch.float64).plan().model
        return model.initial()[model.layout.where("exits.heads.0.*")]

    assert torch.equal(heads(0), heads(0))
    assert not torch.equal(heads(0), heads(1))


def test_mutual_distillation_is_the_double_sum():
    scores = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    want = torch.zeros(6, dtype=torch.float64)
    for i in range(4):
        for j in {0, 1, 2, 3} - {i}:
            teacher = F.softmax(scores[:, j].detach(), -1)
            want = want + F.kl_div(F.log_softmax(scores[:, i], -1), teacher, reduction="none").sum(-1) / 3
    got = mutual_kl(scores)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.sum(), scores), torch.autograd.grad(want.sum(), scores)):
        torch.testing.assert_close(a, b)
    assert mutual_kl(scores[:, :1]).abs().max() < 1e-12


def test_the_deepest_exit_teaches_and_does_not_learn():
    scores, t = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True), 2.0
    teacher = F.softmax(scores[:, 2].detach() / t, -1)
    want = [t * t * F.kl_div(F.log_softmax(scores[:, j] / t, -1), teacher, reduction="none").sum(-1) for j in range(3)]
    got = kl_from_last(scores, t)
    torch.testing.assert_close(got, torch.stack(want, 1))
    (g,) = torch.autograd.grad(got.sum(), scores)
    assert g[:, 2].abs().max() < 1e-12
    assert g[:, 0].abs().max() > 1e-3


def test_exits_that_answer_position_by_position_learn_at_each_of_them():
    scores = torch.randn(6, 3, 4, 5, dtype=torch.float64)  # as many positions as might be taken for exits or classes
    at = scores.unbind(2)
    torch.testing.assert_close(mutual_kl(scores), torch.stack([mutual_kl(one) for one in at]).mean(0))
    torch.testing.assert_close(kl_from_last(scores, 2.0), torch.stack([kl_from_last(one, 2.0) for one in at]).mean(0))


def test_the_loss_of_all_exits_is_their_sum():
    model = model_of("mlp:8,7", (6,))
    batch = fl.Data(x=torch.randn(4, 6), y=torch.tensor([0, 1, 4, 2]))
    w = model.initial()
    want = sum(F.cross_entropy(model["exits"](w, batch.x)[:, k], batch.y, reduction="none") for k in range(2))
    torch.testing.assert_close(all_exits(model, w, batch, {}), want)


def test_a_share_of_the_blocks_is_rounded_up():
    model = model_of("resnet8", (1, 16, 16))
    parts = [prefix(model, s) for s in (0.01, 0.25, 0.26, 0.5, 1.0)]
    assert [exits_of(p.model) for p in parts] == [1, 1, 2, 2, 4]
    w = model.initial()
    each = entries_of(dict(enumerate(parts)), w)
    assert each[2]["params"] is each[3]["params"]
    assert torch.equal(each[4]["params"], w)
    assert torch.equal(each[1]["params"], w[parts[1].index])


def test_networks_without_blocks_are_refused():
    for net in (nn.Linear(3, 2), build("char-gru", (8,), 20)):
        with pytest.raises(fl.FedloomError, match=r"features.*EarlyExit"):
            with_exits(net)
    with pytest.raises(fl.FedloomError, match="has no exits"):
        exits_of(fl.Model(nn.Linear(3, 2)))
    with pytest.raises(fl.FedloomError, match="as many heads as blocks"):
        EarlyExit(nn.ModuleList([nn.Linear(2, 2)]), nn.ModuleList())
