"""Runs on a GPU, pretended where there is none (`pretend_cuda`): the results of the CPU, no mixing of devices, and a CPU
that does not wait for the GPU at every step."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedloom as fl
from fedloom.channel.stage import Channel
from fedloom.errors import ConfigError
from fedloom.message import leaves
from fedloom.testing import Trial
from fedloom.testing.trial import Killed

from pretend_cuda import DEVICE, MixedDevices, Waits, on_device, pretended

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
