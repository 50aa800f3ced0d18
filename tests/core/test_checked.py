"""Arguments a newcomer gets wrong: told at once, with what was given, what is taken, and a call that works."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from torch import nn

import fedloom as fl
from fedloom.checked import Checked
from fedloom.engines.team import Cluster
from fedloom.errors import ConfigError, DataError
from fedloom.method import _METHODS

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def federation(**options: Any) -> fl.Federation:
    return fl.Federation.from_arrays(X, Y, **{"clients": 4, "partition": fl.IID(), **options})


def run(method: Any = None, task: Any = None, **options: Any) -> fl.Run:
    task = task or fl.Classification(model=lambda: nn.Linear(6, 2))
    return fl.run(method or fl.FedAvg(), task, federation(), **{"rounds": 1, "engine": "sequential", **options})


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a text for a number": (lambda: fl.SGD(lr="0.1"), r"SGD\(lr='0.1'\) cannot be: lr takes a number, as in lr=0.1"),
    "nothing for a number": (lambda: fl.SGD(lr=None), "lr takes a number"),
    "not a number": (lambda: fl.FedAvg(server_lr=float("nan")), "server_lr takes a number"),
    "a fraction of an epoch": (lambda: fl.SGD(epochs=1.5), "epochs takes a whole number"),
    "a truth value for a number": (lambda: run(rounds=True), "rounds takes a whole number"),
    "a number for a tuple": (lambda: fl.Adam(betas=0.9), r"betas takes a tuple, as in betas=\(0.9, 0.999\)"),
    "a tuple too long": (lambda: fl.Adam(betas=(0.9, 0.9, 0.9)), "betas takes a tuple"),
    "a name nearly right": (
        lambda: fl.FedAvg(cohorts=5),
        r"FedAvg takes no 'cohorts'. Did you mean cohort\? It is FedAvg\(cohort=10, solver=SGD\(epochs=5\), server_lr",
    ),
    "a field of the solver": (lambda: fl.FedProx(lr=0.05), r"Did you mean solver=SGD\(lr=0.05\)\?"),
    "a name that is none": (lambda: fl.SGD(learning_rate=0.1), r"takes no 'learning_rate'. It is SGD\(lr=0.1, "),
    "too many without a name": (lambda: fl.FedAvg(1, 2, 3, 4, 5), "takes 4 arguments without a name; given 5"),
    "a solver of torch": (
        lambda: fl.FedAvg(solver=torch.optim.SGD),
        r"solver=the class SGD.*takes an instance of Solver, as in",
    ),
    "a number for a solver": (lambda: fl.FedAvg(solver=0.1), "solver takes an instance of Solver"),
    "a choice that is none": (lambda: fl.FedAvg(weight="size"), "unknown weight 'size'. Known: samples, uniform"),
    "nobody asked": (lambda: run(fl.FedAvg(cohort=0)), r"cohort=0\) cannot be: clients a round, 1 or more"),
    "fewer than nobody": (lambda: run(fl.FedAvg(cohort=-2)), "1 or more, as in cohort=10"),
    "a chance above one": (lambda: run(fl.FedAvg(cohort=1.5)), "chance to be asked, between 0 and 1"),
    "nobody asked inside": (lambda: run(fl.Selected(inner=fl.FedAvg(cohort=0, weight="uniform"))), "FedAvg.cohort=0"),
    "a method's name": (lambda: run("fedavg"), r"method takes an instance of Method, such as fl.FedAvg\(cohort=10\)"),
    "a method's class": (lambda: run(fl.FedAvg), "method=the class FedAvg"),
    "a network for a task": (
        lambda: run(task=net),
        r"takes an instance of Task, such as fl.Classification\(model=MyNet\)",
    ),
    "an option of a run": (lambda: run(round=3), "unknown option of a run 'round'. Did you mean 'rounds'"),
    "an option of an experiment": (
        lambda: fl.Experiment(fl.FedAvg(), fl.Classification(), federation(), round=3),
        "Experiment takes no 'round'. Did you mean rounds",
    ),
    "a seed that is none": (lambda: run(seed="a"), "seed takes a whole number, as in seed=0"),
    "rounds as text": (lambda: run(rounds="2"), "rounds takes a whole number"),
    "negative rounds": (lambda: run(rounds=-1), "rounds=-1 cannot be"),
    "negative seconds": (lambda: run(checkpoint_seconds=-1.0), "checkpoint_seconds=-1.0 cannot be"),
    "half a worker": (lambda: run(engine="pool", workers=1.5), "workers takes a whole number or none"),
    "one observer, not a list": (lambda: run(observers=print), "observers takes a list of functions"),
    "a number for a clock": (lambda: run(clock=5), "clock takes what time goes by"),
    "a clock that stands still": (lambda: run(clock=fl.WallClock(speed=0.0)), r"WallClock\(speed=0.0\) cannot be"),
    "a number for a run": (lambda: run(before=3), "before takes an earlier run, or its state"),
    "a dict for a world": (lambda: run(world={"latency": 1}), r"world takes an instance of World, such as fl.World\("),
    "a world's option": (lambda: fl.World(latncy=1), "World takes no 'latncy'. Did you mean latency"),
    "a world's number": (lambda: fl.World(step_seconds="1"), "step_seconds takes a number"),
    "a device's name": (lambda: fl.World(devices=["phone"]), r"takes a device for each client, as in \[fl.Device\("),
    "no device": (lambda: fl.World(devices=[]), r"not \[\]"),
    "a step that takes no time": (lambda: fl.Device(step_seconds=0.0), "step_seconds, speed, memory > 0"),
    "a text for a cluster": (
        lambda: run(engine="ray", cluster="auto"),
        r"takes an instance of Cluster, such as Cluster\(gpus=0.5\)",
    ),
    "a cluster, but no ray": (lambda: run(cluster=Cluster(cpus=0.5)), "is of the engine 'ray', and this run's"),
    "a stage's number": (lambda: fl.TopK(share="a"), "share takes a number, as in share=0.05"),
    "a task's option": (lambda: fl.Classification(net=net), r"takes no 'net'\. .*It is Classification\(model='mlp'"),
    "nothing to train": (lambda: run(task=fl.Classification(model=nn.Flatten)), "nothing to train"),
    "a partition's number": (lambda: fl.Dirichlet(alpha="0.1"), "alpha takes a number"),
    "a partition's class": (
        lambda: federation(partition=fl.Dirichlet),
        "partition takes an instance of Partition, such as",
    ),
    "a federation's option": (
        lambda: fl.Federation.from_arrays(X, Y, num_clients=2),
        "takes no 'num_clients'. Did you mean clients",
    ),
    "half a client": (lambda: federation(clients=2.5), "clients takes a whole number or none"),
    "a share as text": (lambda: federation(val="0.1"), "val takes a number"),
    "a dict for a frame": (lambda: fl.Federation.from_pandas({"a": [1]}, target="a"), "takes a pandas DataFrame"),
    "missing numbers": (
        lambda: fl.Federation.from_pandas(pd.DataFrame({"a": [1.0, None], "y": [0, 1]}), target="y", clients=1),
        'missing="mean" fills them',
    ),
    "no method": (lambda: fl.method_named(None), "unknown method None"),
}


@dataclass(frozen=True)
class Trains(fl.FedAvg):
    """Clients train for these steps, in an order of this shape."""

    steps: int | None = None
    order: tuple[int, ...] | None = None

    async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
        order = None if self.order is None else torch.zeros(self.order, dtype=torch.int64)
        out = await client.train(params, solver=self.solver, steps=self.steps, order=order)
        return fl.Message(params=out.vector, delta=out.vector - params)


@pytest.mark.parametrize(
    ("steps", "order"), [(-1, None), (-1, (5, 2)), (6, (5, 2)), (None, (5,)), (None, ()), (2, (5, 2, 1))]
)
def test_steps_and_their_order_fit_each_other(steps: int | None, order: tuple[int, ...] | None):
    with pytest.raises(ConfigError, match=r"an order is \(steps, batch\), with a row for every step"):
        run(Trains(steps=steps, order=order))


@dataclass(frozen=True)
class Astray(fl.FedAvg):
    """In the second round client 1 trains on `given`, or moves `only` what that says."""

    given: Any = None
    only: Any = None

    async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
        bad = client.round == 1 and client.id == 1
        order = self.given if bad and self.given is not None else torch.tensor([[0, 1], [1, 1]])
        only = self.only if bad and self.only is not None else torch.ones(len(params), dtype=torch.bool)
        out = await client.train(params, solver=self.solver, order=order, only=only)
        return fl.Message(delta=out.vector - params)


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize(
    "order",
    [[[0, 13], [1, 2]], [[0, -1], [1, 2]], [[0.9, 1.0], [1.0, 2.0]], [[True, False], [True, True]], [[], []]],
    ids=["another client's", "before the first", "no whole numbers", "a mask", "nothing"],
)
def test_an_order_names_samples_of_its_client(order: list[list[Any]], engine: str):
    with pytest.raises(ConfigError, match="positions among 13 samples are whole numbers from 0 to 12, at least one a"):
        run(Astray(given=torch.tensor(order)), rounds=2, engine=engine)


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize("only", [torch.ones(14), torch.ones(13, dtype=torch.bool)], ids=["numbers", "too short"])
def test_a_mask_is_of_the_whole_vector(only: torch.Tensor, engine: str):
    with pytest.raises(ConfigError, match="a boolean vector of the model's 14 numbers"):
        run(Astray(only=only), rounds=2, engine=engine)


@pytest.mark.parametrize(("steps", "order"), [(0, None), (3, (5, 2)), (None, (5, 2)), (0, (0, 2))])
def test_an_order_may_be_longer_than_the_steps(steps: int | None, order: tuple[int, ...] | None):
    run(Trains(steps=steps, order=order))


@pytest.mark.parametrize(
    ("names", "order", "why"),
    [
        (("a", "b"), ("c",), r"is for 'c', and the data is \['a', 'b'\]: give order=\{name: positions\}"),
        (("a", "b"), ("",), r"is one tensor, and the data is \['a', 'b'\]"),
        (("",), ("typo",), "is for 'typo', and the data is one, without a name: give order=positions"),
        (("a", "b"), ("b",), ""),
        (("",), ("",), ""),
    ],
)
def test_an_order_is_for_data_that_is_there(names: tuple[str, ...], order: tuple[str, ...], why: str):
    @dataclass(frozen=True)
    class Streams(fl.FedAvg):
        async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
            rows = {name: torch.zeros(3, 2, dtype=torch.int64) for name in order}
            data = dict.fromkeys(names, client.data)
            out = await client.train(
                params,
                solver=self.solver,
                data=data.get("", data),
                order=rows.get("", rows),
                loss=None if "" in data else lambda model, w, batch, extras: model.losses(w, batch["b"]),
            )
            assert out.steps == 3
            return fl.Message(delta=out.vector - params)

    if not why:
        run(Streams())
        return
    with pytest.raises(ConfigError, match=why):
        run(Streams())


def test_a_module_of_one_s_own_may_be_named_as_its_method(tmp_path, monkeypatch):
    text = """
import fedloom as fl
from dataclasses import dataclass, replace

@fl.register
@dataclass(frozen=True)
class Mine(fl.FedAvg):
    card = replace(fl.FedAvg.card, id="ofmyown")
"""
    (tmp_path / "ofmyown.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("fedloom.method._METHODS", dict(_METHODS))
    assert fl.method_named("ofmyown:Mine") is fl.method_named("ofmyown:Mine")
    with pytest.raises(ConfigError, match="settings of fedavg are written name=value: fedavg:cohort=5"):
        fl.method_named("fedavg:cohort")


@pytest.mark.parametrize(("call", "told"), WRONG.values(), ids=WRONG)
def test_it_is_told_at_once(call: Callable[[], object], told: str):
    with pytest.raises((ConfigError, DataError), match=told):
        call()


@pytest.mark.filterwarnings("ignore::fedloom.errors.FedloomWarning")  # told, too: by the stacked engine
@pytest.mark.parametrize("engine", ["sequential", "stacked", "auto", "debug"])
def test_a_batch_of_one_under_batch_norm(engine: str):
    def of(batch_size: int, buffers: str = "batch") -> fl.Run:
        task = fl.Classification(model=net, buffers=buffers)
        return run(fl.FedAvg(solver=fl.SGD(batch_size=batch_size)), task, engine=engine)

    with pytest.raises(DataError, match="client 0 has 13 samples, so in batches of 12 one is left over") as told:
        of(12)
    assert all(way in str(told.value) for way in ("batch_size", "buffers='frozen'", "nn.GroupNorm", "'exclude'"))
    of(6, "frozen")
    of(5)


@dataclass(frozen=True)
class Gradients(fl.FedAvg):
    """A gradient of the first few samples."""

    samples: int = 1

    async def local(self, client: Any, params: Any) -> fl.Message:
        return fl.Message(delta=-await client.gradient(params, client.data.slice(0, self.samples)))


@pytest.mark.parametrize("engine", ["sequential", "stacked", "debug"])
def test_a_gradient_of_one_sample_under_batch_norm(engine: str):
    def of(samples: int, buffers: str = "batch") -> fl.Run:
        return run(Gradients(samples=samples), fl.Classification(model=net, buffers=buffers), engine=engine)

    with pytest.raises(DataError, match=r"client 0 has 1 sample, and batch normalisation cannot"):
        of(1)
    of(1, "frozen")
    of(2)


def test_a_run_says_what_it_is():
    assert repr(run(rounds=1)).startswith("Run(FedAvg, 1 of 1 rounds: global.accuracy 0.")


def test_what_is_right_passes():
    assert fl.SGD(1) == fl.SGD(lr=1.0)
    assert replace(fl.FedAvg(), cohort=0.5).cohort == 0.5
    made = fl.FedAvg(solver=fl.Adam(lr=1e-2))
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
    first = run()
    assert run(before=first).host.version == run(before=first.state).host.version == 1


def test_kinds_that_only_type_checkers_know_are_left_alone():
    @dataclass(frozen=True)
    class Local(Checked):
        kind: Hidden = 1  # type: ignore[name-defined]  # noqa: F821
        choice: Literal["a", 3] = "a"
        sizes: tuple[int, ...] = ()

    assert Local(kind="anything", choice=3, sizes=(1, 2)).sizes == (1, 2)
    for wrong in ({"choice": "b"}, {"choice": 4}, {"sizes": (1, 2.5)}, {"sizes": [1]}):
        with pytest.raises(ConfigError):
            Local(**wrong)
