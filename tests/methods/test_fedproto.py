"""FedProto against NumPy, over four architectures, and what a class that nobody has leaves behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import Blocks, overheard, rows
from worked import SIZES, X, cohort, federation, same

import fedloom as fl
from fedloom.message import nbytes
from fedloom.testing import tiny_federation, tiny_task

SGD = fl.SGD(lr=0.02, epochs=2, batch_size=3)
PROTO = fl.FedProto(cohort=4, lam=0.8, solver=SGD)
Y = [np.array([0, 2, 0, 2, 2, 0, 0]), np.array([2, 0]), np.array([0, 0, 0, 0, 0]), np.array([2])]
"""Class 1 is nobody's; client 2 has one class alone."""


def data() -> fl.Federation:
    parts = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(X, Y)]
    return fl.Federation.from_clients(parts, client_test=0.0, ordered=True, classes=3)


def split(w):
    """Features (2, 3), (2,); head (3, 2), (3,)."""
    return w[:6].reshape(2, 3), w[6:8], w[8:14].reshape(3, 2), w[14:]


def phi(w, i):
    f, b, _, _ = split(w)
    return X[i] @ f.T + b


def gradient(w, i, index, prototypes, known, lam):
    f, b, h, c = split(w)
    x, y = X[i][index], Y[i][index]
    z = x @ f.T + b
    s = z @ h.T + c
    p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    dz = p @ h + lam * known[y][:, None] * 2 * (z - prototypes[y]) / z.shape[1]
    return np.concatenate([(dz.T @ x).ravel(), dz.sum(0), (p.T @ z).ravel(), p.sum(0)]) / len(y)


def trained(w, i, r, prototypes, known, lam):
    for index in rows(SIZES[i], SGD, i, r, 0):
        w = w - SGD.lr * gradient(w, i, index, prototypes, known, lam)
    return w


START = np.concatenate([np.sin(np.arange(n) + k) for k, n in enumerate((6, 2, 6, 3))])


def test_rounds():
    own, prototypes, known = {}, np.zeros((3, 2)), np.zeros(3)
    for r in range(3):
        sums, counts = np.zeros((3, 2)), np.zeros(3)
        for i in cohort(r, 3):
            own[i] = trained(own.get(i, START), i, r, prototypes, known, 0.8)
            np.add.at(sums, Y[i], phi(own[i], i))
            np.add.at(counts, Y[i], 1)
        seen = counts > 0
        prototypes, known = prototypes.copy(), np.maximum(known, seen)
        prototypes[seen] = sums[seen] / counts[seen][:, None]
        got, _ = overheard(replace(PROTO, cohort=3), fl.Classification(model=Blocks), data(), rounds=r + 1)
        same(got.state.prototypes, prototypes)
        same(got.state.known, known)
        for i, w in own.items():
            same(got.memories[i]["params"], w)
    assert known.tolist() == [1, 0, 1]


def test_a_class_that_was_not_shown_this_round_keeps_its_prototype():
    task, alone = fl.Classification(model=Blocks), replace(PROTO, cohort=1)
    states, shown = [], []
    for r in range(9):
        got, heard = overheard(alone, task, data(), rounds=r + 1)
        states.append(got.state)
        shown.append(set(heard[-1].reply.sums.index.tolist()))
    missed = [(r, c) for r in range(1, 9) for c in (0, 2) if states[r - 1].known[c] and c not in shown[r]]
    assert missed
    for r, c in missed:
        assert torch.equal(states[r].prototypes[c], states[r - 1].prototypes[c])
        assert states[r].known[c] == 1


def test_without_the_term_it_is_local_training():
    got, _ = overheard(replace(PROTO, lam=0.0), fl.Classification(model=Blocks), data(), rounds=3)
    for i in range(4):
        w = START
        for r in range(3):
            w = trained(w, i, r, np.zeros((3, 2)), np.zeros(3), 0.0)
        same(got.memories[i]["params"], w)


def test_four_architectures_share_prototypes_and_send_as_much():
    got, heard = overheard(replace(PROTO, cohort=6), tiny_task({"families"}), tiny_federation(), rounds=1)
    plan, sums, counts = got.plan, torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4)
    assert len({plan.model_of(i).layout.size for i in range(6)}) == 4
    for i in range(6):
        d, model = plan.federation.local(i).train, plan.model_of(i)
        net = model.to_module(got.memories[i]["params"]).eval()
        sums.index_add_(0, d.y, net.features(d.x).detach())
        counts += d.y.bincount(minlength=4)
    torch.testing.assert_close(got.state.prototypes, sums / counts[:, None], rtol=0, atol=1e-12)
    for h in heard:
        mine = len(plan.federation.local(h.client).train.y.unique())
        place = min(4 * mine, 1)  # a bitmap of four classes is one byte
        assert nbytes(h.reply) == 8 * (mine * 6 + mine) + 2 * place
        assert nbytes(h.payload) == 8 * (4 * 6 + 4)
        assert {k: tuple(v.values.shape) for k, v in h.reply.items()} == {"sums": (mine, 6), "counts": (mine,)}


def test_answers_are_the_nearest_known_prototype_or_the_own_head():
    got, _ = overheard(PROTO, fl.Classification(model=Blocks), data(), rounds=2)
    for by in ("prototype", "head"):
        method = replace(PROTO, by=by)
        client = fl.Client(got.plan, 0, (0, 2, 0), got.memories[0])
        with pytest.raises(StopIteration) as end:
            method.personalise(client, **method.down(got.state, 0)).send(None)
        if by == "head":
            assert torch.equal(end.value.value, got.memories[0]["params"])
            continue
        scores = end.value.value(torch.from_numpy(X[0])).numpy()
        z, p = phi(got.memories[0]["params"].numpy(), 0), got.state.prototypes.numpy()
        away = np.linalg.norm(z[:, None] - p[None], axis=2)
        np.testing.assert_allclose(scores[:, [0, 2]], -away[:, [0, 2]], atol=1e-9)
        assert (scores[:, 1] < -1e8).all()


def test_a_single_sample_is_its_classs_prototype():
    one = fl.Federation.from_clients(
        [(torch.from_numpy(X[3]), torch.from_numpy(Y[3]))], client_test=0.0, ordered=True, classes=3
    )
    got, _ = overheard(PROTO, fl.Classification(model=Blocks), one, rounds=1)
    same(got.state.prototypes[2], phi(got.memories[0]["params"].numpy(), 3)[0])
    assert got.state.known.tolist() == [0, 0, 1]


def test_before_there_is_a_prototype_clients_answer_with_their_heads():
    got, _ = overheard(PROTO, fl.Classification(model=Blocks), data(), rounds=0)
    got.host.start()
    with pytest.raises(StopIteration) as end:
        PROTO.personalise(fl.Client(got.plan, 0, (0, 0, 0), {}), **PROTO.down(got.host.state, 0)).send(None)
    same(end.value.value, START)


def test_wrong_settings_are_refused():
    with pytest.raises(fl.FedloomError, match="lam=-1"):
        fl.FedProto(lam=-1)
    sizes = fl.Classification(model={"a": "mlp:8,dim=6", "b": "mlp:8,dim=5"})
    with pytest.raises(fl.FedloomError, match=r"features of one size.*\(4, 6\).*\(4, 5\)"):
        overheard(PROTO, sizes, tiny_federation())
    with pytest.raises(fl.FedloomError, match="head"):
        overheard(PROTO, fl.Classification(model=lambda: torch.nn.Linear(3, 3)), federation())
