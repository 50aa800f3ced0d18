"""Workers share one plan: what they make together is made once, and nobody's randomness is another's."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import fedloom as fl
from fedloom.model import Model
from fedloom.testing import Trial, difference
from fedloom.training import Trainer


@pytest.fixture(autouse=True)
def _often():
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work, n=8):
    """`work(k)` in n threads that start together."""
    gate = threading.Barrier(n)

    def run(k):
        torch.set_num_threads(1)
        gate.wait()
        return work(k)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n)))


def test_clients_that_are_made_when_asked():
    def make(i):
        return fl.Data(x=torch.full((2, 1), float(i)), y=torch.zeros(2).long())

    federation = fl.Federation.generated(1000, 2, make, classes=2, keep=2, client_test=0.0)

    def look(k):
        return all(float(federation.local(i).x[0]) == i for j in range(300) for i in [(7 * j + k) % 5])

    assert all(at_once(look))
    assert len(federation.population.kept) <= 2 + 8


def test_equal_parts_are_one_model():
    model = Model(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), example=(torch.ones(1, 6),))
    parts = at_once(lambda k: [model.part(lambda group, n, m=m: torch.arange(m)).model for m in (2, 4, 6)])
    for made in zip(*parts):
        assert len({id(m) for m in made}) == 1


class Dropping(nn.Module):
    """A network with chance in it, or without."""

    def __init__(self, p):
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(64, 8), nn.Dropout(p), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.drop(self.body(x.flatten(1))).relu())


@dataclass(frozen=True)
class Alone(fl.FedAvg):
    """Every client trains its own network and keeps it, and what it says with dropout on."""

    card = replace(fl.FedAvg.card, id="alone", needs=frozenset({"families", "memory", "replies"}))

    async def local(self, client):
        own = client.memory.get("w", client.model.initial())
        out = await client.train(own, solver=fl.SGD(lr=0.1, batch_size=4, epochs=2))
        client.memory["w"] = out.vector
        client.memory["said"] = await client.predict(out.vector, model=client.model.train())
        return fl.Message(loss=out.loss)

    def round(self, state, clients):
        clients.map(self.local)
        return state


def test_chance_in_some_networks_is_nobody_else_s(monkeypatch):
    """Half of the clients train with dropout, half without, side by side in threads."""
    monkeypatch.setattr("fedloom.engines.Trainer", lambda *told: Trainer("plain"))
    task = fl.Classification(model={"sure": lambda: Dropping(0.0), "chancy": lambda: Dropping(0.5)})

    def memories(engine):
        made = Trial(Alone).experiment(sizes=(20, 9, 14, 30, 12, 25, 18, 11), engine=engine, workers=4, rounds=3)
        return replace(made, task=task).run().memories

    alone = memories("sequential")
    assert not torch.equal(alone[1]["said"][:4], alone[3]["said"][:4])
    for _ in range(3):
        assert difference(memories("pool"), alone) == ""


def test_predictions_with_dropout_are_keyed_by_job():
    """Like everything else that is drawn: not by what the process drew before."""
    task = fl.Classification(model=lambda: Dropping(0.5))
    runs = []
    for waste in (0, 7):
        torch.rand(waste)
        runs.append(replace(Trial(Alone).experiment(rounds=2), task=task).run().memories)
    assert difference(*runs) == ""
