"""The speed command end to end on its smallest workload: turns, equality with Fedloom, files. No time is judged."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.turns import Player
from benchmarks.workloads import workload

from benchmarks import ours, speed


def test_a_narrowed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--only", "any-tiny", "--variants", "fedloom:sequential", "--repeats", "1", "--cores", "1024"]
    assert speed.main([*options, "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "partial.json").read_text())
    entry = report["workloads"]["any-tiny"]
    one, ours_ = entry["passes"][0]
    assert (one["variant"], ours_["variant"]) == ("r1", "fedloom:sequential")
    assert ours_["vs_r1"]["median"] == pytest.approx(one["all"][0] / ours_["all"][0])
    assert 0 <= ours_["difference"] <= entry["tolerance"]
    assert report["config"]["versions"]["torch"] == torch.__version__
    assert "any-tiny: sequential:" in (tmp_path / "partial.md").read_text()


def test_wrong_weights_and_failures_are_problems() -> None:
    rows = [
        speed.Row("r1", [2.0, 4.0], 0.0),
        speed.Row("r2", [1.0, 1.0], 1e-3),
        speed.Row("fedloom:auto", failed="Traceback\nConfigError: no"),
    ]
    entry = speed.summary(workload("mlp"), [rows])
    assert len(entry["problems"]) == 2
    assert "r2" in entry["problems"][0]
    assert entry["problems"][1] == "fedloom:auto failed: ConfigError: no"
    assert entry["passes"][0][1]["vs_r1"] == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_a_variant_that_ends_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('out of patience')"]
    with pytest.raises(RuntimeError, match="out of patience"):
        Player(command, os.environ, tmp_path / "log")


def test_plans_are_permutations_of_the_members_samples() -> None:
    work = workload("softmax")
    members, orders = ours.plan(work, 1)
    assert members == list(range(100))
    for client, order in zip(members, orders, strict=True):
        assert order.shape == (work.epochs, work.sizes[client])
        assert all(np.array_equal(np.sort(epoch), np.arange(work.sizes[client])) for epoch in order)


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--only", "nonsense"])
    assert "leaf-cnn" in capsys.readouterr().err
