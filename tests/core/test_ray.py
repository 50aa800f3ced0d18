"""A Ray cluster as the team: the same bits for any number of actors, and nothing lost when one dies."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import fedloom as fl
from fedloom.engines.fold import Total, tree
from fedloom.engines.ray import _blocks, _summed
from fedloom.engines.team import Cluster
from fedloom.errors import ConfigError
from fedloom.testing import difference

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # what is in a script is sent as it is
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits are compared: nothing is left to measurement."""
    monkeypatch.setattr("fedloom.training.stacked.best_path", lambda requests: ("stacked", "not measured here"))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3000, bias=False), nn.Tanh(), nn.Linear(3000, 2))


def experiment(method: fl.Method, engine: str, workers: int, rounds: int, **options: object) -> fl.Experiment:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(320, 6, generator=rng)
    federation = fl.Federation.from_arrays(x, (x[:, 0] > 0).long(), clients=8, partition=fl.IID(), seed=0)
    task = fl.Classification(model=net)
    return fl.Experiment(method, task, federation, rounds, 0, engine=engine, workers=workers, **options)


def played(method: fl.Method, engine: str = "ray", workers: int = 2, rounds: int = 3, **options: object) -> fl.Run:
    return experiment(method, engine, workers, rounds, **options).run()


@pytest.mark.parametrize("workers", [1, 2])
def test_one_two_and_no_actors_give_the_same_bits(workers: int) -> None:
    method = fl.method_named("scaffold")()
    local, run = played(method, "pool", workers=1), played(method, workers=workers)
    assert torch.equal(run.params, local.params)
    assert run.memories.keys() == local.memories.keys()
    for id, memory in run.memories.items():
        assert all(torch.equal(v, local.memories[id][k]) for k, v in memory.items())


@dataclass(frozen=True)
class Dying(fl.FedAvg):
    """Client 3 ends the actor it is in, the first time."""

    path: str = ""

    async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
        if client.id == 3 and "ray::" in _command() and not os.path.exists(self.path):
            open(self.path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().local(client, params)


def _command() -> str:
    with open("/proc/self/cmdline") as f:
        return f.read()


def test_an_actor_that_dies_is_replaced(tmp_path: Path) -> None:
    run = played(Dying(path=str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert torch.equal(run.params, played(fl.FedAvg(), "pool", workers=1).params)


@dataclass(frozen=True)
class Asking(fl.FedAvg):
    """Clients ask the server for a start in mid-job, and say where they were."""

    async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
        client.memory["actor"] = "ray::" in _command()
        fresh = await client.ask(self.scaled, factor=0.5)
        return await super().local(client, fresh.params)

    def scaled(self, state: fl.State, factor: float) -> fl.Message:
        return fl.Message(params=state.params * factor)


def test_a_method_in_a_file_is_sent_with_its_file(tmp_path: Path) -> None:
    """Actors of a cluster that was started elsewhere cannot import it."""
    file = tmp_path / "filed.py"
    file.write_text(
        "import os, fedloom as fl\n"
        "class Filed(fl.FedAvg):\n"
        "    async def local(self, client, params):\n"
        "        client.memory['process'] = os.getpid()\n"
        "        return await super().local(client, params)\n"
    )
    run = played(fl.method_named(f"{file}:Filed")())
    assert {run.memories[i]["process"] for i in range(8)} - {os.getpid()}
    assert torch.equal(run.params, played(fl.FedAvg()).params)


def test_questions_of_actors_are_answered_by_the_driver() -> None:
    run = played(Asking())
    assert torch.equal(run.params, played(Asking(), "pool", workers=1).params)
    assert not torch.equal(run.params, played(fl.FedAvg(), "pool", workers=1).params)
    assert all(run.memories[i]["actor"] for i in run.memories), run.memories


@pytest.mark.parametrize(("first", "second"), [("ray", "pool"), ("pool", "ray"), ("ray", "sequential")])
def test_a_checkpoint_goes_on_elsewhere(first: str, second: str, tmp_path: Path) -> None:
    method = fl.method_named("scaffold")()
    whole = played(method, second, rounds=4)
    played(method, first, rounds=2, out=tmp_path / "run")
    resumed = experiment(method, second, 2, 4, out=tmp_path / "run").run(resume=True)
    assert resumed.resumed_from == 2
    tolerance = 0.0 if second != "sequential" else 1e-5
    assert difference(whole.state, resumed.state, tolerance) == ""
    assert difference(whole.memories, resumed.memories, tolerance) == ""


def test_asynchronous_methods_are_computed_in_the_driver_and_the_summary_says_so() -> None:
    method = fl.method_named("fedasync")()
    run, alone = played(method), played(method, "pool", workers=1)
    assert torch.equal(run.params, alone.params)
    told = {"training on the clock, or of the server": "in the main process: like requests together"}
    assert told.items() <= run.summary["choices"].items()
    assert not told.keys() & alone.summary["choices"].keys()


def test_blocks_are_whole_subtrees() -> None:
    for first in (0, 1):
        for end in range(first, 70):
            for workers in (1, 2, 3, 8):
                blocks = _blocks(first, end, workers)
                assert [k for a, b in blocks for k in range(a, b)] == list(range(first, end))
                assert all((b - a) & (b - a - 1) == 0 and a % (b - a) == 0 for a, b in blocks)


def test_sums_of_blocks_are_the_tree_s() -> None:
    """Floating-point sums depend on their order: blocks summed elsewhere give the very bits of the whole tree."""
    rng = torch.Generator().manual_seed(0)

    def chunk(k: int) -> list[Total]:
        value = torch.randn(50, generator=rng.manual_seed(k)) * 10.0 ** (k % 7)
        return [Total({"v": value}, 1.0, [k], "odd" if k == 5 else "common")]

    for n in range(1, 40):
        whole, left = tree([chunk(k) for k in range(n)])
        found = [chunks for a, b in _blocks(0, n, 2) for chunks in _summed([[([], chunk(k))] for k in range(a, b)])]
        again, left_again = tree([totals for share in found for _, totals in share])
        assert torch.equal(whole.values["v"], again.values["v"])
        assert left == left_again
        assert sorted(whole.jobs) == sorted(again.jobs)


def test_amounts_of_a_cluster_are_checked() -> None:
    with pytest.raises(ConfigError, match="amounts are >= 0"):
        Cluster(gpus=-1)
