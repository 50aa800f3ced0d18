"""Deadlines, over-selection and k-of-n rounds, for a method that knows nothing of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

import fedloom as fl
from fedloom.testing import Trial, difference

SOLVER = fl.SGD(0.05, batch_size=1)  # a job takes as many seconds as its client has samples
SIZES = (7, 1, 4, 10, 3, 5)  # training samples 5, 1, 2, 6, 2, 3


def run(method, **options):
    world = fl.World(step_seconds=1.0, **options.pop("world", {}))
    return Trial(type(method)).run(method=method, sizes=SIZES, world=world, rounds=1, **options)


def everybody(cls=fl.FedAvg, **options):
    return replace(Trial(cls).method, cohort=6, solver=SOLVER, **options)


def test_who_is_late_does_not_count():
    got = run(everybody(), world={"deadline": 3.5}, per_client=True)
    assert got.host.now == 3.5
    (reason,) = got.rows[0]["exclusions"]
    assert reason.startswith("late")
    assert got.rows[0]["excluded"] == 2
    assert {job["id"] for job in got.rows[0]["jobs"] if job["fate"]} == {0, 3}

    # the same as a round with the others alone
    federation = Trial(fl.FedAvg).experiment(sizes=SIZES).federation
    some = Trial(fl.FedAvg).run(method=everybody(), sizes=SIZES, rounds=1, world=fl.World(step_seconds=1.0))
    assert federation.size(3) == 6
    assert (some.params - got.params).abs().max() > 1e-6


def test_late_replies_leave_no_memory_and_no_upload():
    whole, cut = run(everybody(fl.Scaffold)), run(everybody(fl.Scaffold), world={"deadline": 3.5})
    assert sorted(whole.memories) == [0, 1, 2, 3, 4, 5]
    assert sorted(cut.memories) == [1, 2, 4, 5]
    assert cut.host.ledger.down == whole.host.ledger.down
    assert cut.host.ledger.up * 6 == whole.host.ledger.up * 4


def test_a_deadline_nobody_misses_changes_nothing():
    whole, cut = run(everybody(fl.Scaffold)), run(everybody(fl.Scaffold), world={"deadline": 100.0})
    assert difference(whole.memories, cut.memories, 1e-12) == ""
    assert (whole.params - cut.params).abs().max() < 1e-12
    assert whole.host.now == cut.host.now == 6.0


def test_a_round_that_nobody_makes():
    got = run(everybody(), world={"deadline": 0.5})
    assert got.rows[0]["excluded"] == 6
    assert (got.params - got.plan.model.initial()).abs().max() == 0
    assert got.host.now == 0.5


def test_a_deadline_is_not_waited_for_when_no_more_can_come():
    async def declines(client, honest, **payload):
        raise fl.Declined("no")

    assert run(everybody(), world={"deadline": 100.0}, behave=dict.fromkeys(range(6), declines)).host.now == 0.0
    some = run(everybody(), world={"deadline": 100.0}, behave=dict.fromkeys((0, 3), declines))
    assert some.host.now == 3.0  # the slowest of the others


def test_the_first_k_of_more_than_k():
    method = replace(everybody(), cohort=4)
    got = run(method, world={"over": 1.5}, per_client=True)
    counted = [job["id"] for job in got.rows[0]["jobs"] if not job["fate"]]
    assert sorted(counted) == [1, 2, 4, 5]  # of six that were asked, the four fastest
    assert got.host.now == 3.0
    assert got.rows[0]["excluded"] == 2


def test_over_selection_draws_more():
    got = Trial(fl.FedAvg).run(
        method=replace(everybody(), cohort=2), sizes=SIZES, rounds=20, world=fl.World(step_seconds=1.0, over=1.4)
    )
    assert {row["replies"] for row in got.rows} == {3}
    assert {row["excluded"] for row in got.rows} == {1}
    assert got.summary["participation"] < 1


@pytest.mark.parametrize(("over", "asked"), [(1.0, 50), (1.1, 55), (1.101, 56)])
def test_over_selection_draws_no_rounding(over, asked):
    method = replace(Trial(fl.FedAvg).method, cohort=50, solver=SOLVER)
    got = Trial(fl.FedAvg).run(method=method, sizes=(2,) * 60, rounds=1, world=fl.World(step_seconds=1.0, over=over))
    assert (got.rows[0]["replies"], got.rows[0]["excluded"]) == (asked, asked - 50)


def test_a_method_that_asks_each_for_itself():
    """map, with arguments of its own for each client, and replies in the order of asking."""
    got = run(replace(Trial(fl.FedProto).method, cohort=6, solver=SOLVER), world={"deadline": 2.5})
    assert got.rows[0]["excluded"] >= 1


@pytest.mark.parametrize("cls", [fl.FedBuff, fl.FedAsync])
def test_methods_that_keep_their_own_time_are_not_over_selected(cls):
    plain, over = (Trial(cls).run(world=fl.World(step_seconds=1.0, over=o), rounds=2) for o in (1.0, 2.0))
    assert plain.host.ledger == over.host.ledger


@pytest.mark.parametrize("deadline", [3.5, 100.0])
def test_killed_and_resumed(deadline):
    trial = Trial(everybody(fl.Scaffold))
    options = {"world": fl.World(step_seconds=1.0, jitter=0.4, deadline=deadline, over=1.2)}
    import contextlib
    import tempfile
    from pathlib import Path

    from fedloom.testing.trial import Killed

    def kill(event):
        if event["event"] == "round" and event["round"] == 2:
            raise Killed

    whole = trial.run(rounds=3, **options)
    with tempfile.TemporaryDirectory() as folder:
        more = {"out": Path(folder) / "run", "checkpoint_seconds": 0.0, "rounds": 3, **options}
        with contextlib.suppress(Killed):
            trial.experiment(observers=(kill,), **more).run()
        again = trial.experiment(**more).run(resume=True)
    assert difference([whole.state, whole.memories], [again.state, again.memories]) == ""
    assert [r["seconds"] for r in whole.rows] == [r["seconds"] for r in again.rows]
    assert whole.summary["participation"] == again.summary["participation"]


def test_groups_overlap_in_time():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Halves(fl.FedAvg):
        def round(self, state, clients):
            for ids in ([0, 1], [2, 3]):
                clients.only(ids).mean(self.local, params=state.params)
            return state

    method = Halves(cohort=6, solver=SOLVER)
    assert run(method).host.now == run(method, world={"deadline": 50.0}).host.now == 6.0
