"""CDFL against NumPy: clients that come on their own, mixtures judged by the server's data, and one model back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard
from worked import SGD, SIZES, START, Softmax, X, Y, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.training.request import Schedule

WORLD = fl.World(step_seconds=0.1, spread=0.8, latency=0.05)
METHOD = fl.Cdfl(solver=SGD, rho=0.3, beta=0.6, by_loss=0.5, by_gap=0.2, least=0.25, a=2.0, b=1.0, warm=4)
SERVER = np.random.default_rng(3).normal(size=(9, 3)), np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
CLUSTER = np.array([0, 0, 1, 1, 1, 2, 2, 0, 2])


def federation(k: int = 3) -> fl.Federation:
    server = fl.Data(
        x=torch.from_numpy(SERVER[0]), y=torch.from_numpy(SERVER[1]), cluster=torch.from_numpy(CLUSTER % k)
    )
    parts = [(torch.from_numpy(X[i]), torch.from_numpy(Y[i])) for i in range(4)]
    return fl.Federation.from_clients(parts, client_test=0.0, ordered=True, classes=3, validation=server)


def run(method: fl.Method, rounds: int, k: int = 3):
    return overheard(method, fl.Classification(model=Softmax), federation(k), rounds=rounds, world=WORLD)


def loss(w, rows):
    z = SERVER[0][rows] @ w[:9].reshape(3, 3).T + w[9:]
    return (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), SERVER[1][rows]]).mean()


def gradient(w, x, y):
    z = x @ w[:9].reshape(3, 3).T + w[9:]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return np.concatenate([(p.T @ x).ravel(), p.sum(0)]) / len(y)


def warmed(rows, draw_and_turn) -> np.ndarray:
    order = Schedule.epochs(len(rows), 3, 4, generator(0, *draw_and_turn))
    w = START
    for k in range(4):
        batch = rows[order.index[k, : order.counts[k]].numpy()]
        w = w - SGD.lr * gradient(w, SERVER[0][batch], SERVER[1][batch])
    return w


def inverse(x):
    return (1 / x) / (1 / x).sum()


class Worked:
    """The server, and every client's next arrival."""

    def __init__(self, k: int = 3) -> None:
        self.rows = [np.flatnonzero(CLUSTER % k == j) for j in range(k)]
        self.centres = np.stack([self.warm(j) for j in range(k)])
        self.updates, self.mixtures = np.zeros(k, int), {}
        self.jobs: dict[int, dict] = {}
        self.now, self.ages, self.moves = 0.0, [], []

    def warm(self, j: int) -> np.ndarray:
        purpose = ("order",) if j == 0 else ("order", "", j)
        return warmed(self.rows[j], (*purpose, "server", 0, 0))

    def round(self, r: int) -> None:
        k = len(self.centres)
        for i in set(range(4)) - set(self.jobs):
            v = self.mixtures.get(i, np.full(k, 1 / k)) @ self.centres
            wait = WORLD.event("update", i, (i, r, 0))
            took = SGD.work(SIZES[i]) * WORLD.device(i).step_seconds + 2 * WORLD.latency
            w = trained(v, i, r, add=lambda w, v=v: 0.3 * (w - v))
            self.jobs[i] = {"end": self.now + wait + took, "w": w, "held": self.updates.copy()}
        i = min(self.jobs, key=lambda i: self.jobs[i]["end"])
        job = self.jobs.pop(i)
        self.now, w = job["end"], job["w"]
        mine = np.array([loss(w, rows) for rows in self.rows])
        gap = np.abs(mine - [loss(c, rows) for c, rows in zip(self.centres, self.rows)])
        far = np.array([np.linalg.norm(w - c) for c in self.centres])
        u = 0.5 * inverse(mine) + 0.2 * inverse(gap) + 0.3 * inverse(far)
        for j in range(k):
            if u[j] >= 0.25:
                tau = self.updates[j] - job["held"][j]
                s = 1.0 if tau <= 1 else 1 / (2 * (tau - 1) + 1)
                self.centres[j] += 0.6 * s * u[j] * (w - self.centres[j])
                self.ages.append(tau)
        self.moves.append((u >= 0.25).sum())
        self.updates = self.updates + (u >= 0.25)
        self.mixtures[i] = u


def test_twelve_uploads():
    worked = Worked()
    for r in range(12):
        worked.round(r)
    got, heard = run(METHOD, rounds=12)
    np.testing.assert_allclose(got.state.centres.numpy(), worked.centres, atol=1e-10)
    assert got.state.updates == tuple(worked.updates)
    assert got.host.now == pytest.approx(worked.now)
    for i, u in worked.mixtures.items():
        np.testing.assert_allclose(got.state.mixtures[i].numpy(), u, atol=1e-10)
        assert u.sum() == pytest.approx(1)
    assert max(worked.ages) > 1
    assert min(worked.moves) < 3  # some centre was left alone
    assert all(h.payload.params.shape == (12,) for h in heard)  # one model, not three


def test_with_one_distribution_it_mixes_whole_models():
    worked = Worked(1)
    for r in range(6):
        worked.round(r)
    got, _ = run(METHOD, rounds=6, k=1)
    np.testing.assert_allclose(got.state.centres.numpy(), worked.centres, atol=1e-10)
    assert all(u == 1 for u in got.state.mixtures.values())


def test_a_centre_that_is_not_meant_stays_bit_for_bit():
    begun, _ = run(METHOD, rounds=0)
    got, _ = run(replace(METHOD, least=0.9), rounds=5)
    assert torch.equal(got.state.centres, begun.state.centres)
    assert got.state.updates == (0, 0, 0)


def test_mixtures_are_found():
    """Three groups read other features: a client with data of one is seen to have it, and one with two both."""
    rng = np.random.default_rng(0)

    def samples(group: int, n: int):
        x = rng.normal(size=(n, 3))
        return x, (x[:, group] > 0).astype(int) + (x[:, group] > 1)

    def mixed(counts):
        parts = [samples(g, n) for g, n in enumerate(counts) if n]
        return tuple(torch.from_numpy(np.concatenate(p)) for p in zip(*parts))

    truth = [(60, 0, 0), (0, 60, 0), (0, 0, 60), (30, 30, 0)] * 2
    x, y = mixed((40, 40, 40))
    server = fl.Data(x=x, y=y, cluster=torch.arange(3).repeat_interleave(40))
    data = fl.Federation.from_clients([mixed(c) for c in truth], client_test=0.2, classes=3, validation=server)
    method = fl.Cdfl(solver=fl.SGD(lr=0.5, epochs=3, batch_size=10), beta=0.3)
    got, _ = overheard(method, fl.Classification(model=Softmax), data, rounds=80, world=WORLD, evaluate_every=80)
    for i, counts in enumerate(truth):
        u = got.state.mixtures[i].numpy()
        assert set(np.flatnonzero(u > 0.34)) == set(np.flatnonzero(counts)) if max(counts) == 60 else u[2] < min(u[:2])


def test_the_server_must_know_its_distributions():
    data = federation()
    data.validation = fl.Data(x=data.validation.x, y=data.validation.y)
    with pytest.raises(fl.FedloomError, match="knows its samples' distributions"):
        overheard(METHOD, fl.Classification(model=Softmax), data)


@pytest.mark.parametrize("given", [[0, 2], [-1, 0], [1, 2]])
def test_every_distribution_has_samples(given):
    data = federation()
    data.validation = data.validation.replace(cluster=torch.tensor(given).repeat(5)[:9])
    with pytest.raises(fl.FedloomError, match=rf"0, 1, 2.*given \{given}"):
        overheard(METHOD, fl.Classification(model=Softmax), data)


def test_nobody_there_is_a_legal_round():
    got, _ = overheard(METHOD, fl.Classification(model=Softmax), federation(), world=fl.World(present=1e-12), rounds=2)
    assert got.state.updates == (0, 0, 0)


def test_the_scores_by_losses_may_have_everything():
    for by_loss, by_gap in ((0.32, 0.68), (1.0, 0.0), (0.0, 1.0)):
        assert fl.Cdfl(by_loss=by_loss, by_gap=by_gap).shares == (by_loss, by_gap, 0.0)


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"rho": -1.0}, {"by_loss": 0.7, "by_gap": 0.4}, {"least": -1.0}, {"warm": 0}, {"a": -1.0}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError):
        fl.Cdfl(**wrong)
