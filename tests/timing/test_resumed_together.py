"""A killed run goes on to the same bits also where jobs under way are trained together: whom a job was trained with
decides its last bits, and after a kill the others would be others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedloom as fl
from fedloom.client import Client
from fedloom.message import Message
from fedloom.runs import Recipe
from fedloom.training.hooks import shifted


class Stop(Exception):
    pass


def finished(out: Path, kills: tuple[int, ...], **recipe: Any) -> fl.Run:
    """The run, killed after these rounds and gone on with."""
    made = Recipe(rounds=12, evaluate_every=6, devices="tiers:0.2,0.5,0.3", **recipe)
    for kill in (*kills, None):
        experiment = made.experiment(out=out)
        experiment.checkpoint_seconds = 0

        def observe(event: Any, kill: int | None = kill) -> None:
            if event["event"] == "round" and event["round"] == kill:
                raise Stop

        experiment.observers = [observe]
        try:
            return experiment.run(resume=(out / "config.toml").exists())
        except Stop:
            pass
    raise AssertionError


@pytest.mark.parametrize("method", ["fedbuff", "fedasync"])
def test_to_the_bit(method, tmp_path):
    whole = finished(tmp_path / "whole", (), method=method, engine="stacked")
    cut = finished(tmp_path / "cut", (3, 7, 8), method=method, engine="stacked")
    assert torch.equal(whole.params, cut.params)
    assert whole.history["time"].tolist() == cut.history["time"].tolist()


class Twice(fl.FedBuff):
    """Trains twice in one job, so that a kill may lie between."""

    async def local(self, client: Client, params: torch.Tensor) -> Message:
        first = await client.train(params, solver=self.solver)
        shift = {"shift": 0.01 * (first.vector - params)}
        out = await client.train(params, solver=self.solver, step=shifted, extras=shift)
        return Message(delta=out.vector - params)


def test_between_two_trainings(tmp_path):
    whole, cut = (
        finished(tmp_path / name, kills, method="test_resumed_together:Twice", engine="stacked")
        for name, kills in (("whole", ()), ("cut", (2, 5, 6, 9)))
    )
    assert torch.equal(whole.params, cut.params)
