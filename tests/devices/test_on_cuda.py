"""Runs on a GPU, pretended where there is none (`pretend_cuda`): the results of the CPU, no mixing of devices, and a CPU
that does not wait for the GPU at every step."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pretend_cuda import Waits, on_device, pretended
from torch import Tensor, nn

import fedloom as fl
from fedloom.channel.stage import Channel
from fedloom.message import leaves
from fedloom.testing import Trial
from fedloom.testing.tiny import tiny_federation
from fedloom.testing.trial import Killed
from fedloom.training.hooks import sharpness_aware

torch.set_num_threads(1)
METHODS = (
    *("fedavg", "fedprox", "scaffold", "feddyn", "fedadam", "fedbn", "ifca", "fedbuff", "feddf", "heterofl", "fedit"),
    *("dfedavgm", "fjord", "fedmp", "fedkseed", "moon", "prunefl"),
)


def tensors(run: fl.Run) -> list[Tensor]:
    """Those of the state, and of what clients hold."""
    held = [run.memories[i] for i in sorted(run.memories)]
    return [t for part in (run.state, *held) for t in leaves(part) if isinstance(t, Tensor)]


def same(a: fl.Run, b: fl.Run, tolerance: float = 1e-9) -> bool:
    """Whether two runs ended alike, wherever they were."""
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    assert pairs
    return all(torch.allclose(x.cpu().double(), y.cpu().double(), rtol=tolerance, atol=tolerance) for x, y in pairs)


def paths(run: fl.Run) -> dict[str, str]:
    """How each kind of training went, without timings."""
    return {kind: path.partition(":")[0] for kind, path in run.summary["choices"].items()}


@pytest.fixture
def cuda() -> Any:
    with pretended() as waits:
        yield waits


# ---------------------------------------------------------------- methods
@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize("id", METHODS)
def test_a_method(id: str, engine: str):
    trial = Trial(fl.catalogue()[id])
    here = trial.run(engine=engine, evaluate_every=1)
    with pretended():
        there = trial.run(engine=engine, evaluate_every=1, device="cuda")
        assert any(map(on_device, tensors(there)))
        assert same(here, there)
    assert paths(here) == paths(there)
    assert here.history.filter(like="accuracy").equals(there.history.filter(like="accuracy"))


@pytest.mark.parametrize("id", ["fedavg", "scaffold", "ifca", "adafed"])
def test_a_resumed_run(id: str, cuda: Waits, tmp_path: Any):
    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 1:
            raise Killed

    trial = Trial(fl.catalogue()[id])
    options = {"out": tmp_path, "checkpoint_seconds": 0.0, "device": "cuda"}
    with contextlib.suppress(Killed):
        trial.experiment(observers=(kill,), **options).run()
    again = trial.experiment(**options).run(resume=True)
    assert same(trial.run(device="cuda"), again)
    trial.run(device="cuda", before=trial.run())  # one that came about on the CPU


# ---------------------------------------------------------------- channels
@pytest.mark.parametrize(
    "stages",
    [
        [fl.TopK(0.2)],
        [fl.RandK(0.2)],
        [fl.Quantize(bits=4)],
        [fl.Sign()],
        [fl.TopK(0.2), fl.Quantize(bits=4, feedback=False)],
        fl.DP(clip=1.0, noise=0.5, delta=1e-3),
        [fl.Secure()],
    ],
    ids=lambda stages: "+".join(type(s).__name__ for s in stages),
)
def test_a_channel(stages: Any):
    trial = Trial(fl.FedAvg(cohort=4, weight="uniform"))
    here = trial.run(engine="stacked", channel=Channel(stages))
    with pretended():
        assert same(here, trial.run(engine="stacked", channel=Channel(stages), device="cuda"))


# ---------------------------------------------------------------- ways to step
class Attentive(nn.Module):
    """A transformer layer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.flatten(1, 2)).mean(1))


class Words(nn.Module):
    """An embedding of rounded pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x.flatten(1).mul(2).long().clamp(0, 9)).mean(1))


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 130), nn.ReLU(), nn.Linear(130, 4))
    net[1].requires_grad_(False)
    return net


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))


def item(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The task's loss and a pull on all weights, which needs the vector itself."""
    return model.losses(w, batch) + 0.01 * w.square().sum()


@dataclass(frozen=True)
class Pulled(fl.FedAvg):
    """FedAvg with a loss that sees the vector of weights."""

    async def local(self, client: fl.Client, params: Tensor) -> fl.Message:
        out = await client.train(params, solver=self.solver, loss=item)
        return fl.Message(delta=out.vector - params)


@dataclass(frozen=True)
class Sharp(fl.FedAvg):
    """FedAvg by SAM on half of the weights."""

    async def local(self, client: fl.Client, params: Tensor) -> fl.Message:
        half = torch.arange(len(params)) < len(params) // 2
        extras = {"rho": 0.05}
        out = await client.train(params, solver=self.solver, step=sharpness_aware, extras=extras, only=half)
        return fl.Message(delta=out.vector - params)


SMALL = fl.SGD(lr=0.05, epochs=2, batch_size=4)
WAYS: dict[str, tuple[fl.Method, Any, str | None]] = {
    "fused": (fl.FedAvg(solver=SMALL), "mlp:8", None),
    "lazy": (fl.Scaffold(solver=SMALL), "mlp:150", None),
    "lazy momentum": (fl.FedAvg(solver=replace(SMALL, momentum=0.9)), "mlp:150", None),
    "clipped": (fl.FedProx(solver=replace(SMALL, clip=0.5)), "mlp:150", None),
    "adam": (fl.FedAvg(solver=fl.Adam(lr=0.01, batch_size=4, clip=1.0)), "mlp:8", None),
    "convolutions": (fl.FedAvg(solver=replace(SMALL, momentum=0.9)), "cnn:width=0.125", None),
    "norms in the vector": (fl.FedAvg(solver=SMALL), normed, "vector"),
    "norms of the batch": (fl.FedAvg(solver=SMALL), normed, "batch"),
    "attention": (fl.FedAvg(solver=SMALL), Attentive, None),
    "words": (fl.FedAvg(solver=SMALL), Words, None),
    "frozen": (fl.FedAvg(solver=SMALL), frozen, None),
    "the vector itself": (Pulled(solver=SMALL), "mlp:8", None),
    "masked, explicit": (Sharp(solver=SMALL), "mlp:8", None),
    "masked Adam": (Sharp(solver=fl.Adam(lr=0.01, batch_size=4)), "mlp:8", None),
}


def went(way: str, **options: Any) -> fl.Run:
    method, model, buffers = WAYS[way]
    task = fl.Classification(model=model, buffers=buffers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.FedloomWarning)
        return fl.run(method, task, tiny_federation(sizes=(18, 9, 10, 12)), rounds=2, dtype=torch.float64, **options)


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize("way", WAYS)
def test_a_way_to_step(way: str, engine: str):
    here = went(way, engine=engine)
    with pretended():
        there = went(way, engine=engine, device="cuda")
        assert same(here, there)
    assert paths(here) == paths(there)
