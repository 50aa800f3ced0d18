"""A policy around a method: the uniform one changes nothing, weighted draws against NumPy, what is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from orders import overheard
from worked import SGD, SIZES, START, N, Softmax, federation, run, same, trained

import fedloom as fl
from fedloom.errors import NotSupported
from fedloom.keyed import generator
from fedloom.methods.optimisation.selected import SelectedState
from fedloom.runs.options import configure, written
from fedloom.selection import (
    Curriculum,
    DeadlineAware,
    HeteRoSelect,
    History,
    Oort,
    Policy,
    PowerOfChoice,
    Seen,
    Uniform,
    Weighted,
    equal,
)
from fedloom.testing import Trial, difference, outcome

TASK = fl.Classification(model=Softmax)


@pytest.mark.parametrize(
    "inner",
    [
        fl.FedAvg(cohort=2, solver=SGD),
        fl.Scaffold(cohort=2, solver=SGD),
        fl.Ditto(cohort=2, solver=SGD),
        fl.FedBuff(concurrency=2, buffer=1, solver=SGD),
        fl.FedAvg(cohort=0.6, solver=SGD),
    ],
    ids=lambda m: m.card.id,
)
def test_the_uniform_policy_changes_nothing(inner):
    plain = run(inner, rounds=3)
    chosen = run(fl.Selected(inner=inner, policy=Uniform()), rounds=3)
    assert not difference(chosen.state.inner, plain.state)
    assert not difference(chosen.host.memories, plain.host.memories)
    assert chosen.host.ledger == plain.host.ledger
    assert chosen.host.now == plain.host.now


def test_weighted_rounds():
    """Whoever was drawn counts equally; 5 of the draws' chances are told, and the largest client is nearly certain."""
    method = fl.Selected(inner=fl.FedAvg(cohort=2, solver=SGD, weight="uniform"))
    done, heard = overheard(method, TASK, federation(), rounds=4)
    x = START
    for r in range(4):
        ids = sorted(h.client for h in heard if h.round == r)
        assert len(ids) == 2
        x = x + np.mean([trained(x, i, r) - x for i in ids], axis=0)
    same(done.params, x)
    history = done.state.history
    assert history.round == 4
    for i in range(4):
        rounds = [h.round + 1 for h in heard if h.client == i]
        assert (history.of(i).times, history.of(i).last) == (len(rounds), max(rounds, default=0))


def test_a_method_of_one_s_own_reads_the_chances():
    @dataclass(frozen=True)
    class Unbiased(fl.FedAvg):
        card = replace(fl.FedAvg.card, id="unbiased-of-one-s-own")

        def round(self, state, clients):
            cohort = clients.sample(2, policy=Weighted().over(clients))
            assert [round(cohort.probability[i], 12) for i in range(4)] == [round(c, 12) for c in (14 / 15, *REST)]
            return super().round(state, clients)

    REST = (4 / 15, 10 / 15, 2 / 15)
    run(Unbiased(cohort=2, solver=SGD), rounds=1)


def sampled(policy, k, ids):
    """What `clients.sample` gives a method of one's own."""
    cohorts = []

    @dataclass(frozen=True)
    class Sampling(fl.FedAvg):
        card = replace(fl.FedAvg.card, id="sampling")

        def round(self, state, clients):
            cohorts.append(clients.sample(k, ids, policy.over(clients)))
            return state

    run(Sampling(cohort=2, solver=SGD), rounds=1)
    return cohorts[0]


@pytest.mark.parametrize(
    "policy", [Uniform(), Weighted(), HeteRoSelect(), PowerOfChoice(), Oort()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("k", [0.5, -1])
def test_a_policy_draws_a_number_of_clients(policy, k):
    with pytest.raises(fl.FedloomError, match="draws a number of clients, >= 0; asked for"):
        sampled(policy, k, None)


@pytest.mark.parametrize("ids", [[], [2]])
@pytest.mark.parametrize(
    "policy", [Weighted(), HeteRoSelect(), PowerOfChoice(), Oort(), DeadlineAware()], ids=lambda p: type(p).__name__
)
def test_a_policy_with_no_choice_takes_all_there_are(policy, ids):
    cohort = sampled(policy, 2, ids)
    assert (list(cohort), cohort.law, cohort.probability) == (ids, "all", 1.0)


def test_nobody_that_is_asked_may_answer():
    """Candidates that are too late with their loss are no candidates; where all are, nobody is in the cohort."""
    world = fl.World(step_seconds=1.0, latency=1.0, deadline=0.5)
    for policy in (HeteRoSelect(loss="asked"), PowerOfChoice(), Curriculum()):
        done = run(fl.Selected(inner=fl.FedAvg(cohort=2, solver=SGD), policy=policy), rounds=2, world=world)
        assert all(done.state.history.of(i).times == 0 for i in range(4))


POLICIES = [
    Weighted(),
    PowerOfChoice(d=3),
    PowerOfChoice(d=3, loss="last"),
    Oort(),
    HeteRoSelect(),
    DeadlineAware(),
    Curriculum(),
]


@pytest.mark.parametrize(
    ("inner", "policy"), [("scaffold", DeadlineAware()), ("fedbuff", Oort()), ("fedbuff", PowerOfChoice(d=3))]
)
def test_killed_and_resumed_around_others(inner, policy):
    trial = Trial(replace(configure(fl.Selected, {"inner": inner}), policy=policy))
    trial.example.__dict__["world"] = fl.World(spread=0.7, jitter=0.2, latency=0.01, present=0.8)
    whole = trial.reference
    assert not difference(outcome(trial.killed_after(2)), outcome(whole))
    assert whole.state.history.round == trial.example.rounds
    assert any(s.times for s in whole.state.history.seen.values())


def test_what_replies_tell_is_kept_from_the_method_inside():
    inner = fl.FedBuff(concurrency=3, buffer=2, solver=SGD)
    done, heard = overheard(fl.Selected(inner=inner, policy=HeteRoSelect()), TASK, federation(), rounds=2)
    reply = heard[0].reply
    assert set(reply) == {"delta", "selection"}
    assert set(reply["selection"]) == {"loss", "labels"}
    seen = done.state.history.of(heard[0].client)
    assert sum(seen.labels) == seen.samples == SIZES[heard[0].client]
    assert seen.norm == pytest.approx(float(reply.delta.norm()))


@dataclass(frozen=True)
class Reads(fl.FedAvg):
    """Looks at every field of its replies."""

    card = replace(fl.FedAvg.card, id="reads", needs=frozenset({"replies"}))

    def round(self, state, clients):
        cohort = clients.sample(self.cohort)
        assert all(set(r.message) == {"delta"} for r in clients.map(self.local, cohort, params=state.params))
        got = clients.mean(self.local, cohort, params=state.params)
        assert set(got) == {"delta", "count", "weight"}
        return state


def test_the_method_inside_reads_what_its_own_program_sent():
    run(fl.Selected(inner=Reads(cohort=2, solver=SGD), policy=Oort()))


def test_the_loss_told_is_the_mean_of_the_first_training():
    inner = fl.FedAvg(cohort=4, solver=fl.SGD(lr=0.1, steps=1, batch_size=9))  # one step from x on all there is
    done = run(fl.Selected(inner=inner, policy=Oort()), rounds=1)
    for i in range(4):
        x = federation().local(i)
        z = x.x.numpy() @ START[:9].reshape(3, 3).T + START[9:]
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        expected = -np.log(p[np.arange(len(z)), x.y.numpy()]).mean()
        assert done.state.history.of(i).loss == pytest.approx(expected, rel=1e-6)
        assert done.state.history.of(i).samples == N[i]


def test_deadlines():
    """Clients that took too long are not asked again until the measurement is forgotten; unknown ones get a chance."""
    world = fl.World(step_seconds=0.1, spread=1.0, seed=3)
    inner = fl.FedAvg(cohort=2, solver=SGD)
    slow = {i: world.device(i).step_seconds * SGD.work(SIZES[i]) for i in range(4)}
    limit = sorted(slow.values())[1] + 1e-6  # two make it
    late = {i for i in slow if slow[i] > limit}
    method = fl.Selected(inner=inner, policy=DeadlineAware(seconds=limit, forget=100))
    done, heard = overheard(method, TASK, federation(), rounds=12, world=world)
    for i in range(4):
        assert (sum(h.client == i for h in heard) == 1) == (i in late)
        assert done.state.history.of(i).seconds == pytest.approx(slow[i])
    again = fl.Selected(inner=inner, policy=DeadlineAware(seconds=limit, forget=3))
    _, heard = overheard(again, TASK, federation(), rounds=12, world=world)
    assert all(sum(h.client == i for h in heard) > 1 for i in late)


def test_who_is_too_slow_stays_away_where_all_were_to_be_asked():
    world = fl.World(step_seconds=0.1, spread=1.0, seed=3)
    took = {i: world.device(i).step_seconds * SGD.work(SIZES[i]) for i in range(4)}
    limit = sorted(took.values())[1] + 1e-6
    method = fl.Selected(inner=fl.FedAvg(cohort=4, solver=SGD), policy=DeadlineAware(seconds=limit, forget=100))
    _, heard = overheard(method, TASK, federation(), rounds=3, world=world)
    assert {i: sum(h.client == i for h in heard) for i in took} == {i: 3 if took[i] <= limit else 1 for i in took}


def test_those_whose_replies_the_world_cuts_off_are_late():
    world = fl.World(step_seconds=0.1, spread=1.0, seed=3)
    took = {i: world.device(i).step_seconds * SGD.work(SIZES[i]) for i in range(4)}
    limit = sorted(took.values())[1] + 1e-6
    late = {i for i in took if took[i] > limit}
    policy = DeadlineAware(seconds=99.0, forget=100)  # the world's deadline is the shorter one
    method = fl.Selected(inner=fl.FedAvg(cohort=2, solver=SGD), policy=policy)
    history = run(method, rounds=12, world=replace(world, deadline=limit)).state.history
    assert {i for i in range(4) if history.of(i).times == 1} == late


def test_a_curriculum_of_clients():
    seen = History(1, {i: Seen(loss=float(9 - i)) for i in range(10)})
    policy = Curriculum(share=0.2, rounds=8)
    assert [policy.eligible(t, 10) for t in (1, 2, 5, 9, 50)] == [2, 3, 6, 10, 10]
    assert set(policy.draw(None, seen, range(10), 2, generator(0))) == {9, 8}
    assert set(Curriculum(hardest=True).draw(None, seen, range(10), 2, generator(0))) == {0, 1}
    later = replace(seen, round=5)
    drawn = {i for n in range(60) for i in policy.draw(None, later, range(10), 2, generator(n))}
    assert drawn == {4, 5, 6, 7, 8, 9}
    unseen = History(1, {0: Seen(loss=1.0), 1: Seen(loss=2.0)})
    assert set(Curriculum(loss="last", share=0.5).draw(None, unseen, range(4), 2, generator(0))) == {2, 3}
    plain = Curriculum(share=1.0).draw(None, seen, range(10), 3, generator(5))
    assert list(plain) == list(equal(range(10), 3, generator(5)))


def test_the_easiest_of_a_run_train_first():
    method = fl.Selected(inner=fl.FedAvg(cohort=2, solver=SGD), policy=Curriculum(share=0.5))
    _, heard = overheard(method, TASK, federation(), rounds=1)
    told = {h.client: h.reply.loss for h in heard if "loss" in h.reply}
    assert len(told) == 4
    assert {h.client for h in heard if "delta" in h.reply} == set(sorted(told, key=told.__getitem__)[:2])


def test_the_state_of_the_method_inside_can_be_read_and_started_from():
    method = fl.Selected(inner=fl.Scaffold(cohort=2, solver=SGD), policy=Oort())
    first = run(method, rounds=2)
    assert isinstance(first.state, SelectedState)
    assert first.state.control is first.state.inner.control
    with pytest.raises(AttributeError):
        first.state.nothing  # noqa: B018
    more = run(method, rounds=1, before=first.state)
    assert more.state.history.round == 3


def test_needs_and_bytes_follow_the_method_inside_and_the_policy():
    card = fl.Selected(inner=fl.Scaffold(), policy=Oort()).card
    assert card.needs == {"memory", "replies"}
    assert (card.down, card.up) == ("8*d", "8*d + 8")
    assert card.keeps
    assert fl.Selected().card.needs == frozenset()
    assert fl.Selected.card.id == fl.Selected(policy=Oort()).card.id == "selected"


def test_by_text():
    method = configure(fl.Selected, {"inner": "scaffold", "inner.cohort": 3, "policy": "oort", "policy.alpha": "1"})
    assert method == fl.Selected(inner=fl.Scaffold(cohort=3), policy=Oort(alpha=1.0))
    assert configure(fl.Selected, written(method)) == method


# ---------------------------------------------------------------- refused by name


@pytest.mark.parametrize(
    "method", [fl.Oort(), fl.PowerOfChoice(), fl.HeteRoSelect(), fl.Selected(policy=DeadlineAware())]
)
def test_sums_only_channels_refuse_policies_that_hear(method):
    with pytest.raises(NotSupported, match=r"single replies.*GaussianNoise"):
        run(method, channel=fl.DP(clip=1.0, noise=1.0))


def test_sums_only_channels_take_policies_that_do_not():
    run(fl.Selected(inner=fl.FedAvg(cohort=2, solver=SGD, weight="uniform")), channel=fl.DP(clip=1.0, noise=1.0))


def test_compression_goes_with_all():
    inner = fl.FedAvg(cohort=2, solver=SGD, weight="uniform")
    for policy in POLICIES:
        done = run(fl.Selected(inner=inner, policy=policy), channel=[fl.TopK(0.5), fl.Quantize(8)])
        assert done.host.version == 2


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"inner": fl.DFedAvgM()}, "DFedAvgM.*nobody is selected"),
        ({"inner": fl.Oort()}, "Oort inside Selected.*not two"),
        ({"inner": fl.FedAvg(cohort=0.1)}, "Weighted draws a number"),
        ({"inner": fl.FedAvg()}, "counts them for more as well: twice"),
        ({"inner": fl.CaFed(), "policy": Oort()}, "CA-Fed asks everybody"),
        ({"inner": fl.Mifa()}, r"MIFA\(cohort=None\) asks everybody.*inner.cohort"),
    ],
    ids=["peers", "two policies", "chance", "samples twice", "everybody", "all there are"],
)
def test_wrong_pairs(wrong, match):
    with pytest.raises(fl.FedloomError, match=match):
        fl.Selected(**wrong)


def test_a_law_of_its_own_is_not_overruled():
    with pytest.raises(NotSupported, match="F3AST draws its cohorts by a law of its own, so Oort would have no say"):
        run(fl.Selected(inner=fl.F3ast(cohort=2, solver=SGD), policy=Oort()))


def test_cards_of_methods_whose_bytes_depend_on_the_data():
    card = fl.Selected(inner=fl.FedPage(), policy=DeadlineAware()).card
    assert (card.down, card.up, card.why_bytes) == (None, fl.FedPage.card.up, fl.FedPage.card.why_bytes)


def test_a_policy_that_hears_needs_a_loss_to_be_told():
    with pytest.raises(NotSupported, match=r"Oort hears the training loss, and there is none.*policy.loss=asked"):
        run(fl.Selected(inner=fl.Maml(cohort=2), policy=Oort()))


def test_a_policy_that_asks_needs_a_model_to_send():
    with pytest.raises(NotSupported, match=r"PowerOfChoice asks.*IFCA sends.*policy.loss=last"):
        run(fl.Selected(inner=fl.Ifca(cohort=2, k=2, solver=SGD), policy=PowerOfChoice(d=3)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Weighted(power=-1),
        lambda: DeadlineAware(seconds=0),
        lambda: PowerOfChoice(d=0),
        lambda: PowerOfChoice(loss="none"),
        lambda: Oort(cutoff=2),
        lambda: Oort(window=0),
        lambda: HeteRoSelect(tau=0),
        lambda: HeteRoSelect(loss="x"),
        lambda: Curriculum(share=0),
        lambda: Curriculum(loss="x"),
    ],
)
def test_wrong_options(wrong):
    with pytest.raises(fl.FedloomError):
        wrong()


def test_histories_are_versions():
    first = History()
    second = first.chosen([1])
    assert first.seen == {}
    assert second.of(1).times == 1
    assert isinstance(Uniform(), Policy)


def test_the_base_of_policies_is_no_policy():
    with pytest.raises(fl.FedloomError, match=r"uniform or .*weighted"):
        configure(fl.Selected, {"policy": "policy"})
