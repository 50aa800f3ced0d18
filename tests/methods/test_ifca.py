"""IFCA against NumPy: who picks which model, which rows move, and groups that are found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from orders import overheard
from worked import SGD, START, N, X, Y, cohort, federation, run, same, trained
from worked import Softmax as Finished

import fedloom as fl
from fedloom.errors import ConfigError


def Drawn() -> torch.nn.Module:
    """A network that is drawn anew for each cluster."""
    return torch.nn.Linear(3, 3, dtype=torch.float64)


def loss(w, i):
    z = X[i] @ w[:9].reshape(3, 3).T + w[9:]
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), Y[i]]).mean())


def test_one_cluster_is_fedavg():
    same(
        run(fl.Ifca(cohort=3, k=1, solver=SGD), rounds=3).state.models[0],
        run(fl.FedAvg(cohort=3, solver=SGD), rounds=3).params.numpy(),
    )


def test_rounds():
    method, task = fl.Ifca(cohort=3, k=3, solver=SGD), fl.Classification(model=Drawn)
    begun, _ = overheard(method, task, federation(), rounds=0)
    u, picked = begun.state.models.numpy(), set()
    assert all(np.abs(u[a] - u[b]).max() > 0.01 for a in range(3) for b in range(a))
    for r in range(4):
        mine = {i: int(np.argmin([loss(u[j], i) for j in range(3)])) for i in cohort(r, 3)}
        picked |= set(mine.values())
        new = u.copy()
        for j in set(mine.values()):
            members = [i for i in mine if mine[i] == j]
            new[j] = np.average([trained(u[j], i, r) for i in members], axis=0, weights=N[members])
        u = new
        got, heard = overheard(method, task, federation(), rounds=r + 1)
        same(got.state.models, u)
        assert {h.client: int(h.reply.models.index) for h in heard if h.round == r} == mine
    assert len(picked) > 1


def test_a_model_nobody_picked_stays_bit_for_bit():
    method, task = fl.Ifca(cohort=1, k=3, solver=SGD), fl.Classification(model=Drawn)
    before, _ = overheard(method, task, federation(), rounds=0)
    got, heard = overheard(method, task, federation(), rounds=1)
    j = int(heard[0].reply.models.index)
    rest = [k for k in range(3) if k != j]
    assert torch.equal(got.state.models[rest], before.state.models[rest])
    assert not torch.equal(got.state.models[j], before.state.models[j])


def test_groups_are_found_again():
    """Two groups see the same inputs with opposite labels: clients of one group pick one model."""
    rng = np.random.default_rng(0)
    parts = []
    for i in range(8):
        x = rng.normal(size=(30, 3))
        y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)
        parts.append((torch.from_numpy(x), torch.from_numpy(y if i < 4 else 1 - y)))
    data = fl.Federation.from_clients(parts, client_test=0.2, classes=3)
    method = fl.Ifca(cohort=8, k=2, solver=fl.SGD(lr=0.5, epochs=2, batch_size=10))
    got, heard = overheard(method, fl.Classification(model=Drawn), data, rounds=10, evaluate_every=1)
    last = {h.client: int(h.reply.models.index) for h in heard if h.round == 9}
    assert len({last[i] for i in range(4)}) == len({last[i] for i in range(4, 8)}) == 1
    assert last[0] != last[4]
    assert got.rows[-1]["personal"]["accuracy"] > 0.8


def test_it_sends_k_models_down():
    data, task = federation(), fl.Classification(model=Drawn)
    one, _ = overheard(fl.FedAvg(cohort=4, solver=SGD), task, data)
    three, _ = overheard(fl.Ifca(cohort=4, k=3, solver=SGD), task, data)
    assert three.summary["bytes_down"] == 3 * one.summary["bytes_down"]
    assert three.summary["bytes_up"] == one.summary["bytes_up"] + 2 * 4 * 1  # and which one: a bitmap of 3


def test_wrong_settings_are_refused():
    with pytest.raises(fl.FedloomError, match="at least one cluster"):
        fl.Ifca(k=0)
    with pytest.raises(fl.FedloomError, match="made from a function"):
        overheard(fl.Ifca(k=2), fl.Classification(model=Finished()), federation(), rounds=1)
    assert START.shape == (12,)


def test_a_run_with_another_number_of_clusters_is_refused():
    two = run(fl.Ifca(cohort=3, k=2, solver=SGD), rounds=1)
    with pytest.raises(ConfigError, match="2 clusters: say k=2"):
        run(fl.Ifca(cohort=3, k=3, solver=SGD), rounds=1, before=two)
