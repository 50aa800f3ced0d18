"""FedCompass against handlers and timers of our own, its schedule by hand and in figures, and what it reduces to."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from paces import Paces
from worked import START, N, run, same, trained

import fedloom as fl
from fedloom.keyed import uniform
from fedloom.methods.systems.arrivals import Group, place, whole
from fedloom.testing.problems import quadratics
from fedloom.timing.devices import Device

P = N / N.sum()
SOLVER = fl.SGD(lr=0.05, batch_size=3)
METHOD = fl.FedCompass(least=2, most=9, slack=1.15, momentum=0.8, solver=SOLVER)
WORLD = Paces(paces=(1.0, 2.3, 3.1, 0.7), jitter=0.3, latency=0.05)


@dataclass
class Loop:
    """The scheduler as a set of handlers: clients that arrive, timers that ring. One global step is a round."""

    rounds: int
    x: np.ndarray = field(default_factory=lambda: START)
    version: int = 0
    now: float = 0.0
    info: dict = field(default_factory=dict)
    groups: dict = field(default_factory=dict)
    general: list = field(default_factory=list)
    events: list = field(default_factory=list)
    turns: dict = field(default_factory=dict)
    counts: dict = field(default_factory=lambda: {"alone": 0, "complete": 0, "rung": 0, "late": 0})
    taus: list = field(default_factory=list)
    number: int = 0
    opened: int = 0

    def send(self, i, steps):
        turn = self.turns.get((i, self.version), 0)
        self.turns[i, self.version] = turn + 1
        pace = WORLD.paces[i] * (1 + WORLD.jitter * (2 * uniform(0, "pace", 0, i, self.version, turn) - 1))
        took = steps * pace + 2 * WORLD.latency
        delta = trained(self.x, i, self.version, SOLVER, steps, turn=turn) - self.x
        self.info[i] = self.info.get(i, {}) | {"start": self.now, "steps": steps, "version": self.version}
        self.number += 1
        heapq.heappush(self.events, (self.now + took, 0, self.number, i, delta))

    def assign(self, i):
        s, best, chosen = self.info[i]["speed"], -1, None
        for g, group in self.groups.items():
            q = math.floor((group["expected"] - self.now) / s + 1e-9)
            if 2 <= q <= 9 and q >= best:
                best, chosen = q, g
        if chosen is None:
            for group in self.groups.values():
                if self.now < group["latest"]:
                    fastest = min(self.info[j]["speed"] for j in group["all"])
                    q = math.floor((group["latest"] + 9 * fastest - self.now) / s + 1e-9)
                    best = max(best, q) if q <= 9 else best
            best = 9 if best < 0 else max(best, 2)
            self.opened += 1
            chosen, expected, latest = self.opened, self.now + best * s, self.now + 1.15 * best * s
            self.groups[chosen] = {"expected": expected, "latest": latest, "out": [], "in": {}, "all": []}
            heapq.heappush(self.events, (latest, 1, 0, chosen, None))
        self.groups[chosen]["out"].append(i)
        self.groups[chosen]["all"].append(i)
        self.info[i]["group"] = chosen
        self.send(i, best)

    def step(self, updates):
        for i, version, delta in updates:
            self.taus.append(self.version - version)
            self.x = self.x + P[i] * (1 + self.version - version) ** -0.5 * delta
        self.version += 1

    def close(self, g):
        group = self.groups.pop(g)
        if group["in"] or self.general:
            self.step([*((i, *u) for i, u in group["in"].items()), *self.general])
        self.general = []
        for i in sorted(group["in"], key=lambda i: self.info[i]["speed"]):
            self.assign(i)

    def go(self):
        for i in range(4):
            self.send(i, 9)
        while self.version < self.rounds:
            self.now, timer, _, who, delta = heapq.heappop(self.events)
            if timer:
                if who in self.groups:
                    self.counts["rung"] += 1
                    self.close(who)
                continue
            me = self.info[who]
            s = (self.now - me["start"]) / me["steps"]
            first = "speed" not in me
            me["speed"] = s if first else 0.2 * me["speed"] + 0.8 * s
            update = (me["version"], delta)
            if first:
                self.counts["alone"] += 1
                self.step([(who, *update)])
                self.assign(who)
            elif me["group"] in self.groups:
                group = self.groups[me["group"]]
                group["out"].remove(who)
                group["in"][who] = update
                if not group["out"]:
                    self.counts["complete"] += 1
                    self.close(me["group"])
            else:
                self.counts["late"] += 1
                self.general.append((who, *update))
                self.assign(who)
        return self


def test_thirty_steps():
    loop = Loop(30).go()
    assert min(loop.counts.values()) > 1, loop.counts  # everything that can happen does
    got = run(METHOD, rounds=30, world=WORLD)
    same(got.params, loop.x, 1e-11)
    assert got.host.now == pytest.approx(loop.now)
    assert got.state.seconds == pytest.approx({i: me["speed"] for i, me in loop.info.items()})
    assert max(loop.taus) > 2


def test_every_update_is_used_once():
    loop = Loop(30).go()
    got = run(METHOD, rounds=30, world=WORLD)
    waiting = sum(len(g.here) for g in got.state.groups.values()) + len(got.state.late)
    assert sum(row["replies"] for row in got.rows) == len(loop.taus) + waiting


def test_equal_devices_fall_into_step_with_fedavg():
    """Four first jobs make four steps; the second ones end together; from then on a round is one of FedAvg."""
    method = replace(METHOD, most=3)
    before, after = (run(method, rounds=r, world=fl.World()).params for r in (5, 6))
    x = before.numpy()
    same(after, x + sum(P[i] * (trained(x, i, 5, SOLVER, 3) - x) for i in range(4)))


# ------------------------------------------------------------------------------------------------ the schedule

BOUNDS = {"least": 20, "most": 100, "slack": 1.2}
OPEN = {4: Group(expected=100.0, latest=120.0, out=frozenset({9}))}


def test_nobody_to_meet_is_as_late_as_possible():
    groups, steps = place({}, 3, {3: 0.5}, 7.0, **BOUNDS)
    assert (steps, groups) == (100, {0: Group(57.0, 67.0, frozenset({3}))})


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"),
    [
        (2.0, 40, 100.0),  # 80 seconds are left: joins
        (0.8, 100, 100.0),  # 100 steps, though 80 / 0.8 rounds to less
        (5.0, 40, 220.0),  # 16 are too few; 200 seconds until the next arrival of the fastest: a group of its own
        (15.0, 20, 320.0),  # 13 until then are too few as well
        (0.5, 100, 70.0),  # 160 are too many, and 400
    ],
)
def test_joining_meeting_and_bounds(seconds, steps, expected):
    groups, given = place(OPEN, 3, {3: seconds, 9: 1.0}, 20.0, **BOUNDS)
    k = next(k for k, g in groups.items() if 3 in g.out)
    assert given == steps
    assert groups[k].expected == pytest.approx(expected)
    assert k == (4 if expected == 100.0 else 5)
    if k == 5:
        assert groups[k].latest == pytest.approx(20 + 1.2 * steps * seconds)


def test_of_several_groups_the_one_with_most_steps_and_of_equal_ones_the_last():
    groups = {k: Group(e, e + 10, frozenset({9})) for k, e in ((0, 50.0), (1, 90.0), (2, 90.0), (3, 400.0))}
    after, steps = place(groups, 3, {3: 1.0, 9: 1.0}, 0.0, **BOUNDS)
    assert (steps, 3 in after[2].out) == (90, True)


def test_groups_past_their_time_are_not_met():
    past, seconds = {0: Group(10.0, 12.0, frozenset({9}))}, {3: 10.0, 9: 1.0}
    assert place(past, 3, seconds, 12.0, **BOUNDS)[1] == 100  # not floor((12 + 100 - 12) / 10) = 10, raised to 20
    assert place(past, 3, seconds, 11.0, **BOUNDS)[1] == 20


def test_a_client_whose_job_failed_leaves_its_group():
    both = {4: replace(OPEN[4], out=frozenset({3, 9}))}
    after, _ = place(both, 9, {3: 1.0, 9: 5.0}, 20.0, **BOUNDS)
    assert {k: sorted(g.out) for k, g in after.items()} == {4: [3], 5: [9]}
    after, _ = place(OPEN, 9, {9: 5.0}, 20.0, **BOUNDS)
    assert {k: sorted(g.out) for k, g in after.items()} == {0: [9]}  # nobody is left in the old one


def test_whole():
    assert [whole(q, 1.0) for q in (2.999999, 3 - 1e-12, 3.0, 3.9)] == [2, 3, 3, 3]
    assert whole(4.0, 0.5) == 8


def test_who_takes_no_time_joins_nobody_and_has_most_steps():
    groups, steps = place(OPEN, 3, {3: 0.0, 9: 1.0}, 20.0, **BOUNDS)
    assert (steps, groups[5]) == (100, Group(20.0, 20.0, frozenset({3})))


def test_a_world_that_takes_no_time():
    """Every reply is in at once, so each makes a step by itself, fresh."""
    got = run(METHOD, rounds=9, world=fl.World(devices=[Device()]))
    assert (got.state.version, got.host.now, got.state.late) == (9, 0.0, ())


def test_without_slack_who_takes_as_long_as_expected_is_in_time():
    def staleness(slack):
        world = fl.World(step_seconds=0.1, spread=0.4, latency=0.01, seed=3)
        return [row["staleness"] for row in run(replace(METHOD, slack=slack), rounds=14, world=world).rows]

    assert staleness(1.0) == staleness(1 + 1e-6)


# ------------------------------------------------------------------------------------------- its figures

SEEN: list[fl.Reply] = []


@dataclass(frozen=True)
class Compass(fl.FedCompass):
    """Writes down what arrives."""

    def arrive(self, state, reply, took):
        SEEN.append(reply)
        return super().arrive(state, reply, took)


@dataclass(frozen=True)
class Writes:
    """The clients, with `receive` overheard."""

    clients: fl.Clients

    def __getattr__(self, name):
        return getattr(self.clients, name)

    def receive(self, *args, **kwargs):
        got = self.clients.receive(*args, **kwargs)
        SEEN.extend(got)
        return got


@dataclass(frozen=True)
class Buff(fl.FedBuff):
    """Writes down what arrives."""

    def round(self, state, clients):
        return super().round(state, Writes(clients))


def figures(method: fl.Method, rounds: int, after: float) -> tuple[float, float]:
    """Mean staleness, and the share of time eight clients with steps of 1 to 4.5 seconds (2 % jitter) are idle."""
    q = quadratics(8, 1, samples=(1,) * 8)
    SEEN.clear()
    world = Paces(paces=tuple(1 + 0.5 * i for i in range(8)), jitter=0.02)
    now = fl.run(method, q.task, q.federation, rounds, world=world, engine="sequential", evaluate_every=0).host.now
    late = [r for r in SEEN if r.time > after]
    busy = sum(r.time - max(r.began, after) for r in late)
    return sum(r.staleness for r in late) / len(late), 1 - busy / (8 * (now - after))


def test_staleness_is_a_third_of_that_of_fedbuff_and_few_wait():
    stale, idle = figures(Compass(least=10, most=50, solver=fl.SGD(lr=0.01, batch_size=1)), 40, 500.0)
    stale_buff, _ = figures(Buff(concurrency=8, buffer=3, solver=fl.SGD(lr=0.01, steps=25, batch_size=1)), 40, 150.0)
    assert stale < stale_buff / 3
    assert idle < 0.1


# ------------------------------------------------------------------------------------------------ edges


def test_a_client_that_declines_now_and_then_holds_nobody_up():
    async def moody(client, honest, **payload):
        if client.key[1] % 3 == 2:
            raise fl.Declined("not now")
        return await honest(client, **payload)

    got = run(METHOD, rounds=25, world=WORLD, behave={0: moody})
    assert sum(row["excluded"] for row in got.rows) > 1
    assert got.state.version == 25
    assert bool(torch.isfinite(got.params).all())


def test_rounds_end_though_everybody_declines():
    async def tired(client, honest, **payload):
        if client.key[1] >= 6:
            raise fl.Declined("enough")
        return await honest(client, **payload)

    got = run(METHOD, rounds=12, world=WORLD, behave=dict.fromkeys(range(4), tired))
    assert got.host.version == 12
    assert got.state.version < 12


def test_nobody_there_is_a_legal_round():
    same(run(METHOD, world=fl.World(present=1e-12)).params, START, 0)


@pytest.mark.parametrize(
    "wrong", [{"least": 0}, {"least": 5, "most": 4}, {"slack": 0.9}, {"momentum": 0.0}, {"staleness": "old"}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match=r"FedCompass|staleness"):
        fl.FedCompass(**wrong)
