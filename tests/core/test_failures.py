"""What fails at one client is that client's: in a hook, in a prediction, in its reply; on every engine and in time."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch.nn.functional as F

import fedloom as fl
from fedloom.errors import ClientFailure, FedloomWarning
from fedloom.methods.optimisation.fedavg import FedAvgState
from fedloom.testing import Trial, difference
from fedloom.training import Trainer

VICTIM = 2


def faulty(model, w, batch, extras):
    if extras["fault"]:
        raise ZeroDivisionError("in the hook")
    return F.cross_entropy(model(w, batch.x), batch.y, reduction="none")


def wrong_rows(model, w, batch):
    return model(w, batch.x)[:1].sum()


@dataclass(frozen=True)
class Fails(fl.Method):
    """Client 2 fails where `how` says."""

    card = replace(fl.FedAvg.card, id="fails", needs=frozenset({"memory", "replies", "clock"}))
    how: str = "loss"
    timed: bool = False

    def start(self, clients, before=None):
        return FedAvgState(params=clients.model.initial())

    async def local(self, client, params):
        client.memory["jobs"] = client.memory.get("jobs", 0) + 1
        bad = client.id == VICTIM
        loss = faulty if self.how in ("loss", "caught") else None
        try:
            out = await client.train(params, solver=fl.SGD(steps=2), loss=loss, extras={"fault": bad})
        except ZeroDivisionError:
            if self.how != "caught":
                raise
            out = await client.train(params, solver=fl.SGD(steps=1))
        if bad and self.how == "predict":
            await client.predict(out.vector, fn=wrong_rows)
        if bad and self.how == "gradient":
            await client.gradient(out.vector[:-1])
        if bad and self.how in ("ask", "peers"):
            await client.ask(self.broken, of=None if self.how == "ask" else [0, 4])
        if bad and self.how == "reply":
            return fl.Message(delta=object())
        return fl.Message(delta=out.vector - params)

    def broken(self, asked):
        raise KeyError("nothing to answer with")

    def round(self, state, clients):
        ids = [0, VICTIM, 4]
        if self.timed:
            clients.send(ids, self.local, params=state.params)
            got = clients.receive(until=clients.now + 1000.0).mean(lambda r: 1.0)
        else:
            got = clients.mean(self.local, ids, weight=1, params=state.params)
        clients.note(count=got.count)
        return replace(state, params=state.params + got.delta)


def run(how, timed=False, **options):
    return Trial(Fails).run(method=Fails(how=how, timed=timed), rounds=2, **options)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("engine", ["sequential", "stacked", "pool"])
@pytest.mark.parametrize("how", ["loss", "predict", "gradient", "reply", "ask", "peers"])
def test_excluded_it_leaves_no_trace(how, engine, timed):
    got = run(how, timed, engine=engine, workers=2, on_failure="exclude")
    assert [(r["excluded"], r["notes"]["count"]) for r in got.rows] == [(1, 2), (1, 2)]
    assert {i: m["jobs"] for i, m in got.memories.items()} == {0: 2, 4: 2}


HELD: list[weakref.ref[Any]] = []


@dataclass(frozen=True)
class Holds(Fails):
    """It has a vector of its own in its hands when it fails."""

    async def local(self, client, params):
        own = params.clone()
        HELD.append(weakref.ref(own))
        return await super().local(client, own)


@pytest.mark.parametrize("how", ["loss", "predict", "gradient", "reply", "ask"])
def test_what_failed_does_not_wait_for_the_collector(how):
    """An error knows all frames it went through: where one of these knows the error, a model is held in a cycle."""
    HELD.clear()
    gc.disable()
    try:
        Trial(Holds).run(method=Holds(how=how), rounds=2, on_failure="exclude", engine="sequential")
        assert len(HELD) >= 6
        assert [own for own in HELD if own() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_otherwise_the_run_stops_and_names_the_client(engine, timed):
    with pytest.raises(ClientFailure, match=r"Fails\.local raised ZeroDivisionError: in the hook \(client 2, round 0"):
        run("loss", timed, engine=engine)


def test_the_debug_engine_says_on_what_a_program_failed():
    with pytest.raises(ClientFailure) as raised:
        run("loss", engine="debug")
    said = str(raised.value)
    for part in ("Fails.local failed at client 2, round 0, in stage", "payload: {'params': (", "data: Data(x: ("):
        assert part in said
    assert "ZeroDivisionError: in the hook" in said
    assert "engine='debug'" not in said


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("engine", ["sequential", "stacked", "pool"])
def test_a_program_may_catch_what_it_awaited(engine, timed):
    got = run("caught", timed, engine=engine, workers=2)
    assert [r["notes"]["count"] for r in got.rows] == [3, 3]
    assert got.memories[VICTIM]["jobs"] == 2
    assert difference(got.params, run("caught").params, 1e-9) == ""


def test_what_fails_only_together_is_said_aloud(monkeypatch):
    plain = Trainer.train

    def train(self, requests):
        if len(requests) > 1:
            raise MemoryError("too many")
        return plain(self, requests)

    reference = run("well")
    monkeypatch.setattr(Trainer, "train", train)
    with pytest.warns(FedloomWarning, match="failed as one computation, and went well one client at a time: too many"):
        got = Trial(Fails).experiment(method=Fails(how="well"), rounds=2, engine="stacked").run()
    assert difference(got.params, reference.params, 1e-9) == ""


def test_a_worker_that_raises_leaves_the_pool_alive():
    with pytest.raises(ClientFailure, match="client 2"):
        run("loss", engine="pool", workers=2)
    assert run("well", engine="pool", workers=2).rows[-1]["notes"]["count"] == 3
