"""Runs on a GPU that is pretended (`pretend_cuda`): the results of the CPU, no mixing of devices, and nobody waits for
the GPU at every step."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pretend_cuda import DEVICE, MixedDevices, Waits, on_device, pretended
from torch import Tensor, nn

import fedloom as fl
from fedloom.channel.stage import Channel
from fedloom.errors import ConfigError
from fedloom.message import leaves
from fedloom.testing import Trial
from fedloom.testing.tiny import tiny_federation
from fedloom.testing.trial import Killed
from fedloom.training.hooks import sharpness_aware

torch.set_num_threads(1)
METHODS = (
    *("fedavg", "fedprox", "scaffold", "feddyn", "fedadam", "fedbn", "ifca", "fedbuff", "feddf", "heterofl", "fedit"),
    *("dfedavgm", "fjord", "fedmp", "fedkseed", "moon", "prunefl", "gi-unstale"),
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


def test_masks_that_follow_from_the_model():
    trial = Trial(fl.EveryParameterMatters, policy="magnitude")
    here = trial.run()
    with pretended():
        assert same(here, trial.run(device="cuda"))


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


def went(way: str, method: fl.Method | None = None, **options: Any) -> fl.Run:
    usual, model, buffers = WAYS[way]
    task = fl.Classification(model=model, buffers=buffers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.FedloomWarning)
        return fl.run(
            method or usual, task, tiny_federation(sizes=(18, 9, 10, 12)), rounds=2, dtype=torch.float64, **options
        )


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize("way", WAYS)
def test_a_way_to_step(way: str, engine: str):
    here = went(way, engine=engine)
    with pretended():
        there = went(way, engine=engine, device="cuda")
        assert same(here, there)
    assert paths(here) == paths(there)


# ---------------------------------------------------------------- waiting, and what is refused
@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize("way", WAYS)
def test_nobody_waits_for_the_gpu_at_every_step(way: str, engine: str):
    """The CPU waits as often for few steps as for many."""
    method, counts = WAYS[way][0], list[int]()
    for epochs in (2, 5):
        with pretended() as waits:
            longer = replace(method, solver=replace(method.solver, epochs=epochs))  # type: ignore[attr-defined]
            went(way, method=longer, engine=engine, device="cuda", evaluate_every=0)
            counts.append(waits.all)
    assert counts[1] <= counts[0]  # fewer where a layer's products outgrow it and it is no longer lazy


@pytest.mark.parametrize("options", [{"engine": "pool"}, {"workers": 2}, {"engine": "ray"}], ids=str)
def test_workers_without_the_gpu_are_refused(options: dict[str, Any], cuda: Waits):
    with pytest.raises(ConfigError, match="gpus=1"):
        went("fused", device="cuda", **options)


def test_auto_times_what_the_gpu_has_done(cuda: Waits):
    run = went("fused", device="cuda", engine="auto")
    assert "one by one" in str(run.summary["choices"])
    assert any("wait" in line for line in cuda)


def test_a_gpu_that_was_not_asked_for_is_left_alone(cuda: Waits):
    went("fused", engine="auto")
    assert not cuda


# ---------------------------------------------------------------- the pretended device itself
@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(4, 3) + x,
        lambda x: torch.zeros(4, 3).add_(x),
        lambda x: x @ torch.ones(3, 2),
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: torch.ones(4)[torch.zeros(2, dtype=torch.int64, device="cuda")],
        lambda x: torch.where(torch.ones(4, 3) > 0, x, x),
        lambda x: x.numpy(),
        lambda x: x.normal_(generator=torch.Generator()),
        lambda x: torch.randn(3, device="cuda", generator=torch.Generator()),
    ],
)
def test_mixing_is_noticed(mistake: Any, cuda: Waits):
    x = torch.zeros(4, 3, device="cuda")
    with pytest.raises((MixedDevices, TypeError, RuntimeError), match=r"same device|numpy|generator"):
        mistake(x)


def test_what_may_be_mixed(cuda: Waits):
    x = torch.ones(4, 3, device="cuda")
    assert (x * torch.tensor(2.0)).device == x[torch.tensor([1, 0])].device == DEVICE
    x[torch.tensor([True, False, False, False])] = 0.0
    assert x.cpu().sum() == 9
    assert not on_device(x.cpu())
    assert torch.zeros(1).to(x).is_cuda
