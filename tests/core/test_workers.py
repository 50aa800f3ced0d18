"""Worker processes: what goes to them comes back the same, shared memory is given back, and a death loses nothing."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import struct
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import nn

import fedloom as fl
from fedloom.engines.heap import Heap, WorkerSide, at
from fedloom.engines.mail import read, write
from fedloom.engines.team import WorkerDied
from fedloom.engines.workers import _homes
from fedloom.errors import ClientFailure

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture(autouse=True)
def stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are compared bit for bit: nothing is left to measurement."""
    monkeypatch.setattr("fedloom.training.stacked.best_path", lambda requests: ("stacked", "not measured here"))


SOLVER = fl.SGD(lr=0.1, epochs=1, batch_size=8)


def net() -> nn.Module:
    """Large enough (21,000 numbers) for a cohort to be cut into chunks."""
    return nn.Sequential(nn.Linear(6, 3000, bias=False), nn.Tanh(), nn.Linear(3000, 2))


def federation(clients: int = 8) -> fl.Federation:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(40 * clients, 6, generator=rng)
    return fl.Federation.from_arrays(x, (x[:, 0] > 0).long(), clients=clients, partition=fl.IID(), seed=0)


def played(method: fl.Method, engine: str = "pool", rounds: int = 3, workers: int = 2, **options: object) -> fl.Run:
    task = fl.Classification(model=net)
    return fl.run(method, task, federation(), rounds=rounds, seed=0, engine=engine, workers=workers, **options)


@dataclass(frozen=True)
class Params(fl.State):
    """params: the model `(d,)`."""

    params: torch.Tensor


@dataclass(frozen=True)
class Odd(fl.Method):
    """Clients do what a test wants; the server takes the mean of what they return."""

    path: str = ""

    card = fl.Card(id="odd", title="", summary="", paper="", authors="", venue="", year=2026, family="tests")

    def start(self, clients: fl.Clients, before: object = None) -> Params:
        return Params(clients.model.initial())

    async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
        out = await client.train(params, solver=SOLVER)
        self.also(client)
        return fl.Message(params=out.vector)

    def also(self, client: fl.Client) -> None:
        """Whatever is odd."""

    def round(self, state: Params, clients: fl.Clients) -> Params:
        return Params(clients.mean(self.local, params=state.params).params)


class Process(Odd):
    def also(self, client: fl.Client) -> None:
        client.memory["process"] = os.getpid()


class Roams(Odd):
    """Clients keep how many cores they may run on while they work."""

    def also(self, client: fl.Client) -> None:
        client.memory["cores"] = len(os.sched_getaffinity(0))


class Dies(Odd):
    """Client 3 ends the worker it is in: once, where a file can tell of it, else always."""

    def also(self, client: fl.Client) -> None:
        if client.id != 3 or multiprocessing.parent_process() is None:
            return
        if not (self.path and os.path.exists(self.path)):
            if self.path:
                open(self.path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


class DiesWriting(Odd):
    """Client 3's worker ends once, in the middle of what it writes back."""

    def also(self, client: fl.Client) -> None:
        def half(pipe: Connection, letter: bytes) -> None:
            os.write(pipe.fileno(), struct.pack("!i", len(letter)) + letter[: len(letter) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        if client.id == 3 and multiprocessing.parent_process() is not None and not os.path.exists(self.path):
            open(self.path, "w").close()
            Connection.send_bytes = half  # type: ignore[assignment, method-assign]


class Raises(Odd):
    """Client 3 raises, in a worker."""

    def also(self, client: fl.Client) -> None:
        if client.id == 3 and multiprocessing.parent_process() is not None:
            raise ZeroDivisionError("of mine")


class Warns(Odd):
    def also(self, client: fl.Client) -> None:
        warnings.warn(f"client {client.id} was here", fl.FedloomWarning, stacklevel=1)


class FailsToStart(Odd):
    """Its clients warm up, and then something is wrong."""

    def start(self, clients: fl.Clients, before: object = None) -> Params:
        for _ in range(2):  # what is new is measured before others help
            clients.mean(self.local, params=clients.model.initial())
        assert at_work()
        raise ZeroDivisionError("of mine")


class Asks(Odd):
    """Clients ask for a start in mid-job, and say which process they were in."""

    async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
        client.memory["process"] = os.getpid()
        fresh = await client.ask(self.fresh, scale=2.0)
        out = await client.train(fresh.params, solver=SOLVER)
        return fl.Message(params=out.vector)

    def fresh(self, state: Params, scale: float) -> fl.Message:
        return fl.Message(params=state.params * scale)


class DiesAsking(Asks):
    """Client 3's worker ends once, when its question has been sent."""

    async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
        def last(pipe: Connection, letter: bytes) -> None:
            with open(self.path, "w") as file:
                file.write(str(os.getpid()))
            send(pipe, letter)
            os.kill(os.getpid(), signal.SIGKILL)

        send = Connection.send_bytes
        if client.id == 3 and multiprocessing.parent_process() is not None and not os.path.exists(self.path):
            Connection.send_bytes = last  # type: ignore[assignment, method-assign]
        return await super().local(client, params)

    def fresh(self, state: Params, scale: float) -> fl.Message:
        if os.path.exists(self.path) and (process := Path(self.path).read_text()):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, int(process), os.WEXITED | os.WNOWAIT)
        return super().fresh(state, scale)


def at_work() -> list[multiprocessing.Process]:
    return [p for p in multiprocessing.active_children() if p.name == "fedloom-worker"]


def test_it_runs_in_other_processes() -> None:
    run = played(Process())
    processes = {run.host.memories[i]["process"] for i in range(8)}
    assert len(processes - {os.getpid()}) == 2


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "ditto", "ifca"])
def test_one_and_two_workers_give_the_same_bits(name: str) -> None:
    method = fl.method_named(name)()
    one, two = (played(method, workers=n) for n in (1, 2))
    for i in range(8):
        a, b = one.host.memories.get(i, {}), two.host.memories.get(i, {})
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))
    if one.params is not None:
        assert torch.equal(one.params, two.params)


def test_a_worker_that_dies_is_replaced(tmp_path) -> None:
    assert torch.equal(played(Dies(path=str(tmp_path / "died"))).params, played(Odd()).params)


def test_a_worker_that_dies_writing_is_replaced(tmp_path) -> None:
    died = tmp_path / "died"
    assert torch.equal(played(DiesWriting(path=str(died))).params, played(Odd()).params)
    assert died.exists()


def test_a_worker_that_dies_asking_is_replaced(tmp_path) -> None:
    died = tmp_path / "died"
    assert torch.equal(played(DiesAsking(path=str(died))).params, played(Asks()).params)
    assert died.exists()


def test_a_worker_that_dies_twice_is_told_of() -> None:
    with pytest.raises(WorkerDied, match="engine='sequential'"):
        played(Dies())


def test_an_error_at_a_client_is_the_same_error_here() -> None:
    with pytest.raises(ClientFailure, match="ZeroDivisionError: of mine") as caught:
        played(Raises())
    assert caught.value.client == 3


def test_no_worker_stays_where_a_method_cannot_start() -> None:
    with pytest.raises(ZeroDivisionError) as caught:  # which holds the run
        played(FailsToStart())
    assert caught.traceback
    assert at_work() == []


def test_a_client_that_raises_is_excluded_and_counted() -> None:
    run = played(Raises(), on_failure="exclude", rounds=2)
    assert list(run.history["excluded"])[-1] == 1


def test_warnings_are_heard_here() -> None:
    with pytest.warns(fl.FedloomWarning) as heard:
        played(Warns(), rounds=2)
    assert len({str(w.message) for w in heard}) == 8


@pytest.mark.filterwarnings("always::fedloom.errors.FedloomWarning")
def test_what_cannot_be_sent_is_computed_here_aloud() -> None:
    @dataclass(frozen=True)
    class Keeps(fl.FedAvg):
        async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
            client.memory["f"] = lambda: client.id
            return await super().local(client, params)

    with pytest.warns(fl.FedloomWarning, match="what cannot be sent to workers") as told:
        run = played(Keeps())
    assert len(told) == 1
    assert run.summary["choices"]["jobs of local"].startswith("in the main process: ")
    assert torch.equal(run.params, played(fl.FedAvg()).params)


def test_questions_are_answered_here() -> None:
    run = played(Asks())
    assert len({run.memories[i]["process"] for i in range(8)} - {os.getpid()}) == 2
    assert torch.allclose(run.params, played(Asks(), engine="sequential").params, atol=1e-5)


def test_as_many_workers_as_cores_wait_on_one_each_and_work_on_any() -> None:
    everywhere = os.sched_getaffinity(0)
    homes: list[set[int]] = []

    def waiting(event: dict[str, object]) -> None:
        if event["event"] != "round":
            return
        workers = at_work()
        until = time.monotonic() + 10
        while time.monotonic() < until:  # one has answered a moment before it is home
            homes[:] = [os.sched_getaffinity(p.pid) for p in workers if p.pid]
            if all(len(home) == 1 for home in homes):
                return

    count = len(everywhere)
    if count == 1:
        pytest.skip("there is one core")
    run = played(Roams(), workers=count, observers=[waiting])
    assert sorted(map(sorted, homes)) == [[core] for core in sorted(everywhere)]
    assert {run.host.memories[i]["cores"] for i in range(8)} == {count}


def test_fewer_workers_than_cores_wait_on_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedloom.engines.workers.cores", lambda: [2, 5, 6])
    assert _homes(2) == [[2, 5, 6]] * 2
    assert _homes(3) == [[2], [5], [6]]
    assert _homes(4) == [[2, 5, 6]] * 4


def test_shared_memory_is_given_back() -> None:
    """After many rounds there is no more of it in use than after a few."""

    def used(rounds: int) -> int:
        task, method = fl.Classification(model=net), fl.method_named("scaffold")()
        run = fl.Run(fl.Experiment(method, task, federation(), rounds=rounds, seed=0, engine="pool", workers=2))
        run.host.start(None)
        for _ in range(rounds):
            run.host.round()
        gc.collect()
        blocks = len(run.host.engine._team._tensors._blocks)
        run.host.engine.close()
        return blocks

    assert 0 < used(10) <= used(3)


def test_what_was_freed_is_written_over_and_not_before() -> None:
    heap = Heap()
    a = heap.put(torch.arange(4.0))
    b = heap.put(torch.arange(4.0) + 10)
    heap.give(a.address, a.nbytes)
    c = heap.put(torch.zeros(4))
    assert c.address == a.address
    assert torch.equal(at(b), torch.arange(4.0) + 10)


def test_tensors_travel_beside_the_letter() -> None:
    plan = played(Odd(), engine="sequential", rounds=1).host.plan
    side = WorkerSide(Heap(), plan)
    big = torch.randn(100_000)
    strided, half, empty = torch.randn(4, 6).t(), torch.randn(3, dtype=torch.bfloat16), torch.empty(0, 3)
    letter = write({"a": big, "again": big, "t": strided, "h": half, "e": empty, "p": plan.method.local}, side)
    assert len(letter) < 2000
    told = read(letter, side)
    assert torch.equal(told["a"], big)
    assert torch.equal(told["t"], strided)
    assert torch.equal(told["h"], half)
    assert told["e"].shape == (0, 3)
    assert told["p"] == plan.method.local


SHORT = {
    "strided": torch.randn(4, 6).t(),
    "half": torch.randn(3, dtype=torch.bfloat16),
    "complex": torch.randn(5, dtype=torch.complex64),
    "truth": torch.tensor([True, False]),
    "number": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.empty(0, 3, dtype=torch.int16),
    "turned": torch.arange(6).view(2, 3).flip(0)[:, 1:],
}


@pytest.mark.parametrize("name", SHORT)
def test_short_tensors_are_in_the_letter(name: str) -> None:
    plan, sent = played(Odd(), engine="sequential", rounds=1).host.plan, SHORT[name]
    letter = write([sent, sent], WorkerSide(Heap(), plan))
    first, second = read(letter, WorkerSide(Heap(), plan))
    assert first is second
    assert first.dtype == sent.dtype
    assert torch.equal(first, sent)
    assert first.data_ptr() % 64 == 0
    before = sent.clone()
    first.view(-1).zero_()  # it is its reader's
    assert torch.equal(sent, before)


def test_memory_outlives_the_workers() -> None:
    memories = played(fl.method_named("scaffold")()).host.memories
    gc.collect()
    assert all(bool(torch.isfinite(m["control"]).all()) for m in memories.values())
