"""Running statistics are averaged, whatever the server does with weights: a momentum would make variances negative."""

from __future__ import annotations

import pytest
import torch
from orders import overheard
from test_fedbn import SIZES, federation
from torch import nn

import fedloom as fl

SGD = fl.SGD(lr=0.05, epochs=6, batch_size=3)


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        self.double()


TASK = fl.Classification(model=Normed, buffers="vector")


AVERAGING = [
    fl.FedAvgM(cohort=2, solver=SGD),
    fl.FedAdagrad(cohort=2, solver=SGD, server_lr=0.3),
    fl.FedAdam(cohort=2, solver=SGD, server_lr=0.3),
    fl.FedYogi(cohort=2, solver=SGD, server_lr=0.3),
    fl.FedNova(cohort=2, solver=SGD),
]


@pytest.mark.parametrize("method", AVERAGING, ids=lambda m: m.card.id)
def test_statistics_of_a_first_round_are_those_of_fedavg(method):
    got, avg = (overheard(m, TASK, federation(), rounds=1)[0] for m in (method, fl.FedAvg(cohort=2, solver=SGD)))
    t = got.plan.model.layout.trainable
    torch.testing.assert_close(got.params[t:], avg.params[t:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [*AVERAGING, fl.FedDyn(cohort=2, solver=SGD, alpha=0.1)], ids=lambda m: m.card.id)
def test_statistics_become_the_mean_of_those_of_the_cohort(method):
    got, heard = overheard(method, TASK, federation(), rounds=4)
    layout, begun = got.plan.model.layout, got.plan.model.initial()
    statistics, equal = begun[layout.trainable :], method.card.id == "feddyn"
    for r in range(4):
        mine = [h for h in heard if h.round == r]
        n = torch.tensor([1 if equal else SIZES[h.client] for h in mine], dtype=torch.float64)
        moved = torch.stack([next(iter(h.reply.values()))[layout.trainable :] for h in mine])
        statistics = statistics + n @ moved / n.sum()
        if r < 3:
            sent = next(h for h in heard if h.round == r + 1).payload.params
            torch.testing.assert_close(sent[layout.trainable :], statistics, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.params[layout.trainable :], statistics, rtol=0, atol=1e-12)
    assert all(bool((t > 0).all()) for name, t in layout.tree(got.params).items() if name.endswith("running_var"))
    assert not torch.equal(got.params[: layout.trainable], begun[: layout.trainable])


def test_stale_statistics_do_not_add_up_past_what_clients_saw():
    """Three clients start from x and return one after the other: three times the whole way would lead past them."""
    method = fl.FedBuff(concurrency=3, buffer=1, solver=SGD)
    got, heard = overheard(method, TASK, federation(), rounds=6, world=fl.World(spread=0.5))
    t = got.plan.model.layout.trainable
    seen = [got.plan.model.initial(), *(h.payload.params + h.reply.delta for h in heard)]
    least, most = torch.stack([v[t:] for v in seen]).aminmax(dim=0)
    assert bool(((least <= got.params[t:]) & (got.params[t:] <= most)).all())


def test_a_vector_keeps_the_statistics_of_another():
    layout = fl.Model(Normed(), buffers="vector").layout
    a, b = torch.zeros(layout.size), torch.ones(layout.size)
    got = layout.keep_statistics(a, b)
    assert {n for n, t in layout.tree(got).items() if bool(t.all())} == {"1.running_mean", "1.running_var"}
    assert not a.any()
    plain = fl.Model(Normed(), buffers="batch").layout
    assert plain.keep_statistics(a[: plain.size], b[: plain.size]).data_ptr() == a.data_ptr()
