"""Ditto against NumPy: the global model is FedAvg's bit for bit, personal models are tied to what was received."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard, rows
from worked import SGD, SIZES, START, N, cohort, gradient, run, same, trained

import fedloom as fl
from fedloom.testing.problems import quadratics

DITTO = fl.Ditto(cohort=3, lam=0.7, solver=SGD)


def personal(v, w, i, round, lam, solver=SGD):
    """The second training of a job: from v, pulled to w."""
    for index in rows(SIZES[i], solver, i, round, 0, training=1):
        v = v - solver.lr * (gradient(v, i, index) + lam * (v - w))
    return v


def test_rounds():
    w, v = START, {}
    for r in range(3):
        chosen = cohort(r, 3)
        for i in chosen:
            v[i] = personal(v.get(i, w), w, i, r, 0.7)  # w as received, not as trained
        w = np.average([trained(w, i, r) for i in chosen], axis=0, weights=N[chosen])
    got = run(DITTO, rounds=3)
    same(got.params, w)
    assert set(got.memories) == set(v)
    for i, own in v.items():
        same(got.memories[i]["personal"], own)


@pytest.mark.parametrize("lam", [0.0, 0.3, 5.0])
def test_the_global_model_is_fedavg_bit_for_bit(lam):
    avg = run(fl.FedAvg(cohort=3, solver=SGD), rounds=3)
    ditto = run(replace(DITTO, lam=lam), rounds=3)
    assert torch.equal(ditto.params, avg.params)
    assert [ditto.summary[k] for k in ("bytes_up", "bytes_down")] == [
        avg.summary[k] for k in ("bytes_up", "bytes_down")
    ]


def test_without_pull_it_is_local_training():
    got = run(replace(DITTO, cohort=4, lam=0.0), rounds=3)
    for i in range(4):
        v = START
        for r in range(3):
            v = personal(v, 0.0, i, r, 0.0)
        same(got.memories[i]["personal"], v)


def test_a_work_of_its_own():
    solver = fl.SGD(lr=0.05, epochs=3, batch_size=2)
    got = run(replace(DITTO, cohort=4, personal=solver), rounds=1)
    for i in range(4):
        same(got.memories[i]["personal"], personal(START, START, i, 0, 0.7, solver))


def test_personal_models_end_between_their_own_optimum_and_the_global_model():
    """argmin f_i(v) + lam/2 |v - w|^2 = (A_i + lam)^-1 (A_i b_i + lam w) for f_i with curvature A_i around b_i."""
    q, lam = quadratics(clients=5), 0.8
    method = fl.Ditto(cohort=5, lam=lam, solver=fl.SGD(lr=0.3, steps=1), personal=fl.SGD(lr=0.3, steps=5))
    got, _ = overheard(method, q.task, q.federation, rounds=110)
    same(got.params, q.optimum.numpy(), 1e-6)
    for i in range(5):
        ends = torch.linalg.solve(q.a[i] + lam * torch.eye(3), q.a[i] @ q.b[i] + lam * q.optimum)
        same(got.memories[i]["personal"], ends.numpy(), 1e-6)


def test_clients_answer_with_their_personal_models():
    got = run(DITTO, rounds=2)
    for i, memory in got.memories.items():
        with pytest.raises(StopIteration) as end:
            DITTO.personalise(fl.Client(got.plan, i, (i, 2, 0), memory), got.params).send(None)
        assert torch.equal(end.value.value, memory["personal"])
        assert not torch.equal(end.value.value, got.params)


def test_who_never_took_part_answers_with_the_global_model():
    got = run(replace(DITTO, cohort=1), rounds=1)
    absent = next(i for i in range(4) if i not in got.memories)
    client = fl.Client(got.plan, absent, (absent, 1, 0), {})
    with pytest.raises(StopIteration) as end:
        DITTO.personalise(client, got.params).send(None)
    assert torch.equal(end.value.value, got.params)


def test_a_negative_pull_is_refused():
    with pytest.raises(fl.FedloomError, match=r"lam=-0\.1"):
        fl.Ditto(lam=-0.1)
