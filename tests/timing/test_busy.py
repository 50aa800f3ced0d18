"""Who is busy is kept up as jobs come and go: the same as looking at every job."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest

import fedloom as fl
from fedloom.testing import Trial
from fedloom.timing.busy import Busy


@pytest.mark.parametrize("looks", [0.01, 0.3, 1.0])
def test_as_counted(looks):
    """Looked at often, one at a time is put in its place; seldom, all are sorted."""
    rng, busy, jobs = random.Random(0), Busy([5, 5, 2]), Counter([5, 5, 2])
    assert busy.ids() == [2, 5]
    for _ in range(3000):
        if jobs and rng.random() < 0.48:
            id = rng.choice(list(jobs.elements()))
            busy.remove(id)
            jobs -= Counter([id])
        else:
            id = rng.randrange(60)
            busy.add(id)
            jobs[id] += 1
        if rng.random() < looks:
            assert busy.ids() == sorted(jobs)
    assert busy.ids() == sorted(jobs)


def test_what_was_given_out_stays_as_it_was():
    busy = Busy(range(100))
    before = busy.ids()
    busy.remove(3)
    assert before == list(range(100))
    assert 3 not in busy.ids()


@dataclass(frozen=True)
class Looking(fl.FedBuff):
    """FedBuff that looks at who is free after everything that may change it: replies of some clients that leave others'
    in the mail, jobs that are cancelled, lost ones, several at one client."""

    card = replace(fl.FedBuff.card, id="looking")

    def round(self, state, clients):
        def agree():
            under_way = {job.id for job in clients.jobs}
            assert list(clients.idle()) == [i for i in clients.available() if i not in under_way]

        sent = clients.send([0, 1, 2, 2], self.local, params=state.params)
        agree()
        clients.cancel(sent[-1])
        agree()
        clients.receive(count=1, of=[2], until=clients.now + 5.0)
        agree()
        clients.receive(count=1, until=clients.now + 5.0)
        agree()
        state = super().round(state, clients)
        agree()
        return state


@pytest.mark.parametrize(
    "world",
    [
        fl.World(step_seconds=1.0, spread=0.6),
        fl.World(step_seconds=1.0, spread=0.6, availability="churn:crash=0.05"),
        fl.World(step_seconds=1.0, availability="bernoulli:0.6"),
    ],
)
def test_who_is_free_in_a_run(world):
    Trial(Looking(concurrency=3, buffer=2)).run(world=world, rounds=6)
