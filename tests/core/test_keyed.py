"""Randomness is a function of its key: every part matters, nothing else does."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

import fedloom as fl
from fedloom import keyed
from fedloom.channel.stage import Stage
from fedloom.keyed import choose, generator, scattered, seed_of, uniform
from fedloom.testing import Trial, difference, outcome
from fedloom.testing.trial import Killed


def test_scattered_numbers_are_those_of_splitmix64(monkeypatch):
    """The first outputs that its authors' program gives for the seed 1234567."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    monkeypatch.setattr(keyed, "seed_of", lambda *key: 1234567)
    assert scattered(np.array([4, 0, 1, 2, 3])).tolist() == [(z >> 11) / 2**53 for z in (outputs[-1], *outputs[:-1])]


def test_every_part_of_a_key_and_its_type_matters():
    keys = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a", "1"), (0, "a"), (0, "a", 1, 0), ("0", "a", 1)]
    assert len({seed_of(*k) for k in keys}) == len(keys)
    assert all(0 <= seed_of(*k) < 1 << 63 for k in keys)
    assert seed_of(0, "a", 1) == seed_of(0, "a", 1) == 7965780462979794708  # the same in every version


def test_a_number_of_numpy_is_a_number_in_a_key():
    for number in (np.int64(3), np.float64(0.5), np.bool_(True)):
        assert seed_of(0, number) == seed_of(0, number.item())


def test_uniform_is_uniform():
    tenths = Counter(int(10 * uniform("u", k)) for k in range(5000))
    assert set(tenths) == set(range(10))
    assert all(abs(n - 500) < 120 for n in tenths.values())


def test_choose_is_without_replacement_and_keyed():
    assert sorted(choose(5, 5, "k")) == [0, 1, 2, 3, 4]
    assert choose(10**9, 3, "k") == choose(10**9, 3, "k") != choose(10**9, 3, "l")


def test_a_generator_is_fresh_each_time():
    a, b = (torch.rand(3, generator=generator(1, "x")) for _ in range(2))
    assert torch.equal(a, b)


def test_client_draws_differ_by_seed_purpose_client_round_and_turn():
    drawn: dict[tuple, int] = {}

    async def draws(seed, client, honest, **payload):
        for purpose in ("one", "two"):
            drawn[(seed, purpose, *client.key)] = client.rng(purpose).initial_seed()
        return await honest(client, **payload)

    for seed in (0, 1):
        Trial(fl.catalogue()["ifca"]).run(seed=seed, behave=dict.fromkeys(range(6), partial(draws, seed)), rounds=3)
    assert len(set(drawn.values())) == len(drawn) > 40
    seeds, purposes, ids, rounds, _ = (set(part) for part in itertools.zip_longest(*drawn))
    assert (seeds, purposes, rounds) == ({0, 1}, {"one", "two"}, {0, 1, 2})
    assert len(ids) >= 5


def test_batch_orders_differ_by_client_round_and_training():
    orders = {}

    async def looks(client, honest, **payload):
        work = honest(client, **payload)
        request = work.send(None)
        orders[client.key] = request.schedules[""].index.flatten().tolist()
        work.close()
        raise fl.Declined("only looking")

    trial = Trial(fl.FedAvg, cohort=6, solver=fl.SGD(batch_size=1))
    trial.run(sizes=(30,) * 6, behave=dict.fromkeys(range(6), looks), rounds=3)
    assert len(orders) == 18
    assert len({tuple(o) for o in orders.values()}) == 18
    assert all(sorted(o) == list(range(len(o))) for o in orders.values())


@dataclass(frozen=True)
class Calibrates(fl.FedAvg):
    """Asks before the first round as it does in it, and notes what was drawn."""

    card = replace(fl.FedAvg.card, id="calibrates")

    def start(self, clients, before=None):
        state = super().start(clients)
        noisy = clients.mean(self.local, clients.sample(3), weight=1, params=state.params)
        return replace(state, params=state.params + 0 * noisy.delta + clients.rng("x").initial_seed() % 1000)

    def round(self, state, clients):
        clients.note(cohort=sum(10**k * i for k, i in enumerate(clients.sample(3))), x=clients.rng("x").initial_seed())
        return super().round(state, clients)


def test_the_first_round_draws_anew_after_a_start_that_drew(tmp_path):
    drawn = []

    class Noise(Stage):
        def settle(self, total, exchange):
            drawn.append(exchange.rng("noise").initial_seed())
            return total

    def make(**options):
        return Trial(Calibrates).experiment(channel=Noise(), rounds=2, checkpoint_seconds=0.0, **options)

    whole = make().run()
    assert len(drawn) == len(set(drawn)) == 3

    def kill(event):
        if event["event"] == "start":
            raise Killed

    with pytest.raises(Killed):
        make(out=tmp_path, observers=(kill,)).run()
    assert difference(outcome(make(out=tmp_path).run(resume=True)), outcome(whole)) == ""
