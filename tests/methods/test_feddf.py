"""FedDF against NumPy: averages, the ensemble's mean logits, Adam on the divergence; several architectures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from orders import overheard, rows
from test_fedmd import PX, data, logits
from torch import nn
from worked import SGD, START, N, Softmax, cohort, run, same, trained

import fedloom as fl
from fedloom.testing import tiny_federation, tiny_task
from fedloom.training.distil import match_logits, match_softened

ADAM = fl.Adam(lr=0.05, epochs=2, batch_size=3)
DF = fl.FedDF(cohort=3, solver=SGD, distil=ADAM, temperature=2.0)
SOFTMAX = fl.Classification(model=Softmax)


def soft(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def distilled(w, teacher, round, t):
    """Adam on T^2 KL(softmax(teacher / T) || softmax(own / T)) over the public data, in the server's order."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for k, index in enumerate(rows(len(PX), ADAM, "server", round, 0), 1):
        x = PX[index]
        out = t * (soft(logits(w, x) / t) - soft(teacher[index] / t))
        g = np.concatenate([(out.T @ x).ravel(), out.sum(0)]) / len(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - ADAM.lr * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
    return w


@pytest.mark.parametrize("t", [1.0, 2.0])
def test_rounds(t):
    w = START
    for r in range(2):
        members = cohort(r, 3)
        models = [trained(w, i, r) for i in members]
        teacher = np.mean([logits(u, PX) for u in models], axis=0)
        w = distilled(np.average(models, axis=0, weights=N[members]), teacher, r, t)
    got, _ = overheard(replace(DF, temperature=t), SOFTMAX, data(labels=False), rounds=2)
    same(got.state.models["Softmax"], w, 1e-10)


def test_without_server_steps_it_is_fedavg():
    got, _ = overheard(replace(DF, distil=fl.Adam(steps=0)), SOFTMAX, data(), rounds=3)
    same(got.state.models["Softmax"], run(fl.FedAvg(cohort=3, solver=SGD), rounds=3).params.numpy())


def test_alone_the_student_stays_at_its_teacher():
    """The divergence of a model to itself is 0, and so is its gradient."""
    lone = replace(DF, cohort=1, distil=fl.SGD(lr=1.0, steps=5, batch_size=4))
    got, _ = overheard(lone, SOFTMAX, data(), rounds=1)
    (i,) = cohort(0, 1)
    same(got.state.models["Softmax"], trained(START, i, 0))


def test_architectures_are_averaged_apart_and_taught_by_all():
    task, federation = tiny_task({"families"}), tiny_federation({"public"})
    plain = replace(DF, cohort=6, distil=fl.Adam(steps=0))
    got, heard = overheard(plain, task, federation, rounds=1)
    plan, sent = got.plan, {h.client: h.reply.params for h in heard}
    for name, model in plan.models.items():
        members = [i for i in range(6) if plan.model_of(i) is model]
        n = torch.tensor([float(plan.federation.size(i)) for i in members])
        mean = sum(k * sent[i] for k, i in zip(n, members)) / n.sum()
        torch.testing.assert_close(got.state.models[name], mean, rtol=0, atol=1e-12)

    for i in range(6):
        with pytest.raises(StopIteration) as end:
            plain.personalise(fl.Client(plan, i, (i, 1, 0), {}), **plain.down(got.state, i)).send(None)
        assert end.value.value is got.state.models[plan.model_of(i).name]

    x = federation.public.x.double()
    teacher = torch.stack([plan.model_of(i).to_module(sent[i]).eval()(x).detach() for i in range(6)]).mean(0)

    def gap(state):
        p = teacher.log_softmax(1)
        q = [m.to_module(state.models[k]).eval()(x).detach().log_softmax(1) for k, m in plan.models.items()]
        return [float((p.exp() * (p - u)).sum(1).mean()) for u in q]

    taught, _ = overheard(replace(plain, distil=fl.Adam(lr=3e-3, steps=40, batch_size=12)), task, federation, rounds=1)
    assert all(after < 0.7 * before for after, before in zip(gap(taught.state), gap(got.state)))


def test_an_architecture_nobody_brought_is_taught_from_where_it_was():
    task, federation = tiny_task({"families"}), tiny_federation({"public"})
    begun, _ = overheard(replace(DF, cohort=1), task, federation, rounds=0)
    plain, heard = overheard(replace(DF, cohort=1, distil=fl.Adam(steps=0)), task, federation, rounds=1)
    taught, _ = overheard(replace(DF, cohort=1), task, federation, rounds=1)
    brought = plain.plan.model_of(heard[0].client).name
    for name in begun.state.models:
        assert torch.equal(plain.state.models[name], begun.state.models[name]) == (name != brought)
        assert not torch.equal(taught.state.models[name], plain.state.models[name])


def test_one_architecture_is_judged_as_one_model_and_several_each_at_its_own_clients():
    federation = tiny_federation({"public"})
    for task, view in ((fl.Classification(model="mlp:8"), "global"), (tiny_task({"families"}), "personal")):
        got, _ = overheard(DF, task, federation, rounds=1, evaluate_every=1)
        assert {"global", "personal"} & set(got.rows[-1]) == {view}


def test_wrong_settings_are_refused():
    with pytest.raises(fl.FedloomError, match="temperature=0"):
        fl.FedDF(temperature=0)
    with pytest.raises(fl.FedloomError, match="public"):
        overheard(DF, fl.Classification(model="mlp:8"), tiny_federation())


def test_answers_at_every_position_of_a_sequence_are_learned_from():
    model = fl.Model(lambda: nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7)), fl.NextToken(model="unused"))
    w, x, teacher = model.initial(), torch.randint(7, (4, 6)), torch.randn(4, 6, 7)
    whole = fl.Data(x=x, teacher=teacher)
    for loss, terms in ((match_softened, {"temperature": 2.0}), (match_logits, {})):
        at = [loss(model, w, fl.Data(x=x[:, k], teacher=teacher[:, k]), terms) for k in range(6)]
        torch.testing.assert_close(loss(model, w, whole, terms), torch.stack(at).mean(0))


def test_numbers_are_no_chances_to_be_distilled():
    x = torch.randn(12, 3)
    numbers = fl.Federation.from_clients([(x, x[:, :2])] * 3, public=fl.Data(x=x))
    with pytest.raises(fl.FedloomError, match="a regression's outputs are numbers: use a method that averages weights"):
        fl.run(DF, fl.Regression(model="mlp:4"), numbers, rounds=1)
