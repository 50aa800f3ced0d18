"""A layout maps names to slices of a vector: views, selections, the way there and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fedloom as fl
from fedloom.vector import Layout, joined

SHAPES = {"a.weight": (2, 3), "a.bias": (2,), "scale": (), "head.weight": (4, 2)}


def test_pieces_lie_one_after_the_other():
    layout = Layout(SHAPES)
    assert layout.size == layout.trainable == 6 + 2 + 1 + 8
    assert [layout.span(n) for n in layout.names] == [slice(0, 6), slice(6, 8), slice(8, 9), slice(9, 17)]


def test_tree_is_views_and_vector_is_the_way_back():
    layout, v = Layout(SHAPES), torch.arange(17.0)
    tree = layout.tree(v)
    assert {n: tuple(t.shape) for n, t in tree.items()} == SHAPES
    tree["a.bias"][0] = -1.0
    assert v[6] == -1.0
    back = layout.vector(tree)
    assert torch.equal(back, v)
    back[0] = 99.0
    assert v[0] == 0.0


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_a_stack_of_vectors_has_a_tree_of_stacks(lead):
    layout, v = Layout(SHAPES), torch.randn(*lead, 17)
    for name, piece in layout.tree(v).items():
        assert piece.shape == (*lead, *SHAPES[name])
        assert torch.equal(piece, layout.view(v, name))


def test_where_selects_by_pattern():
    layout = Layout(SHAPES)
    assert layout.where("*.weight").sum() == 14
    assert layout.where("a.*", "scale").nonzero().flatten().tolist() == list(range(9))
    with pytest.raises(fl.FedloomError, match="unknown parameter pattern 'lora"):
        layout.where("lora*")
    with pytest.raises(fl.FedloomError, match=r"Did you mean 'a\.bias'"):
        layout.span("a.bia")


def test_buffers_come_last_and_take_no_gradient():
    layout = Layout({"w": (3,)}, {"mean": (2,)})
    assert (layout.size, layout.trainable) == (5, 3)
    assert layout != Layout({"w": (3,), "mean": (2,)})
    assert layout == Layout({"w": (3,)}, {"mean": (2,)})
    assert hash(layout) == hash(Layout({"w": (3,)}, {"mean": (2,)}))


def test_joined_puts_two_parts_where_they_belong():
    mask = torch.tensor([True, False, True, False])
    whole = joined(mask, torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]))
    assert whole.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_model_is_its_module():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model, x = fl.Model(net), torch.randn(5, 3)
    w = model.initial()
    assert torch.equal(model(w, x), net(x))
    moved = w + 0.1
    assert torch.allclose(model.to_module(moved)(x), model(moved, x))
    assert torch.equal(net(x), model(w, x))  # holds no weights: the module did not change
    g = torch.func.grad(lambda v: model(v, x).square().sum())(w)
    grads = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    assert torch.allclose(g, torch.cat([t.flatten() for t in grads]), atol=1e-6)


def test_frozen_weights_are_not_in_the_vector():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    model = fl.Model(net)
    assert model.layout.names == ["1.weight", "1.bias"]
    assert model.initial().shape == (10,)


def test_running_statistics_need_a_rule():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(fl.FedloomError, match="buffers='vector'"):
        fl.Model(net)
    assert fl.Model(net, buffers="vector").layout.size == fl.Model(net, buffers="batch").layout.size + 8
