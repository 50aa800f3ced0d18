"""ProWD against NumPy: grids, straight-through steps, masks by trying every subset, a dequantiser that generalises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard
from torch import nn
from worked import SGD, START, N, Softmax, X, Y, batches, cohort, gradient, run, same

import fedloom as fl
from fedloom.message import nbytes
from fedloom.methods.systems.dequantiser import lifted, rebuilding, unlearned
from fedloom.methods.systems.programs import learn
from fedloom.methods.systems.prowd import aligned
from fedloom.methods.systems.quantised import levels, matrices, on_grid, packed, quantised, whole
from fedloom.testing import tiny_federation

TASK = fl.Classification(model=Softmax)
NONE = fl.Adam(steps=0)
PLAIN = fl.ProWD(cohort=4, bits=(32, 3), solver=SGD, teach=NONE, selective=False)


def q(w, bits):
    """The nine weights on a grid; biases as they are."""
    s, top = np.abs(w[:9]).max(), 2 ** (bits - 1) - 1
    return np.concatenate([np.round(w[:9] / s * top) / top * s, w[9:]])


def local(w, i, t, bits):
    if bits == 32:
        for rows in batches(i, t):
            w = w - SGD.lr * gradient(w, i, rows)
        return w
    w = q(w, bits)
    for rows in batches(i, t):
        w = w - SGD.lr * gradient(q(w, bits), i, rows)
    return q(w, bits)


def with_server_data():
    parts = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(X, Y)]
    held = fl.Data(x=torch.from_numpy(X[0]), y=torch.from_numpy(Y[0]))
    return fl.Federation.from_clients(parts, client_test=0.0, ordered=True, classes=3, validation=held)


def test_a_grid():
    model = fl.Model(nn.Sequential(nn.Linear(5, 40), nn.Linear(40, 3)))
    w = model.initial() * torch.logspace(-2, 1, model.layout.size)
    for bits in (2, 3, 8, 12):
        v = quantised(w, bits, model)
        sent = packed(w, bits, model)
        for name, piece in model.layout.tree(v).items():
            if name in matrices(model):
                assert len(piece.unique()) <= 2**bits
                assert (piece - model.layout.view(w, name)).abs().max() <= piece.abs().max() / levels(bits) / 2 * 1.001
            else:
                assert torch.equal(piece, model.layout.view(w, name))
        opened = fl.message.opened(fl.Message(sent))
        torch.testing.assert_close(whole(opened.weights, opened.rest, model), v, rtol=1e-6, atol=0)
        assert nbytes(sent) == math.ceil(200 * bits / 8) + math.ceil(120 * bits / 8) + 2 * 4 + 4 * 43
    assert nbytes(packed(w, 32, model)) == 4 * model.layout.size
    assert torch.equal(quantised(w, 32, model), w)
    zero = on_grid(torch.zeros_like(w), 3, matrices(model), model.layout)
    assert not zero.any()


def test_rounds():
    w = START
    for t in range(3):
        w = sum(n * local(w, i, t, (32, 3)[i % 2]) for i, n in enumerate(N)) / N.sum()
    got, _ = overheard(PLAIN, TASK, with_server_data(), rounds=3)
    same(got.params, w)


def test_rounds_with_selection():
    w = START
    for t in range(3):
        came = [local(w, i, t, (32, 3)[i % 2]) for i in range(4)]
        high = (7 * came[0] + 5 * came[2]) / 12
        masks = [np.ones(12)] * 4
        for i in (1, 3):
            masks[i] = best_mask(came[i] - w, high - w)
        w = sum(n * c * v for n, c, v in zip(N, masks, came)) / sum(n * c for n, c in zip(N, masks))
    got, _ = overheard(replace(PLAIN, selective=True), TASK, with_server_data(), rounds=3)
    same(got.params, w)


def best_mask(a, b):
    subsets = (np.arange(1, 2 ** len(a))[:, None] >> np.arange(len(a))) & 1
    return subsets[((subsets @ (a * b)) / np.sqrt(subsets @ (a * a)).clip(1e-300)).argmax()]


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_with_the_largest_cosine(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 11))
    assert aligned(torch.from_numpy(a), torch.from_numpy(b)).int().tolist() == best_mask(a, b).tolist()
    assert aligned(torch.zeros(4), torch.ones(4)).all()
    assert aligned(torch.ones(4), -torch.ones(4)).all()  # none agrees: no mask is better than another


def test_full_precision_everywhere_is_fedavg():
    all_full, _ = overheard(replace(PLAIN, bits=(32,), cohort=3), TASK, with_server_data(), rounds=3)
    avg = run(fl.FedAvg(cohort=3, solver=SGD), rounds=3)
    torch.testing.assert_close(all_full.params, avg.params, rtol=0, atol=1e-12)


def test_an_unlearned_dequantiser_changes_nothing():
    model = fl.Model(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))
    w, phi = model.initial(), unlearned(3, 4, 5, model.initial(), torch.Generator().manual_seed(0))
    for stage in lifted(phi, w, model):
        torch.testing.assert_close(stage, w)


def test_it_comes_nearer_to_weights_it_has_not_seen():
    """Learned from one network, it brings another's three-bit weights nearer to what they were; neighbours are alike
    in both, as pixels' weights are."""
    rng = torch.Generator().manual_seed(3)
    model = fl.Model(nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 4)))
    data = fl.Data(x=torch.randn(64, 20, generator=rng), y=torch.zeros(64, dtype=torch.int64))
    noise = torch.randn(2, model.layout.size + 6, generator=rng)
    seen, other = noise.unfold(1, 7, 1).mean(2)
    phi = unlearned(3, 8, 5, seen, rng)
    loss = rebuilding(model, seen, 3, 32, 3, lam=0.1)
    taught = learn(phi, loss, data, fl.Adam(lr=3e-3, steps=150, batch_size=32), rng)
    assert loss(taught, data) < 0.9 * loss(phi, data)
    low = quantised(other, 3, model)
    assert (lifted(taught, low, model)[-1] - other).abs().mean() < 0.9 * (low - other).abs().mean()


def test_a_round_teaches_with_the_mean_of_those_in_full_precision():
    method = replace(PLAIN, teach=fl.Adam(lr=1e-3, steps=20, batch_size=9))
    taught, still = (overheard(m, TASK, with_server_data(), rounds=1)[0] for m in (method, PLAIN))
    high = torch.from_numpy(7 * local(START, 0, 0, 32) + 5 * local(START, 2, 0, 32)) / 12
    loss = rebuilding(taught.plan.model, high, 3, 32, method.blocks, method.lam)
    data = fl.Data(x=torch.from_numpy(X[0]))
    assert loss(taught.state.lift[3], data) < 0.99 * loss(still.state.lift[3], data)


def test_nothing_is_taught_in_a_round_without_full_precision():
    (only,) = cohort(0, 1)
    bits = (32, 3) if only % 2 else (3, 32)
    method = replace(PLAIN, cohort=1, bits=bits, teach=fl.Adam(lr=1e-3, steps=20, batch_size=9))
    taught, still = (overheard(m, TASK, with_server_data(), rounds=1)[0] for m in (method, replace(method, teach=NONE)))
    assert torch.equal(taught.state.lift[3], still.state.lift[3])
    same(taught.params, local(START, only, 0, 3))


def test_bytes_and_views():
    method = fl.ProWD(cohort=6, bits=(32, 8, 3), solver=fl.SGD(steps=1), teach=fl.Adam(steps=1))
    data = tiny_federation({"server data"}, dtype=torch.float32)
    got, heard = overheard(method, fl.Classification(model="mlp:8,dim=6"), data, rounds=1, dtype=torch.float32)
    model = got.plan.model
    for h in heard:
        b = method.width(h.client)
        sizes = [model.layout.view(got.params, name).numel() for name in matrices(model)]
        grid = sum(math.ceil(n * b / 8) + 4 for n in sizes) if b < 32 else 4 * sum(sizes)
        assert nbytes(fl.Message(packed(got.params, b, model))) == grid + 4 * (model.layout.size - sum(sizes))
    per = {b: nbytes(packed(got.params, b, model)) for b in (32, 8, 3)}
    assert got.summary["bytes_up"] == got.summary["bytes_down"] == 2 * sum(per.values())
    assert set(method.evaluate(got.state, got.host.clients)) == {"global", "bits8", "bits3"}
    assert set(got.state.lift) == {8, 3}


@pytest.mark.parametrize(
    "wrong", [{"bits": ()}, {"bits": (1,)}, {"bits": (33,)}, {"blocks": 0}, {"window": 4}, {"lam": -1.0}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="ProWD"):
        fl.ProWD(**wrong)
