"""FedMD against NumPy: preparing, showing, agreeing, digesting, revisiting; bytes that no model changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard, rows
from worked import SIZES, START, Softmax, X, Y, cohort, same

import fedloom as fl
from fedloom.keyed import choose
from fedloom.message import nbytes
from fedloom.testing import tiny_federation, tiny_task

PREPARE, DIGEST, REVISIT = (
    fl.SGD(lr=0.1, epochs=2, batch_size=4),
    fl.SGD(lr=0.05, epochs=3, batch_size=2),
    fl.SGD(lr=0.2, epochs=1, batch_size=3),
)
MD = fl.FedMD(cohort=3, subset=5, prepare=PREPARE, digest=DIGEST, revisit=REVISIT)

_rng = np.random.default_rng(5)
PX, PY = _rng.normal(0, 2, (8, 3)), np.arange(8) % 3


def data(labels: bool = True) -> fl.Federation:
    parts = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(X, Y)]
    public = fl.Data(x=torch.from_numpy(PX), **({"y": torch.from_numpy(PY)} if labels else {}))
    return fl.Federation.from_clients(parts, client_test=0.0, ordered=True, classes=3, public=public)


def logits(w, x):
    return x @ w[:9].reshape(3, 3).T + w[9:]


def step(w, x, out, lr):
    """One step of SGD, given the gradient in the logits of the mean loss over the batch."""
    return w - lr * np.concatenate([(out.T @ x).ravel(), out.sum(0)]) / len(x)


def learn(w, x, y, solver, *key):
    """Cross entropy."""
    for index in rows(len(x), solver, *key[:3], training=key[3]):
        z = logits(w, x[index])
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        p[np.arange(len(index)), y[index]] -= 1
        w = step(w, x[index], p, solver.lr)
    return w


def digest(w, x, teacher, *key):
    """Mean absolute difference of logits."""
    for index in rows(len(x), DIGEST, *key[:3], training=key[3]):
        w = step(w, x[index], np.sign(logits(w, x[index]) - teacher[index]) / 3, DIGEST.lr)
    return w


def test_rounds():
    own = {}
    for r in range(3):
        members, subset = cohort(r, 3), choose(8, 5, "fedmd", r)
        for i in members:
            if i not in own:
                w = learn(START, PX, PY, PREPARE, i, r, 0, 0)
                own[i] = learn(w, X[i], Y[i], PREPARE, i, r, 0, 1)
        consensus = np.mean([logits(own[i], PX[subset]) for i in members], axis=0)
        for i in members:
            w = digest(own[i], PX[subset], consensus, i, r, 1, 0)
            own[i] = learn(w, X[i], Y[i], REVISIT, i, r, 1, 1)
        got, heard = overheard(MD, fl.Classification(model=Softmax), data(), rounds=r + 1)
        assert set(got.memories) == set(own)
        for i, w in own.items():
            same(got.memories[i]["params"], w)
        taught = [h for h in heard if h.round == r and "logits" in h.payload]
        assert sorted(h.client for h in taught) == sorted(members)
        for h in taught:
            same(h.payload.logits, consensus)
            assert h.reply is None


@pytest.mark.parametrize(
    "task", [tiny_task({"families"}), fl.Classification(model="mlp:8"), fl.Classification(model="mlp:64")]
)
def test_bytes_and_the_consensus_do_not_depend_on_the_models(task):
    got, heard = overheard(replace(MD, cohort=6), task, tiny_federation({"public"}), rounds=1)
    shown = [h.reply.logits for h in heard if h.reply is not None]
    assert [nbytes(h.reply) for h in heard if h.reply is not None] == [8 * 5 * 4] * 6
    assert got.summary["bytes_down"] == 6 * (8 + 8 + 8 * 5 * 4)
    taught = [h.payload.logits for h in heard if h.reply is None]
    assert len(taught) == 6
    for consensus in taught:
        torch.testing.assert_close(consensus, torch.stack(shown).mean(0), rtol=0, atol=1e-14)


async def spoils(client, honest, **payload):
    reply = await honest(client, **payload)
    return reply and fl.Message(logits=reply.logits * torch.nan)


def test_who_showed_nothing_that_counts_is_not_taught():
    options = {"dtype": torch.float64, "engine": "sequential", "evaluate_every": 0, "behave": {2: spoils}}
    got = fl.run(replace(MD, cohort=4), fl.Classification(model=Softmax), data(), rounds=2, **options)
    assert set(got.memories) == {0, 1, 3}
    assert [row["excluded"] for row in got.rows] == [2, 2]  # its logits, and then the lesson


def test_all_public_samples_where_there_are_fewer_than_asked():
    got, heard = overheard(replace(MD, subset=99), fl.Classification(model=Softmax), data(), rounds=1)
    assert heard[0].reply.logits.shape == (8, 3)
    assert got.plan.method.sizes(got.host.clients) == {"n": 8, "outputs": 3}
    assert SIZES == (7, 2, 5, 1)


def test_wrong_settings_are_refused():
    with pytest.raises(fl.FedloomError, match="subset=0"):
        fl.FedMD(subset=0)
    with pytest.raises(fl.FedloomError, match="public"):
        overheard(MD, fl.Classification(model="mlp:8"), tiny_federation())
    with pytest.raises(fl.FedloomError, match="LABELLED"):
        overheard(MD, fl.Classification(model=Softmax), data(labels=False))
