"""FedConv against loops in NumPy: what filters make of weights, gradients that reach them, rounds, bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard, rows
from torch import nn
from worked import SGD, SIZES, X, Y, cohort

import fedloom as fl
from fedloom.message import nbytes
from fedloom.methods.systems.programs import compressed, dilated, first_of, learn, program
from fedloom.methods.systems.width import first_units
from fedloom.testing import tiny_federation
from fedloom.vector import Layout

NONE, STILL = fl.SGD(steps=0), fl.Adam(steps=0)
CONV = fl.FedConv(cohort=4, rates=(1.0, 0.5), solver=SGD, own=NONE, learner=STILL)
BIG = Layout({"conv.weight": (5, 4, 3, 2), "conv.bias": (5,), "head.weight": (3, 8)})
SMALL = Layout({"conv.weight": (3, 2, 3, 2), "conv.bias": (3,), "head.weight": (3, 5)})


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5, dtype=torch.float64)
        self.head = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


TASK = fl.Classification(model=Mlp)


def federation():
    parts = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(X, Y)]
    own = fl.Data(x=torch.from_numpy(X[2]), y=torch.from_numpy(Y[0][:5]))
    return fl.Federation.from_clients(parts, client_test=0.0, ordered=True, classes=3, validation=own)


def random(size, seed=0):
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slid(w, k):
    """Each output is the filter times what lies under it."""
    out = np.zeros((w.shape[0] - k.shape[0] + 1, w.shape[1] - k.shape[1] + 1))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = (w[i : i + k.shape[0], j : j + k.shape[1]] * k).sum()
    return out


def stamped(w, k):
    """Each input stamps the filter, times itself, on the output."""
    out = np.zeros((w.shape[0] + k.shape[0] - 1, w.shape[1] + k.shape[1] - 1))
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            out[i : i + k.shape[0], j : j + k.shape[1]] += w[i, j] * k
    return out


@pytest.mark.parametrize(
    ("make", "rule", "before", "after"), [(compressed, slid, BIG, SMALL), (dilated, stamped, SMALL, BIG)]
)
def test_what_filters_make_of_weights(make, rule, before, after):
    filters = program(BIG, SMALL)
    vector, w = random(filters.size), random(before.size, 1)
    got, parts = after.tree(make(vector, w, BIG, SMALL)), filters.tree(vector)
    for name, piece in before.tree(w).items():
        flat = piece.reshape(*piece.shape[:2], -1) if piece.dim() > 1 else piece.view(-1, 1, 1)
        for p in range(flat.shape[2]):
            v = parts[f"{name}.direction"][p].numpy()
            k = float(parts[f"{name}.size"][p]) * v / np.sqrt((v * v).sum())
            mine = got[name].reshape(*got[name].shape[:2], -1) if piece.dim() > 1 else got[name].view(-1, 1, 1)
            np.testing.assert_allclose(mine[..., p].numpy(), rule(flat[..., p].numpy(), k), atol=1e-12)


def test_shapes_of_filters():
    assert dict(program(BIG, SMALL).shapes) == {
        "conv.weight.direction": (6, 3, 3), "conv.weight.size": (6,), "conv.bias.direction": (1, 3, 1),
        "conv.bias.size": (1,), "head.weight.direction": (1, 1, 4), "head.weight.size": (1,),
    }  # fmt: skip


def test_a_number_of_the_network_is_scaled():
    one = Layout({"temperature": ()})
    filters = program(one, one)
    assert filters.shapes == {"temperature.direction": (1, 1, 1), "temperature.size": (1,)}
    for make in (compressed, dilated):
        assert make(torch.tensor([-4.0, 3.0]), torch.tensor([2.0]), one, one).tolist() == [-6.0]


def test_gradients_reach_filters_and_weights():
    vector, w, u = random(program(BIG, SMALL).size), random(BIG.size, 1), random(SMALL.size, 2)
    for make, v in ((compressed, w), (dilated, u)):
        inputs = (vector.clone().requires_grad_(), v.clone().requires_grad_())
        assert torch.autograd.gradcheck(lambda f, x, make=make: make(f, x, BIG, SMALL), inputs)
    both = (compressed(vector, w, BIG, SMALL) @ u, w @ dilated(vector, u, BIG, SMALL))
    torch.testing.assert_close(*both)  # one is the transpose of the other


@pytest.mark.parametrize("name", ["mlp:10,8", "cnn:width=0.5"])
def test_filters_begin_as_slices_of_the_first_units(name):
    data, task = tiny_federation({"server data"}), fl.Classification(model=name)
    experiment = fl.Experiment(CONV, task, data, rounds=0, dtype=torch.float64)
    model = experiment.run().plan.model
    part, w = model.part(first_units(0.5)), model.initial()
    big, small = model.layout, part.model.layout
    first = first_of(program(big, small), w)
    assert torch.equal(compressed(first, w, big, small), w[part.index])
    back = torch.zeros_like(w)
    back[part.index] = w[part.index]
    assert torch.equal(dilated(first, w[part.index], big, small), back)


def local(pieces, i, t):
    w = [p.clone().requires_grad_() for p in pieces]
    x, y = torch.from_numpy(X[i]), torch.from_numpy(Y[i])
    for index in rows(SIZES[i], SGD, i, t, 0):
        scores = torch.relu(x[index] @ w[0].T + w[1]) @ w[2].T + w[3]
        grads = torch.autograd.grad(nn.functional.cross_entropy(scores, y[index]), w)
        w = [(p - SGD.lr * g).detach().requires_grad_() for p, g in zip(w, grads)]
    return [p.detach() for p in w]


CUT = [(slice(3), slice(None)), (slice(3),), (slice(None), slice(3)), (slice(None),)]


def test_rounds_without_learning_are_sums_of_slices_put_back_among_zeros():
    got, heard = overheard(CONV, TASK, federation(), rounds=2)
    model = got.plan.model
    pieces = [p.detach().clone() for p in model.to_module(model.initial()).parameters()]
    for t in range(2):
        total = [torch.zeros_like(p) for p in pieces]
        for i, n in enumerate(SIZES):
            small = i % 2 == 1
            trained = local([p[c] for p, c in zip(pieces, CUT)] if small else pieces, i, t)
            for sum_, c, p in zip(total, CUT, trained):
                sum_[c if small else ...] += n / sum(SIZES) * p
        pieces = total
    torch.testing.assert_close(got.params, torch.cat([p.flatten() for p in pieces]), rtol=0, atol=1e-12)
    for h in heard:
        assert nbytes(h.payload) == nbytes(h.reply) == 8 * (24 if h.client % 2 else 38)


def test_the_first_step_of_every_program():
    """Adam's first step is lr g / (|g| + eps): g by differences of a loss written in NumPy."""
    lr = 0.05
    method = replace(CONV, learner=fl.Adam(lr=lr, steps=1, batch_size=9, eps=1e-3))
    got, heard = overheard(method, TASK, federation(), rounds=1)
    model = got.plan.model
    big, small = model.layout, method.small(model, 0.5).layout
    filters = program(big, small)
    x, y = X[2], Y[0][:5]

    def made(vector, w, before, rule):
        parts, out = filters.tree(torch.from_numpy(vector)), []
        for name, piece in before.tree(torch.from_numpy(w)).items():
            v = parts[f"{name}.direction"][0].numpy()
            k = float(parts[f"{name}.size"][0]) * v / np.sqrt((v * v).sum())
            out.append(rule(piece.numpy().reshape(len(piece), -1), k))
        return out

    def loss(pieces):
        a, b, c, d = pieces
        z = np.maximum(x @ a.T + b.ravel(), 0) @ c.T + d.ravel()
        return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(5), y])

    def stepped(start, f):
        g = np.array([(f(start + e) - f(start - e)) / 2e-6 for e in 1e-6 * np.eye(len(start))])
        return start - lr * g / (np.abs(g) + 1e-3)

    start, w = first_of(filters, model.initial()).numpy(), model.initial().numpy()
    phi = stepped(start, lambda f: loss(made(f, w, big, slid)))
    np.testing.assert_allclose(got.state.shrink[0.5].numpy(), phi, atol=1e-6)
    whole = {}
    for h in heard:
        sent = np.concatenate([p.ravel() for p in made(phi, w, big, slid)]) if h.client % 2 else w
        np.testing.assert_allclose(h.payload.params.numpy(), sent, atol=1e-6)
        u = h.reply.params.numpy()
        if h.client % 2:
            psi = stepped(start, lambda f, u=u: loss(made(f, u, small, stamped)))
            np.testing.assert_allclose(got.state.grow[h.client].numpy(), psi, atol=1e-5)
            whole[h.client] = made(psi, u, small, stamped)
        else:
            whole[h.client] = [p.numpy().reshape(len(p), -1) for p in big.tree(h.reply.params).values()]
    parts = [[n / sum(SIZES) * p for p in whole[i]] for i, n in enumerate(SIZES)]

    def mix(a):
        return [sum(s * row[k] for s, row in zip(a.reshape(4, 4)[:, k], parts)) for k in range(4)]

    a = stepped(np.ones(16), lambda a: loss(mix(a)))
    np.testing.assert_allclose(got.params.numpy(), np.concatenate([p.ravel() for p in mix(a)]), atol=1e-4)
    assert set(got.state.grow) == {1, 3}


def test_programs_that_compress_go_on_where_they_were():
    """One step of Adam moves an entry by lr at most; after two rounds some are further from where they began."""
    method = replace(CONV, learner=fl.Adam(lr=0.01, steps=1, batch_size=9))
    for rounds, least, most in ((1, 0.0, 0.01), (2, 0.015, 0.02)):
        got, _ = overheard(method, TASK, federation(), rounds=rounds)
        model = got.plan.model
        begun = first_of(program(model.layout, method.small(model, 0.5).layout), model.initial())
        assert least < (got.state.shrink[0.5] - begun).abs().max() <= most + 1e-9


def test_programs_stay_with_their_clients():
    method = replace(CONV, cohort=2, rates=(0.5,), learner=fl.Adam(lr=0.05, steps=2, batch_size=9))
    one, two = (overheard(method, TASK, federation(), rounds=n)[0].state.grow for n in (1, 2))
    assert set(one) == set(cohort(0, 2))
    assert set(two) == set(cohort(0, 2)) | set(cohort(1, 2))
    for i in one:
        assert torch.equal(one[i], two[i]) == (i not in cohort(1, 2))


def test_a_client_that_comes_back_with_another_size_begins_a_program_of_that_size():
    method = replace(CONV, rates=(0.5, 0.75, 1.0))
    first, _ = overheard(method, TASK, federation(), rounds=1)
    got, _ = overheard(replace(method, rates=(0.75, 0.5, 1.0)), TASK, federation(), rounds=1, before=first)
    assert set(first.state.grow) == set(got.state.grow) == {0, 1, 3}
    assert {i: len(psi) for i, psi in got.state.grow.items()} == {
        i: len(got.state.shrink[r]) for i, r in ((0, 0.75), (1, 0.5), (3, 0.75))
    }


def test_training_on_the_servers_own_data_comes_first():
    method = replace(CONV, own=fl.SGD(lr=0.1, steps=3, batch_size=9))
    got, heard = overheard(method, TASK, federation(), rounds=1)
    w = got.plan.model.initial()
    x, y = torch.from_numpy(X[2]), torch.from_numpy(Y[0][:5])
    for _ in range(3):
        w = w.requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(got.plan.model(w, x), y), w)
        w = (w - 0.1 * g).detach()
    torch.testing.assert_close(heard[0].payload.params, w, rtol=0, atol=1e-12)


def test_one_size_without_learning_is_fedavg():
    one, avg = (
        overheard(m, TASK, federation(), rounds=3)[0].params
        for m in (replace(CONV, rates=(1.0,), cohort=3), fl.FedAvg(cohort=3, solver=SGD))
    )
    torch.testing.assert_close(one, avg, rtol=0, atol=1e-12)


def test_a_solver_without_steps_learns_nothing_and_one_with_steps_goes_down():
    data, rng = fl.Data(x=torch.zeros(4, 1), y=torch.zeros(4)), torch.Generator()
    v = torch.tensor([3.0, -2.0])
    assert torch.equal(learn(v, lambda v, batch: v.square().sum(), data, STILL, rng), v)
    moved = learn(v, lambda v, batch: v.square().sum(), data, fl.Adam(lr=0.1, steps=100, clip=1.0), rng)
    assert moved.abs().max() < 0.3


def test_what_cannot_be_is_refused():
    for rates in ((), (0.0,), (1.5,)):
        with pytest.raises(fl.FedloomError, match="rates"):
            fl.FedConv(rates=rates)
    bn = fl.Classification(model="cnn-bn:width=0.25", buffers="vector")
    with pytest.raises(fl.FedloomError, match="running statistics"):
        overheard(CONV, bn, tiny_federation({"server data"}))
    with pytest.raises(fl.FedloomError, match="data of the server's own"):
        overheard(CONV, TASK, fl.Federation.from_clients([(torch.from_numpy(X[0]), torch.from_numpy(Y[0]))], classes=3))
