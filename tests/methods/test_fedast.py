"""FedAST against queues of our own, how it shares requests out, and what it reduces to."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from paces import Paces
from worked import START, Softmax, X, Y, federation, run, same, trained

import fedloom as fl
from fedloom.data import Data
from fedloom.keyed import choose
from fedloom.methods.systems.several import Training, allot, lacking, samples, scatter, share_out

SOLVER = fl.SGD(lr=0.2, steps=4, batch_size=3)
METHOD = fl.FedAST(requests=7, ratio=2, solver=SOLVER, server_lr=0.8, window=3)
WORLD = Paces(paces=(1.0, 2.3, 0.4, 1.7), latency=0.05)


class Other(Softmax):
    """The same network from another start."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(-0.5)


def two(method: fl.Method = METHOD, rounds: int = 30, **options) -> fl.Run:
    """A run with two tasks on the same samples."""
    options = {"engine": "sequential", "dtype": torch.float64, "evaluate_every": 0, "world": WORLD, **options}
    task = fl.Classification(model={"a": Softmax, "b": Other})
    return fl.run(method, task, federation(), rounds=rounds, **options)


class Queues:
    """One queue per client, one buffer per task; a round is one step of one task."""

    def __init__(self, method: fl.FedAST) -> None:
        self.m, self.round, self.now, self.number, self.draws = method, 0, 0.0, 0, 0
        self.x, self.buffer = {"a": START, "b": -0.5 * START}, {"a": [], "b": []}
        self.share, self.version, self.recent = {"a": 4, "b": 3}, {"a": 0, "b": 0}, {"a": [], "b": []}
        self.queue: dict[int, list] = {i: [] for i in range(4)}
        self.mail: list = []
        self.turns: dict[tuple[int, int], int] = {}
        self.arrivals, self.shares, self.stale = 0, [], []

    def active(self, name: str) -> int:
        return sum(job[1] == name for q in self.queue.values() for job in q)

    def ask(self):
        for name in "ab":
            while self.active(name) < self.share[name] and self.active("a") + self.active("b") < self.m.requests:
                (i,) = choose(4, 1, 0, "sample", self.round, self.draws)
                self.draws += 1
                turn = self.turns.get((i, self.round), 0)
                self.turns[i, self.round] = turn + 1
                delta = trained(self.x[name], i, self.round, SOLVER, turn=turn) - self.x[name]
                self.number += 1
                self.queue[i].append((self.now, name, delta, self.number, self.version[name]))
                if len(self.queue[i]) == 1:
                    self.begin(i)

    def begin(self, i: int):
        sent, _, _, number, _ = self.queue[i][0]
        arrives = max(self.now, sent + WORLD.latency) + 4 * WORLD.paces[i] + WORLD.latency
        heapq.heappush(self.mail, (arrives, number, i))

    def go(self, rounds: int):
        while self.round < rounds:
            self.ask()
            self.now, _, i = heapq.heappop(self.mail)
            _, name, delta, _, version = self.queue[i].pop(0)
            if self.queue[i]:
                self.begin(i)
            self.buffer[name].append(delta)
            self.recent[name] = [*self.recent[name], delta][-self.m.window :]
            full = len(self.buffer[name]) >= math.ceil(self.share[name] / 2)
            if full:
                self.stale.append(self.version[name] - version)
                self.x[name] = self.x[name] + 0.8 * np.mean(self.buffer[name], axis=0)
                self.version[name] += 1
                self.buffer[name] = []
            self.arrivals += 1
            if self.m.adaptive and self.arrivals >= 10.5 and min(map(len, self.recent.values())) == 3:
                self.again()
            if full:
                self.round, self.draws = self.round + 1, 0
        return self

    def again(self):
        """Two tasks, 7 requests in units of 2: 2 each, then 2 and 1 for whoever is further below its share."""
        v = {}
        for name, rows in self.recent.items():
            rows = np.array(rows)
            mean = rows.mean(0)
            v[name] = np.sqrt(((rows - mean) ** 2).sum() / (3 * (mean**2).sum() * 16))
        want = {n: 7 * v[n] / sum(v.values()) for n in v}
        self.share, self.arrivals = {"a": 2, "b": 2}, 0
        for portion in (2, 1):
            short = max("ab", key=lambda n: want[n] - self.share[n])
            self.share[short] += portion
        self.shares.append(dict(self.share))


@pytest.mark.parametrize("adaptive", [False, True])
def test_thirty_steps(adaptive):
    method = replace(METHOD, adaptive=adaptive)
    queues, got = Queues(method).go(30), two(method)
    for name in "ab":
        same(got.state.tasks[name].params, queues.x[name], 1e-11)
        assert got.state.tasks[name].version == queues.version[name]
        assert got.state.tasks[name].share == queues.share[name]
    assert got.host.now == pytest.approx(queues.now)
    assert max(queues.stale) > 1
    assert not adaptive or len({s["a"] for s in queues.shares}) > 1  # both ways


def test_no_more_requests_than_allowed_and_every_update_in_one_step():
    for rounds in range(1, 14, 3):
        got = two(rounds=rounds, method=replace(METHOD, adaptive=False))
        waiting = sum(len(t.buffer) for t in got.state.tasks.values())
        used = 2 * got.state.tasks["a"].version + 2 * got.state.tasks["b"].version  # b = ceil(4 / 2), ceil(3 / 2)
        assert sum(row["replies"] for row in got.rows) == used + waiting
        assert len(got.host.dispatch.outstanding()) <= 7


def test_a_task_that_has_ended_gives_its_requests_to_the_other():
    method = replace(METHOD, ends=(3, 50))
    got = two(method, rounds=20)
    a, b = got.state.tasks["a"], got.state.tasks["b"]
    assert (a.version, a.share, b.version, b.share) == (3, 0, 17, 7)
    assert {p.payload.task for p in got.host.dispatch.outstanding()} == {"b"}
    both = two(replace(method, ends=(3, 5)), rounds=20)
    assert [t.version for t in both.state.tasks.values()] == [3, 5]
    assert both.host.dispatch.outstanding() == []


def test_a_run_that_goes_on_from_another_shares_out_its_own_requests():
    first = two(replace(METHOD, ends=(3, 5)), rounds=8)
    assert [t.share for t in first.state.tasks.values()] == [0, 0]
    more = two(replace(METHOD, requests=9), rounds=4, before=first)
    assert sum(t.share for t in more.state.tasks.values()) == 9
    assert sum(t.version for t in more.state.tasks.values()) == 3 + 5 + 4
    one = two(replace(METHOD, ends=(3, 8)), rounds=5, before=first)
    assert [(t.version, t.share) for t in one.state.tasks.values()] == [(3, 0), (8, 0)]
    assert torch.equal(one.state.tasks["a"].params, first.state.tasks["a"].params)


def test_a_run_of_other_networks_is_nothing_to_start_from():
    alone = run(replace(METHOD, requests=4), rounds=1)
    with pytest.raises(fl.FedloomError, match=r"networks \['Softmax'\]; this one's are \['a', 'b'\]"):
        two(before=alone)


def test_one_network_with_everything_in_at_once_is_fedavg_of_who_was_drawn():
    drawn = [choose(4, 1, 0, "sample", 0, k)[0] for k in range(2)]
    assert drawn[0] != drawn[1]
    method = fl.FedAST(requests=2, ratio=1, solver=SOLVER, adaptive=False)
    got = run(method, rounds=1, world=Paces(paces=(1.0,) * 4))
    mean = np.mean([trained(START, i, 0, SOLVER) for i in drawn], axis=0)
    same(got.state.tasks[got.plan.model.name].params, mean)


def test_one_client_is_fedavg():
    fast = run(fl.FedAST(requests=1, ratio=1, solver=SOLVER), rounds=3, ids=[0]).state.tasks
    plain = run(fl.FedAvg(cohort=1, solver=SOLVER, weight="uniform"), rounds=3, ids=[0])
    same(next(iter(fast.values())).params, plain.params.numpy())


# ------------------------------------------------------------------------------------------- samples of tasks


def apart(test: bool = True) -> fl.Federation:
    """Samples belong to one of two tasks; client 3 has a single one."""
    parts = [Data(x=torch.from_numpy(x), y=torch.from_numpy(y), task=torch.arange(len(x)) % 2) for x, y in zip(X, Y)]
    common = parts[0] if test else None
    return fl.Federation.from_clients(parts, test=common, client_test=0.0, ordered=True, classes=3)


def test_networks_learn_from_their_own_samples_and_are_judged_on_them():
    heard = []

    async def spies(client, honest, **payload):
        reply = await honest(client, **payload)
        heard.append((client.id, payload["task"], payload["params"], reply.delta))
        return reply

    task = fl.Classification(model={"a": Softmax, "b": Other})
    full = fl.SGD(lr=0.3, steps=1, batch_size=99)
    options = {"engine": "sequential", "dtype": torch.float64, "world": WORLD, "on_failure": "exclude"}
    options["behave"] = dict.fromkeys(range(4), spies)
    got = fl.run(replace(METHOD, solver=full), task, apart(), rounds=6, **options)
    assert {name for _, name, _, _ in heard} == {"a", "b"}
    assert not any(i == 3 and name == "b" for i, name, _, _ in heard)  # it has no sample of b
    assert sum(row["excluded"] for row in got.rows) > 0
    for i, name, params, delta in heard:
        rows = slice(0 if name == "a" else 1, None, 2)
        x, y = torch.from_numpy(X[i][rows]), torch.from_numpy(Y[i][rows])
        w = params.clone().requires_grad_()
        torch.nn.functional.cross_entropy(x @ w[:9].view(3, 3).T + w[9:], y).backward()
        same(delta, (-0.3 * w.grad).numpy())
    for k, name in enumerate("ab"):
        w = got.state.tasks[name].params
        scores = torch.from_numpy(X[0][k::2]) @ w[:9].view(3, 3).T + w[9:]
        hits = (scores.argmax(1).numpy() == Y[0][k::2]).mean()
        assert got.rows[-1][name]["accuracy"] == pytest.approx(hits)


def test_without_a_common_test_set_tasks_cannot_be_judged_apart():
    task = fl.Classification(model={"a": Softmax, "b": Other})
    with pytest.raises(fl.FedloomError, match="test=\\.\\.\\."):
        fl.run(METHOD, task, apart(test=False), rounds=1, world=WORLD, dtype=torch.float64, on_failure="exclude")


def test_samples():
    data = Data(x=torch.arange(5), task=torch.tensor([0, 1, 1, 0, 2]))
    assert samples(data, 1).x.tolist() == [1, 2]
    assert samples(Data(x=torch.arange(5)), 1).x.tolist() == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("weights", "total", "unit", "shares"),
    [
        ({"a": 1, "b": 1, "c": 1}, 18, 3, (6, 6, 6)),
        ({"a": 1, "b": 1}, 7, 2, (4, 3)),
        ({"a": 8, "b": 1, "c": 1}, 18, 3, (12, 3, 3)),  # at least a unit each
        ({"a": 2, "b": 1}, 18, 1, (12, 6)),
        ({"a": 0, "b": 0}, 6, 2, (4, 2)),
        ({"a": 5}, 9, 4, (9,)),
        ({"a": 1, "b": 1, "c": 2}, 10, 2, (2, 2, 6)),  # 5 for c: it lacks 3, then 1 while the others lack a half
    ],
)
def test_allot(weights, total, unit, shares):
    assert tuple(allot(weights, total, unit).values()) == shares


def test_lacking():
    tasks = {name: Training(torch.zeros(1), share) for name, share in (("a", 3), ("b", 2), ("c", 0))}
    assert lacking(tasks, ["a"], 9) == ["a", "a", "b", "b"]
    assert lacking(tasks, ["a", "b", "b", "b"], 5) == ["a"]  # b has more than its share still under way
    assert lacking(tasks, ["c"] * 6, 5) == []


def test_requests_of_those_without_a_weight_go():
    tasks = {name: Training(torch.zeros(1), 3) for name in "abc"}
    assert [t.share for t in share_out(tasks, {"a": 1.0, "c": 2.0}, 9, 1).values()] == [3, 0, 6]
    assert [t.share for t in share_out(tasks, {}, 9, 1).values()] == [0, 0, 0]


def test_scatter():
    rows = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0])]
    assert scatter([(d, k) for d, k in zip(rows, (1, 2, 3))]) == pytest.approx((2 + 2) / (3 * 2 * 4))
    assert scatter([(torch.zeros(2), 1)] * 2) == 0.0


def test_nobody_there_is_a_legal_round():
    got = two(rounds=2, world=fl.World(present=1e-12))
    same(got.state.tasks["a"].params, START, 0)


@pytest.mark.parametrize("wrong", [{"ratio": 0}, {"requests": 2}, {"window": 1}, {"ends": (3, 0)}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="FedAST"):
        fl.FedAST(**wrong)


@pytest.mark.parametrize("wrong", [{"requests": 3, "ratio": 2}, {"ends": (4,)}])
def test_options_that_do_not_fit_the_networks_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="2 networks"):
        two(replace(METHOD, **wrong), rounds=1)
