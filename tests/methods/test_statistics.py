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


@pytest.mark.parametrize(
    "method",
    [fl.FedStale(solver=SGD), fl.InverseAvailability(solver=SGD), fl.CaFed(solver=SGD, kappa=1e6)],
    ids=lambda m: m.card.id,
)
def test_with_everybody_there_statistics_are_those_of_fedavg(method):
    avg = fl.FedAvg(cohort=len(SIZES), solver=SGD)
    ours, fedavg = (overheard(m, TASK, federation(), rounds=1)[0] for m in (method, avg))
    torch.testing.assert_close(ours.params, fedavg.params, rtol=0, atol=1e-12)


EQUALLY = [
    fl.FedDyn(cohort=2, solver=SGD, alpha=0.1),
    fl.Scaffold(cohort=2, solver=SGD, server_lr=2.5),
    fl.ScaffoldM(cohort=2, solver=SGD, server_lr=2.5, alpha=0.5),
    fl.ScaffoldM(cohort=2, solver=SGD, server_lr=2.5, alpha=0.5, reduced=True),
    fl.FedCM(cohort=2, solver=SGD, server_lr=2.5),
    fl.FedAvgMomentum(cohort=2, solver=SGD, server_lr=2.5),
]


@pytest.mark.parametrize("method", [*AVERAGING, *EQUALLY], ids=lambda m: m.card.id)
def test_statistics_become_the_mean_of_those_of_the_cohort(method):
    got, heard = overheard(method, TASK, federation(), rounds=4)
    layout, begun = got.plan.model.layout, got.plan.model.initial()
    statistics, equal = begun[layout.trainable :], method in EQUALLY
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


BETWEEN = [
    fl.FedBuff(concurrency=3, buffer=1, solver=SGD),  # three start from x and return one after the other
    fl.FedFix(interval=0.07, solver=SGD),
    fl.FedCompass(least=6, most=12, solver=SGD),
    fl.FedAST(requests=3, ratio=3, adaptive=False, solver=SGD),  # a step at every arrival
    fl.GiUnstale(cohort=2, period=0.05, solver=fl.SGD(lr=0.05, epochs=6, batch_size=3), search=1),
    fl.Favano(cohort=1, period=0.005, solver=fl.SGD(lr=0.05, steps=12, batch_size=3)),
    fl.Mifa(solver=SGD),
    fl.FedVarp(cohort=1, solver=SGD),
    fl.FedStale(cohort=1, solver=SGD),
    fl.InverseAvailability(cohort=1, solver=SGD),
    fl.F3ast(cohort=1, beta=0.5, solver=SGD),
    fl.CaFed(solver=SGD),
    fl.FedRef(inner=fl.FedAvg(cohort=1, solver=SGD), pull=1.0, window=2, threshold=None),
    fl.EF14(cohort=2, solver=SGD),
    fl.EF21(cohort=2, solver=SGD),
    fl.EF21SGDM(cohort=2, solver=SGD),
    fl.EControl(cohort=2, solver=SGD),
    fl.Scallion(cohort=2, solver=SGD),
    fl.Scafcom(cohort=2, solver=SGD),
    fl.FedAmd(cohort=2, solver=SGD, server_lr=2.5),
    fl.FedPage(cohort=2, solver=SGD, server_lr=2.5),
]


@pytest.mark.parametrize("method", BETWEEN, ids=lambda m: m.card.id)
def test_statistics_do_not_lead_past_what_clients_saw(method):
    """Differences that are stale, remembered, compressed or weighed by more than 1 would add up beyond all of them."""
    world = fl.World(spread=0.5, present=0.6)
    got, heard = overheard(method, TASK, federation(), rounds=12, world=world)
    t = got.plan.model.layout.trainable
    answered = [h for h in heard if h.reply is not None and "gradient" not in h.reply]
    ways = [h.reply.statistics if "statistics" in h.reply else h.reply.delta[t:] for h in answered]
    seen = [got.plan.model.initial()[t:], *(h.payload.params[t:] + way for h, way in zip(answered, ways))]
    least, most = torch.stack(seen).aminmax(dim=0)
    sent = [h.payload.params[t:] for h in heard]
    for statistics in (*sent, *([got.params[t:]] if hasattr(got.state, "params") else [])):
        assert bool(((least - 1e-9 <= statistics) & (statistics <= most + 1e-9)).all())
    assert len(sent) > 4
    assert not torch.equal(sent[-1], seen[0])


def test_statistics_go_towards_models_by_their_shares_and_not_beyond():
    layout = fl.Model(Normed(), buffers="vector").layout
    before, model, other = (torch.full((layout.size,), x) for x in (1.0, 3.0, 7.0))
    moved, t = torch.zeros(layout.size), layout.trainable
    for shares, expected in (((0.25, 0.5), 1 + 0.25 * 2 + 0.5 * 6), ((1.0, 3.0), 1 + 0.25 * 2 + 0.75 * 6), ((), 1.0)):
        got = layout.mean_statistics(moved, before, iter([model, other][: len(shares)]), iter(shares))
        assert not got[:t].any()
        torch.testing.assert_close(got[t:], torch.full((layout.size - t,), expected))
    plain = fl.Model(Normed(), buffers="batch").layout
    assert plain.mean_statistics(moved, before, iter([model]), iter([1.0])).data_ptr() == moved.data_ptr()


def test_a_vector_keeps_the_statistics_of_another():
    layout = fl.Model(Normed(), buffers="vector").layout
    a, b = torch.zeros(layout.size), torch.ones(layout.size)
    got = layout.keep_statistics(a, b)
    assert {n for n, t in layout.tree(got).items() if bool(t.all())} == {"1.running_mean", "1.running_var"}
    assert not a.any()
    plain = fl.Model(Normed(), buffers="batch").layout
    assert plain.keep_statistics(a[: plain.size], b[: plain.size]).data_ptr() == a.data_ptr()


def test_a_channel_that_compresses_statistics_says_so():
    with pytest.warns(fl.FedloomWarning, match="they are compressed, and a variance may become negative") as caught:
        fl.run(fl.FedAvg(cohort=2, solver=SGD), TASK, federation(), rounds=1, dtype=torch.float64, channel="topk:0.5")
    assert sum("variance" in str(w.message) for w in caught) == 1
