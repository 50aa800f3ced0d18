"""FedPer against NumPy, its two ends (FedAvg and local training), and what never travels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import worked
from orders import overheard
from worked import SGD, START, N, cohort, run, same, trained

import fedloom as fl
from fedloom.message import nbytes

PER = fl.FedPer(cohort=4, solver=SGD, personal=("bias",))


def test_rounds_with_a_personal_bias():
    shared, own = START[:9], {}
    for r in range(3):
        chosen, models = cohort(r, 3), {}
        for i in chosen:
            w = trained(np.concatenate([shared, own.get(i, START[9:])]), i, r)
            models[i], own[i] = w[:9], w[9:]
        shared = np.average([models[i] for i in chosen], axis=0, weights=N[chosen])
    got = run(replace(PER, cohort=3), rounds=3)
    same(got.state.shared, shared)
    assert set(got.memories) == set(own)
    for i, bias in own.items():
        same(got.memories[i]["own"], bias)


def test_without_personal_layers_it_is_fedavg_bit_for_bit():
    per = run(replace(PER, cohort=3, personal=()), rounds=3)
    assert torch.equal(per.state.shared, run(fl.FedAvg(cohort=3, solver=SGD), rounds=3).params)


def test_all_layers_personal_is_local_training_and_sends_nothing():
    got = run(replace(PER, personal=("*",)), rounds=3)
    for i in range(4):
        w = START
        for r in range(3):
            w = trained(w, i, r)
        same(got.memories[i]["own"], w)
    assert got.summary["bytes_up"] == got.summary["bytes_down"] == 0


def test_the_head_never_travels():
    task = fl.Classification(model="mlp:8,dim=6")
    from fedloom.testing import tiny_federation

    got, heard = overheard(fl.FedPer(cohort=4), task, tiny_federation())
    layout = got.plan.model.layout
    body = layout.size - layout.shapes["head.weight"].numel() - layout.shapes["head.bias"].numel()
    assert layout.where("head.*").sum() == layout.size - body > 0
    for h in heard:
        assert {k: tuple(v.shape) for k, v in h.payload.items()} == {"shared": (body,)}
        assert {k: tuple(v.shape) for k, v in h.reply.items()} == {"delta": (body,)}
        assert nbytes(h.reply) == 8 * body


def test_a_client_answers_with_its_own_head():
    got = run(PER, rounds=2)
    memory, model = got.memories, got.plan.model
    method, host = got.plan.method, got.host
    client = fl.Client(got.plan, 1, (1, 2, 0), memory[1])
    w = method.whole(client, host.state.shared)
    same(w[model.layout.where("weight")], host.state.shared.numpy(), 0)
    same(w[model.layout.where("bias")], memory[1]["own"].numpy(), 0)
    stranger = method.whole(fl.Client(got.plan, 1, (1, 2, 0), {}), host.state.shared)
    same(stranger[9:], START[9:], 0)


def test_a_pattern_without_a_layer_is_refused():
    with pytest.raises(fl.FedloomError, match=r"head\.\*.*bias, weight"):
        worked.run(replace(PER, personal=("head.*",)))
