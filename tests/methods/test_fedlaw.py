"""FedLAW: the learned mixture and its gradients, rounds with Adam by hand, its reduction, and statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from worked import SGD, START, N, Softmax, X, Y, cohort, federation, run, same, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.methods.optimisation.fedlaw import mixture, shuffled

PROXY = fl.Data(x=torch.from_numpy(np.concatenate(X[:3])) + 0.1, y=torch.from_numpy(np.concatenate(Y[:3])))


def with_proxy() -> fl.Federation:
    held = federation()
    held.validation = PROXY
    return held


def go(method: fl.Method, rounds: int) -> fl.Run:
    options = {"engine": "sequential", "dtype": torch.float64, "evaluate_every": 0}
    return fl.run(method, fl.Classification(model=Softmax), with_proxy(), rounds=rounds, **options)


def network() -> fl.Model:
    e = fl.Experiment(fl.FedAvg(), fl.Classification(model=Softmax), federation(), dtype=torch.float64)
    return fl.runs.Run(e).plan.model


def gradient(w: np.ndarray, rows: list[int]) -> np.ndarray:
    x, y = PROXY.x.numpy()[rows], PROXY.y.numpy()[rows]
    z = x @ w[:9].reshape(3, 3).T + w[9:]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return np.concatenate([(p.T @ x).ravel(), p.sum(0)]) / len(y)


def worked_out(
    rounds: int, epochs: int, lr: float, batch: int, halve: int, k: int = 3
) -> tuple[np.ndarray, list[float]]:
    x, gammas = START, []
    for r in range(rounds):
        chosen = cohort(r, k)
        ys = np.array([trained(x, i, r) for i in chosen])
        t = np.concatenate([[0.0], np.log(N[chosen])])  # q, then z
        m = v = np.zeros_like(t)
        step = 0
        for e in range(epochs):
            order = torch.randperm(len(PROXY), generator=generator(0, "server batches", r, e)).tolist()
            for at in range(0, len(order), batch):
                lam = np.exp(t[1:]) / np.exp(t[1:]).sum()
                mean = lam @ ys
                g = gradient(np.exp(t[0]) * mean, order[at : at + batch])
                grad = np.concatenate([[g @ (np.exp(t[0]) * mean)], lam * (np.exp(t[0]) * (ys - mean) @ g)])
                step += 1
                m, v = 0.5 * m + 0.5 * grad, 0.999 * v + 0.001 * grad**2
                t = t - lr * 0.5 ** (e // halve) * (m / (1 - 0.5**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        lam = np.exp(t[1:]) / np.exp(t[1:]).sum()
        x = np.exp(t[0]) * lam @ ys
        gammas.append(float(np.exp(t[0])))
    return x, gammas


def test_rounds():
    expected, gammas = worked_out(3, epochs=5, lr=0.05, batch=4, halve=2)
    done = go(fl.FedLaw(cohort=3, solver=SGD, epochs=5, lr=0.05, batch=4, halve=2), 3)
    same(done.params, expected, 1e-8)
    assert [row["notes"]["gamma"] for row in done.rows] == pytest.approx(gammas, abs=1e-8)


def test_without_epochs_it_is_fedavg():
    same(
        go(fl.FedLaw(cohort=3, solver=SGD, epochs=0), 3).params,
        run(fl.FedAvg(cohort=3, solver=SGD), rounds=3).params.numpy(),
    )


def test_gradients_are_those_of_the_card():
    """d loss / d q = <grad L(x), x>;  d loss / d z_i = lambda_i <grad L(x), gamma (y_i - mean)>."""
    rng = torch.Generator().manual_seed(1)
    models = torch.randn(3, 12, generator=rng, dtype=torch.float64)
    q, z = torch.tensor(0.3, dtype=torch.float64), torch.randn(3, generator=rng, dtype=torch.float64)
    q, z = q.requires_grad_(), z.requires_grad_()
    net = fl.runs.Run(
        fl.Experiment(fl.FedAvg(), fl.Classification(model=Softmax), federation(), dtype=torch.float64)
    ).plan.model
    x = mixture(q, z, models, 12)
    dq, dz = torch.autograd.grad(net.loss(x, PROXY), (q, z))
    g = torch.from_numpy(gradient(x.detach().numpy(), list(range(len(PROXY)))))
    lam = z.detach().softmax(0)
    torch.testing.assert_close(dq, g @ x.detach())
    torch.testing.assert_close(dz, lam * (q.exp().detach() * (models - lam @ models) @ g))


def test_statistics_are_averaged_and_not_shrunk():
    models = torch.tensor([[1.0, 2.0, 10.0], [3.0, 4.0, 30.0]], dtype=torch.float64)
    x = mixture(torch.tensor(-1.0).double(), torch.zeros(2).double(), models, 2)
    torch.testing.assert_close(x, torch.tensor([2 / np.e, 3 / np.e, 20.0], dtype=torch.float64))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_learned_in_32(kind):
    """Adam's constants and steps of a thousandth are lost in 16."""

    def gammas(kind: torch.dtype) -> list[float]:
        held = fl.Federation.from_clients(
            [(torch.from_numpy(X[i]).to(kind), torch.from_numpy(Y[i])) for i in range(4)], client_test=0.0, classes=3
        )
        held.validation = PROXY.replace(x=PROXY.x.to(kind))
        method = fl.FedLaw(cohort=3, solver=fl.SGD(lr=0.01), epochs=5, lr=1e-3)
        options = {"engine": "sequential", "dtype": kind, "evaluate_every": 0}
        return [
            row["notes"]["gamma"] for row in fl.run(method, fl.Classification(model=Softmax), held, 2, **options).rows
        ]

    assert gammas(kind) == pytest.approx(gammas(torch.float32), abs=2e-4)


def test_it_lowers_the_loss_on_the_servers_data():
    net = fl.runs.Run(
        fl.Experiment(fl.FedAvg(), fl.Classification(model=Softmax), federation(), dtype=torch.float64)
    ).plan.model
    law = go(fl.FedLaw(cohort=4, solver=SGD, epochs=60, lr=0.05), 1).params
    avg = run(fl.FedAvg(cohort=4, solver=SGD), rounds=1).params
    assert float(net.loss(law, PROXY)) < float(net.loss(avg, PROXY)) - 0.01


def test_an_epoch_shows_each_sample_once():
    seen = torch.cat([b.y for b in shuffled(fl.Data(x=torch.arange(7.0)[:, None], y=torch.arange(7)), 3, generator(0))])
    assert sorted(seen.tolist()) == list(range(7))


def test_it_needs_data_of_the_servers_own():
    with pytest.raises(fl.FedloomError, match="server"):
        run(fl.FedLaw(cohort=2, solver=SGD))


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"lr": 0}, {"batch": 0}, {"halve": 0}])
def test_wrong_options(wrong):
    with pytest.raises(fl.FedloomError, match="FedLaw"):
        fl.FedLaw(**wrong)
