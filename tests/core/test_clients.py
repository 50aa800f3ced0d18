"""What the server sees: cohorts and the laws that drew them, who is idle, groups side by side, replies."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedloom as fl
from fedloom import Cohort, Evaluation, Replies, Reply
from fedloom.clients import Without
from fedloom.message import Message
from fedloom.runs import Run
from fedloom.testing import Trial


def clients_of(sizes=(5,) * 8, **options):
    return Run(Trial(fl.FedAvg).experiment(sizes=sizes, **options)).host.clients


# ---------------------------------------------------------------- sampling


def test_fixed_law():
    clients = clients_of()
    drawn = [clients.sample(3) for _ in range(2000)]
    counts = Counter(i for cohort in drawn for i in cohort)
    assert all(len(set(c)) == 3 and c.law == "fixed" and c.probability == 3 / 8 and c.expected == 3.0 for c in drawn)
    for i in range(8):  # five standard deviations of a binomial
        assert abs(counts[i] - 750) < 5 * math.sqrt(2000 * 3 / 8 * 5 / 8)


def test_poisson_law():
    clients = clients_of()
    drawn = [clients.sample(0.25) for _ in range(2000)]
    counts = Counter(i for cohort in drawn for i in cohort)
    assert {len(c) for c in drawn} >= {0, 1, 2, 3, 4}
    assert all(c.law == "poisson" and c.probability == 0.25 and c.expected == 2.0 for c in drawn)
    for i in range(8):
        assert abs(counts[i] - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_all_none_and_nonsense():
    clients = clients_of()
    everybody = clients.sample(100)
    assert list(everybody) == list(range(8))
    assert (everybody.law, everybody.probability) == ("all", 1.0)
    assert list(clients.sample(0)) == []
    for k in (-1, 1.5, 0.0, 1.0):
        with pytest.raises(fl.FedloomError, match="sample"):
            clients.sample(k)


def test_a_policy_of_one_s_own():
    def loudest(ids, k, rng):
        return Cohort(sorted(ids)[-k:], law="loudest")

    cohort = clients_of().sample(2, policy=loudest)
    assert (list(cohort), cohort.law) == ([6, 7], "loudest")


def test_draws_depend_on_seed_round_and_count_only():
    first, again, other = clients_of(seed=1), clients_of(seed=1), clients_of(seed=2)
    a = [list(first.sample(3)) for _ in range(5)]
    assert a == [list(again.sample(3)) for _ in range(5)]
    assert a != [list(other.sample(3)) for _ in range(5)]
    assert len({tuple(c) for c in a}) > 1


def test_a_million_clients_cost_nothing():
    import time

    federation = fl.Federation.generated(1_000_000, 3, lambda i: fl.Data(x=torch.ones(3, 2), y=torch.zeros(3).long()))
    experiment = fl.Experiment(fl.FedAvg(), fl.Classification(model="softmax"), federation)
    clients = Run(experiment).host.clients
    began = time.perf_counter()
    for _ in range(20):
        assert len(clients.sample(100, clients.idle())) == 100
    assert time.perf_counter() - began < 1.0
    assert len(clients.panel) == 100


@given(st.integers(0, 30), st.sets(st.integers(0, 40)), st.booleans())
@settings(deadline=None)
def test_without_is_the_list_without(n, gone, as_list):
    ids = list(range(3, 3 + 2 * n, 2)) if as_list else range(3, 3 + 2 * n, 2)
    kept = [i for i in ids if i not in gone]
    seen = Without(ids, gone)
    assert list(seen) == kept
    assert len(seen) == len(kept)
    assert seen[1:4] == kept[1:4]
    assert all((i in seen) == (i in kept) for i in range(60))
    if kept:
        assert seen[-1] == kept[-1]
    with pytest.raises(IndexError):
        seen[len(kept)]


def test_without_knows_ids_of_numpy_and_torch():
    seen = Without(range(10), [2, 5])
    for number in (np.int64, torch.tensor):
        assert [number(k) in seen for k in (1, 2, 9, 10)] == [True, False, True, False]
        assert seen.index(number(6)) == 4
        with pytest.raises(ValueError, match="not among these clients"):
            seen.index(number(5))
    assert "1" not in seen


def test_without_twice():
    inner = Without(range(10), [2, 5])
    assert list(Without(inner, [0, 9, 5])) == [1, 3, 4, 6, 7, 8]


# ---------------------------------------------------------------- groups and time


@dataclass(frozen=True)
class Groups(fl.FedAvg):
    """Two groups in one round, or one after the other, and what the clock says."""

    card = replace(fl.FedAvg.card, id="groups")
    together: bool = True

    def round(self, state, clients):
        left, right = [0, 2], [4]
        if self.together:
            a, b = clients.only(left), clients.only(right)
            assert list(a.ids) == left
            super().round(state, a)
            super().round(state, b)
            times = a.now, b.now
        else:
            clients.mean(self.local, left, params=state.params)
            middle = clients.now
            clients.mean(self.local, right, params=state.params)
            times = middle, clients.now - middle
        clients.note(left=times[0], right=times[1], all=clients.now)
        return replace(state, params=state.params + 1)


def test_groups_of_one_round_overlap_in_time():
    trial = Trial(Groups)
    notes = {}
    for together in (True, False):
        method = replace(trial.method, together=together)
        run = trial.run(method=method, world=fl.World(step_seconds=1.0, spread=0.5), rounds=1)
        notes[together] = run.rows[0]["notes"] | {"end": run.host.now}
    assert notes[True]["left"] == notes[False]["left"] > 0
    assert notes[True]["right"] == pytest.approx(notes[False]["right"])
    assert notes[True]["all"] == notes[True]["end"] == max(notes[True]["left"], notes[True]["right"])
    assert notes[False]["all"] == pytest.approx(notes[False]["left"] + notes[False]["right"])


def test_a_round_lasts_as_long_as_its_slowest_client():
    world = fl.World(step_seconds=1.0, spread=0.8, latency=0.5, up=1e4, down=2e4)
    trial = Trial(fl.FedAvg, cohort=6)
    run = trial.run(world=world, rounds=1)
    f, d, solver = run.plan.federation, run.plan.model.layout.size, trial.method.solver
    each = [
        2 * 0.5 + 8 * d / 1e4 + 8 * d / 2e4 + solver.work(f.size(i)) * world.device(i).step_seconds for i in range(6)
    ]
    assert run.host.now == pytest.approx(max(each))


# ---------------------------------------------------------------- who is there


def test_availability_is_the_world_s_and_changes_by_round():
    run = Run(Trial(fl.FedAvg).experiment(sizes=(5,) * 40, world=fl.World(present=0.5, seed=3)))
    here = []
    for version in range(6):
        run.host.version = version
        here.append(tuple(run.host.clients.available()))
    assert len(set(here)) == 6
    assert 60 < sum(map(len, here)) < 180
    assert set(run.host.clients.sample(5)) <= set(here[-1])


def test_info_says_what_a_server_may_know():
    info = clients_of(sizes=(10, 1)).info(0)
    assert info["samples"] == 6
    assert set(info) == {"samples", "model", "device"}


# ---------------------------------------------------------------- replies


def reply(id, n, job, **fields):
    return Reply(id, n, job, 0, 0.0, 0.0, Message(), Message(fields))


def test_replies_stack_and_average():
    got = Replies((reply(4, 1, 1, v=torch.tensor([1.0]), s=2.0), reply(2, 3, 2, v=torch.tensor([5.0]), s=4.0)))
    assert got.ids == [4, 2]
    assert got.v.tolist() == [[1.0], [5.0]]
    assert got.s.tolist() == [2.0, 4.0]
    assert got.weights.tolist() == [0.25, 0.75]
    assert got.mean().v.tolist() == [4.0]
    assert got.mean(lambda r: 1.0).s == 3.0
    assert got.sum(lambda r: r.id).v.tolist() == [14.0]
    assert (got.sum().count, got[0].v.item(), got[1:].ids) == (2, 1.0, [2])
    assert got.where(lambda r: r.n > 1).ids == [2]


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf, -1.0])
def test_a_mean_of_nothing_is_refused(weight):
    got = Replies((reply(0, 0, 1, v=torch.ones(1)), reply(1, 0, 2, v=torch.ones(1))))
    with pytest.raises(fl.FedloomError, match="a mean of 2 replies whose weights add up to"):
        got.mean(lambda r: weight)
    with pytest.raises(fl.FedloomError, match="add up to 0 "):
        got.mean()
    with pytest.raises(fl.FedloomError, match=r"clients \[0, 1\] have no training samples"):
        _ = got.weights
    assert got.sum(lambda r: 0.0).v.tolist() == [0.0]


@pytest.mark.parametrize("field", ["count", "weight"])
def test_a_field_in_whose_place_the_sum_says_something_is_refused(field):
    for value in (3, torch.ones(2)):
        got = Replies((reply(0, 1, 1, **{field: value}), reply(1, 1, 2, **{field: value})))
        for add in (got.mean, got.sum):
            with pytest.raises(fl.FedloomError, match=f"a field '{field}'"):
                add()

    @dataclass(frozen=True)
    class Counts(fl.FedAvg):
        async def local(self, client, params):
            return fl.Message(**{field: client.id + 1})

        def round(self, state, clients):
            clients.sum(self.local, weight=None, params=state.params)
            return state

    for world in (fl.World(), fl.World(deadline=10.0)):
        with pytest.raises(fl.FedloomError, match=f"a field '{field}'"):
            Trial(Counts).run(method=Counts(), world=world, rounds=1)


def test_what_replies_are_weighted_by_may_be_named_weight():
    got = Replies((reply(0, 1, 1, v=1.0, weight=1.0), reply(1, 1, 2, v=5.0, weight=3.0)))
    mean = got.mean(lambda r: r.weight)
    assert (mean.v, mean.weight) == (4.0, 4.0)


def test_sums_of_replies_do_not_depend_on_arrival():
    parts = [reply(i, 1, i, v=torch.tensor([x])) for i, x in enumerate((1e8, 1.0, -1e8))]
    assert Replies(tuple(parts)).sum().v.equal(Replies(tuple(reversed(parts))).sum().v)


def test_replies_of_different_shapes_are_a_list():
    got = Replies((reply(0, 1, 1, v=torch.ones(1)), reply(1, 1, 2, v=torch.ones(2))))
    assert [len(v) for v in got.v] == [1, 2]


def test_replies_of_different_kinds_are_a_list():
    one, other = reply(0, 1, 1, v=torch.ones(1)), reply(1, 1, 2, v=2.0)
    assert Replies((one, other)).v == [torch.ones(1), 2.0]
    assert Replies((other, one)).v == [2.0, torch.ones(1)]


def test_no_replies():
    got = Replies()
    assert not got
    for nothing in (got.sum(), got.mean()):
        assert (nothing.count, nothing.weight) == (0, 0.0)
    with pytest.raises(fl.FedloomError, match="no replies, so no 'delta'"):
        _ = got.delta


def test_replies_grow():
    got = Replies()
    got += (reply(0, 1, 1, v=1),)
    got += Replies((reply(1, 1, 2, v=2),))
    assert got.ids == [0, 1]
    assert got.v.tolist() == [1, 2]


def test_spread_of_an_evaluation():
    each = {i: {"accuracy": i / 20} for i in range(20)}
    spread = Evaluation({}, each).spread("accuracy")
    assert spread["mean"] == pytest.approx(0.475)
    assert spread["worst10"] == pytest.approx((0 + 0.05) / 2)
    assert Evaluation({}, each).spread("accuracy", better=-1)["worst10"] == pytest.approx((0.95 + 0.9) / 2)
    assert Evaluation({}).spread("accuracy") == {}


def test_void_below_least():
    @dataclass(frozen=True)
    class Least(fl.FedAvg):
        """Asks for more replies than there are."""

        card = replace(fl.FedAvg.card, id="least")

        def round(self, state, clients):
            got = clients.mean(self.local, [0, 1], least=3, params=state.params)
            assert dict(got) == {"count": 0, "weight": 0.0}
            return state

    assert Trial(Least).run(rounds=1).host.ledger.up > 0


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf, lambda reply: 1.0, [1.0, 2.0]])
@pytest.mark.parametrize("name", ["mean", "sum"])
def test_a_weight_that_is_none_is_refused_before_anybody_is_asked(name, weight):
    clients = clients_of()
    with pytest.raises(fl.FedloomError, match=r"a number > 0 for equal weights, or the name of a number in the reply"):
        getattr(clients, name)(fl.FedAvg().local, weight=weight)


# ---------------------------------------------------------------- numbers of any kind


@dataclass(frozen=True)
class Picks(fl.FedAvg):
    """Asks clients by numbers of NumPy or PyTorch."""

    card = replace(fl.FedAvg.card, id="picks")
    kind: str = "int"

    def round(self, state, clients):
        made = {"int": list, "numpy": np.array, "torch": torch.tensor}[self.kind]
        got = clients.mean(self.local, made([4, 0, 2]), params=state.params)
        own = clients.only(made([0, 5])).map(self.local, params=state.params)
        return replace(state, params=state.params + got.delta + own.delta.mean(0))


def test_ids_of_numpy_and_torch_are_numbers():
    run = {
        k: Trial(Picks).run(method=replace(Trial(Picks).method, kind=k), rounds=2) for k in ("int", "numpy", "torch")
    }
    assert torch.equal(run["int"].params, run["numpy"].params)
    assert torch.equal(run["int"].params, run["torch"].params)


# ---------------------------------------------------------------- groups, again


def script(kind, **options):
    """Runs a class whose `round` is the test."""
    return Trial(kind).run(rounds=1, **options)


def test_groups_go_on_together_after_the_clock_was_read():
    @dataclass(frozen=True)
    class Twice(fl.FedAvg):
        """Two groups ask, everybody waits, both ask again."""

        card = replace(fl.FedAvg.card, id="twice")

        def round(self, state, clients):
            a, b = clients.only([0]), clients.only([1])
            for _ in range(2):
                a.mean(self.local, params=state.params)
                b.mean(self.local, params=state.params)
                clients.now  # noqa: B018
            clients.note(a=a.now, b=b.now)
            return state

    run = script(Twice, world=fl.World(step_seconds=1.0))
    steps = Trial(fl.FedAvg).method.solver.work(run.plan.federation.size(0))
    assert run.host.now == 2 * steps
    assert run.rows[0]["notes"] == {"a": 2 * steps, "b": 2 * steps}


def test_a_group_receives_its_own():
    @dataclass(frozen=True)
    class Own(fl.FedAvg):
        """One group's replies are not taken by the other."""

        card = replace(fl.FedAvg.card, id="own", needs=frozenset({"clock", "replies"}))

        def round(self, state, clients):
            a, b = clients.only([0, 1]), clients.only([2])
            a.send([0, 1], self.local, params=state.params)
            b.send([2], self.local, params=state.params)
            assert b.receive(count=1).ids == [2]
            assert b.now > 0
            assert sorted(a.receive(count=2).ids) == [0, 1]
            return state

    script(Own, world=fl.World(step_seconds=1.0))


def test_notes_are_numbers():
    clients = clients_of()
    clients.note(a=torch.tensor(0.5), b=2)
    assert clients._host.notes == {"a": 0.5, "b": 2.0}
    with pytest.raises(fl.FedloomError, match=r"note\(text=str\) cannot be"):
        clients.note(text="much")


def test_replies_that_would_be_spread_are_refused():
    got = Replies((reply(0, 1, 1, v=torch.ones(3)), reply(1, 1, 2, v=torch.ones(1))))
    with pytest.raises(fl.FedloomError, match=r"not alike.*clients \[1\]"):
        got.sum()


# ---------------------------------------------------------------- many clients


def test_nothing_a_round_grows_with_the_population():
    """Memory, not time: what a round of a hundred among two million leaves and takes is a hundred clients' worth."""
    import tracemalloc

    def make(i):
        return fl.Data(x=torch.full((3, 2), float(i % 7)), y=torch.tensor([0, 1, 0]))

    n = 2_000_000
    federation = fl.Federation.generated(n, 3, make, classes=2, test=(torch.ones(4, 2), torch.zeros(4).long()))
    assert federation.nbytes < 1024
    experiment = fl.Experiment(
        fl.FedAvg(cohort=100), fl.Classification(model="softmax"), federation, rounds=3, engine="sequential"
    )
    run = Run(experiment)
    run.host.start()
    run.host.round()
    tracemalloc.start()
    run.host.round()
    run.host.clients.sample(50, run.host.clients.idle())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20  # a list of everybody would take 16 MB
    assert len(run.host.clients.panel) == 100
    assert len(run.host.memories) == len(run.host.holds) == 0


def test_who_is_absent_costs_eight_bytes():
    world = fl.World(present=0.75, seed=1)
    here = world.here(range(1_000_000), 4)
    assert abs(len(here) - 750_000) < 2500
    some = [here[k] for k in range(0, len(here), 5000)]
    assert some == sorted(set(some))
    assert all(i in here and here[here.index(i)] == i for i in some)
    gone = next(i for i in range(100) if i not in here)
    with pytest.raises(ValueError, match="not among"):
        here.index(gone)
    assert list(world.here([5, gone, 3], 4)) == [i for i in (5, gone, 3) if i in here]
    fewer = Without(here, some)
    assert len(fewer) == len(here) - len(some)
    assert fewer[0] == next(i for i in here if i not in some)
    assert list(world.here(range(50), 4)) != list(world.here(range(50), 5))


def test_a_field_that_is_not_there_is_no_attribute():
    got = Replies((reply(0, 1, 1, v=1),))
    assert not hasattr(got, "w")
    with pytest.raises(AttributeError, match="no field 'w' in this message; it has v"):
        _ = got.w
