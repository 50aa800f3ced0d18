"""An asynchronous run killed at any event goes on to the same end: clock, queue, jobs under way, buffers, versions."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace

import pytest

import fedloom as fl
from fedloom.runs.host import Host
from fedloom.runs.loop import Run
from fedloom.testing import Trial, difference, outcome
from fedloom.testing.trial import Killed
from fedloom.timing.clock import WallClock
from fedloom.timing.dispatch import Dispatch
from fedloom.written import dumps, loads

WORLDS = {
    "plain": fl.World(step_seconds=1.0, spread=0.6, jitter=0.3, latency=0.2, up=1e4, down=3e4),
    "shared cells, crashes": fl.World(
        step_seconds=1.0, spread=0.6, latency=0.2, network="4g:shared_up=2e4,shared_down=4e4",
        availability="churn:crash=0.05",
    ),
    "devices, queries": fl.World(devices="tiers:0.4,0.3,0.3", network="wifi:spread=0.5", availability="diurnal:0.5,1"),
}  # fmt: skip


@dataclass(frozen=True)
class Asking(fl.FedBuff):
    """FedBuff whose clients ask for a fresh model half way, look at their own error, and keep a count."""

    card = replace(fl.FedBuff.card, id="asking", needs=fl.FedBuff.card.needs | {"memory"}, keeps="jobs: 1")

    async def local(self, client, params):
        half = await client.train(params, solver=self.solver)
        fresh = await client.ask(self.newest)
        await client.predict(fresh.params)
        out = await client.train((half.vector + fresh.params) / 2, solver=self.solver)
        client.memory["jobs"] = client.memory.get("jobs", 0) + 1
        return fl.Message(delta=out.vector - params)

    def newest(self, state):
        return fl.Message(params=state.params)


def options(world):
    return {"world": WORLDS[world], "rounds": 2, "evaluate_every": 0}


def method():
    return Asking(concurrency=3, buffer=2, solver=fl.SGD(0.05, batch_size=4))


@contextlib.contextmanager
def killed_at(event: int, monkeypatch):
    """Kill at the n-th event; `seen` counts them."""
    seen = [0]
    handle = Dispatch._handle

    def counted(self, posted, horizon):
        seen[0] += 1
        if seen[0] == event:
            raise Killed
        return handle(self, posted, horizon)

    with monkeypatch.context() as patch:
        patch.setattr(Dispatch, "_handle", counted)
        yield seen


@pytest.mark.parametrize("world", WORLDS)
def test_killed_at_every_event(world, tmp_path, monkeypatch):
    """The process dies there; what is on disk is the last round's checkpoint, from which all comes again."""
    trial = Trial(method())
    with killed_at(0, monkeypatch) as seen:
        whole = trial.run(**options(world))
    events = seen[0]
    assert events > 12
    for event in range(1, events + 1):
        out = tmp_path / f"{event}"
        more = {"out": out, "checkpoint_seconds": 0.0, **options(world)}
        with killed_at(event, monkeypatch), pytest.raises(Killed):
            trial.experiment(**more).run()
        again = trial.experiment(**more).run(resume=True)
        assert difference(outcome(whole), outcome(again)) == "", f"killed at event {event} of {events}"
        assert [r["time"] for r in whole.rows] == [r["time"] for r in again.rows]
        assert [r["seconds"] for r in whole.rows] == [r["seconds"] for r in again.rows]


@pytest.mark.parametrize("world", WORLDS)
def test_saved_and_revived_between_every_two_events(world, monkeypatch):
    """All that is written into a checkpoint is written and read back before each event: nothing else is needed."""
    whole = Trial(method()).run(**options(world))
    handle = Dispatch._handle
    count = [0]

    def through_bytes(self: Dispatch, posted, horizon):
        for live in self._live.values():
            live.coroutine.close()
        saved = loads(dumps({"jobs": list(self.jobs.values()), "mail": self.mail, "now": self.host.now}))
        self.__init__(self.host)
        self.jobs = {p.number: p for p in saved["jobs"]}
        self.mail = saved["mail"]
        self.host.clock.now = saved["now"]
        self.revive()
        count[0] += 1
        following = self._next()
        assert following is not None
        assert (following.number, following.due) == (posted.number, posted.due)
        return handle(self, following, horizon)

    with monkeypatch.context() as patch:
        patch.setattr(Dispatch, "_handle", through_bytes)
        again = Trial(method()).run(**options(world))
    assert count[0] > 12
    assert difference(outcome(whole), outcome(again)) == ""


def test_a_wall_clock_waits():
    world = fl.World(step_seconds=1.0, spread=0.6, latency=0.2)
    virtual, began = Trial(fl.FedAvg).run(world=world, rounds=3), time.monotonic()
    wall = Trial(fl.FedAvg).run(world=world, rounds=3, clock=WallClock(speed=100.0))
    assert time.monotonic() - began >= virtual.host.now / 100
    assert difference(virtual.params, wall.params) == ""
    late = Trial(method()).run(world=world, rounds=2, clock=WallClock(speed=100.0))
    assert late.host.now >= Trial(method()).run(world=world, rounds=2).host.now > 0


def test_the_queue_is_made_of_the_jobs():
    """Ties by number, entries that are no more their job's next event are passed over."""
    experiment = Trial(method()).experiment(world=fl.World(step_seconds=1.0))
    host: Host = Run(experiment).host
    host.start()
    clients = host.clients
    clients.send([3, 1, 2, 0], host.plan.method.local, params=host.state.params)
    dispatch = host.dispatch
    for posted in dispatch.jobs.values():
        dispatch._at(posted, 5.0)
    dispatch._at(dispatch.jobs[3], 2.0)
    order = []
    while (posted := dispatch._next()) is not None:
        order.append((posted.due, posted.number))
        posted.due = float("inf")
    assert order == [(2.0, 3), (5.0, 1), (5.0, 2), (5.0, 4)]


def test_availability_without_loss_does_not_go_through_the_clock():
    assert not fl.World(availability="markov:0.9,0.5").timed
    assert fl.World(availability="churn:crash=1").timed
    assert fl.World(availability="always+churn:crash=1").timed
