"""MAML against NumPy: Hessians written out, splits by their keys, and differences of the loss after adapting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from worked import SIZES, START, X, Y, cohort, gradient, run, same

import fedloom as fl
from fedloom.errors import NotSupported
from fedloom.keyed import generator
from fedloom.methods.personalisation.maml import exact, on_query
from fedloom.testing import tiny_federation
from fedloom.testing.problems import quadratics

METHOD = fl.Maml(cohort=3, inner_lr=0.3, inner_steps=2, support=0.4, server_lr=0.8, anneal=5)


def split(i: int, r: int) -> tuple[list[int], list[int]]:
    order = torch.randperm(SIZES[i], generator=generator(0, "support", i, r, 0)).tolist()
    if SIZES[i] == 1:
        return order, order
    cut = min(max(1, int(0.4 * SIZES[i])), SIZES[i] - 1)
    return order[:cut], order[cut:]


def hessian(w, i, rows):
    """Of the mean cross entropy: sum_x (diag p - p p^T) kron (x, 1)(x, 1)^T, in the vector's order."""
    h = np.zeros((12, 12))
    for x in X[i][rows]:
        z = w[:9].reshape(3, 3) @ x + w[9:]
        p = np.exp(z) / np.exp(z).sum()
        a = np.zeros((3, 12))  # dz / dw
        for c in range(3):
            a[c, 3 * c : 3 * c + 3], a[c, 9 + c] = x, 1
        h += a.T @ (np.diag(p) - np.outer(p, p)) @ a
    return h / len(rows)


def meta_gradient(phi, i, r, second_order=True, steps=2, lr=0.3):
    support, query = split(i, r)
    w, through = phi, np.eye(12)
    for _ in range(steps):
        through = (np.eye(12) - lr * hessian(w, i, support)) @ through
        w = w - lr * gradient(w, i, support)
    g = gradient(w, i, query)
    return through.T @ g if second_order else g


@pytest.mark.parametrize("second_order", [True, False])
def test_three_rounds(second_order):
    phi = START
    for r in range(3):
        g = np.mean([meta_gradient(phi, i, r, second_order) for i in cohort(r, 3)], axis=0)
        phi = phi - 0.8 * (1 - r / 5) * g
    same(run(replace(METHOD, second_order=second_order), rounds=3).params, phi)


def test_without_inner_steps_it_descends_the_query_loss():
    phi = START - 0.8 * np.mean([gradient(START, i, split(i, 0)[1]) for i in range(4)], axis=0)
    for second_order in (True, False):
        got = run(replace(METHOD, cohort=4, inner_steps=0, second_order=second_order), rounds=1)
        same(got.params, phi)


def test_on_quadratics_the_gradient_is_in_closed_form():
    """Copies of one sample: support and query agree, so g_i = (I - lr A)^K A (I - lr A)^K (phi - b)."""
    q = quadratics(clients=4, dim=3, samples=(2, 3, 4, 5))
    method = fl.Maml(cohort=4, inner_lr=0.2, inner_steps=3, server_lr=0.5)
    phi = q.start
    options = {"engine": "sequential", "dtype": torch.float64, "evaluate_every": 0}
    got = fl.run(method, q.task, q.federation, rounds=40, **options).params
    for _ in range(40):
        g = torch.zeros(3, dtype=torch.float64)
        for a, b in zip(q.a, q.b):
            shrink = torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - 0.2 * a, 3)
            g += shrink @ a @ shrink @ (phi - b) / 4
        phi = phi - 0.5 * g
    same(got, phi.numpy(), 1e-10)


HIDDEN = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
ATTENTION = nn.Sequential(
    nn.Linear(3, 4),
    nn.Unflatten(1, (2, 2)),
    nn.TransformerEncoderLayer(2, 1, 3, dropout=0.0, activation="gelu", batch_first=True),
    nn.Flatten(),
    nn.Linear(4, 3),
)


@pytest.mark.parametrize("net", [HIDDEN, ATTENTION], ids=["a hidden layer", "attention"])
def test_the_gradient_is_the_slope_of_the_loss_after_adapting(net: nn.Module):
    """By central differences."""
    model = fl.Model(net.double())
    data = {
        "support": fl.Data(x=torch.from_numpy(X[0][:3]), y=torch.from_numpy(Y[0][:3])),
        "query": fl.Data(x=torch.from_numpy(X[0][3:]), y=torch.from_numpy(Y[0][3:])),
    }

    class F:
        def __call__(self, v, loss=on_query):
            return loss(model, v, data, None).mean()

        def grad(self, v, loss=on_query):
            return torch.func.grad(lambda u: self(u, loss))(v)

    def after(v):
        for _ in range(3):
            v = v - 0.3 * torch.func.grad(lambda u: model.loss(u, data["support"]))(v)
        return model.loss(v, data["query"])

    w = model.initial()
    g, _ = exact(w, F(), 0, None, {"lr": 0.3, "steps": 3})
    h = 1e-5
    slope = [float(after(w + h * e) - after(w - h * e)) / (2 * h) for e in torch.eye(len(w), dtype=w.dtype)]
    np.testing.assert_allclose(g.numpy(), slope, atol=1e-8)


@pytest.mark.parametrize("wrong", [{"inner_lr": 0.0}, {"inner_steps": -1}, {"support": 1.0}, {"server_lr": -1.0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError):
        fl.Maml(**wrong)


def normed(rule):
    task = fl.Classification(model="cnn-bn:width=0.25,depth=1", buffers=rule)
    return task, tiny_federation()


def test_running_statistics_in_the_vector_are_refused():
    with pytest.raises(NotSupported, match=r"buffers='batch' or 'frozen'.*second_order=False"):
        fl.run(fl.Maml(cohort=2), *normed("vector"), rounds=1, dtype=torch.float64)


@pytest.mark.parametrize("rule", ["batch", "frozen"])
def test_batch_normalisation_can_be_differentiated_twice(rule):
    """The pure network is first made in the middle of a derivative, and must outlive it."""
    got = fl.run(fl.Maml(cohort=2), *normed(rule), rounds=3, engine="sequential", dtype=torch.float64)
    assert bool(got.params.isfinite().all())
