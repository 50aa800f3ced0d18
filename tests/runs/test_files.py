"""A run's folder on a full disk, and what it says of the choices that were made."""

from __future__ import annotations

import resource
import signal
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedloom as fl
from fedloom.cli import main
from fedloom.errors import DiskError
from fedloom.runs import Recipe, files
from fedloom.runs.config import choices_in
from fedloom.testing import Trial, difference, outcome


def only(size: int) -> None:
    """From now on no file grows beyond so many bytes: the kernel refuses the rest, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def limits() -> Iterator[None]:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_written_whole_or_stays(tmp_path: Path):
    file = tmp_path / "a.txt"
    files.replace(file, "before", "")
    with limits():
        only(100)
        with pytest.raises(DiskError, match=r"could not write .*a\.txt: File too large\. Make room"):
            files.replace(file, "x" * 1000, "Make room")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "before")]


def test_numbers_of_numpy_are_written_as_those_of_python(tmp_path: Path):
    def run(number: type[Any], name: str) -> fl.Run:
        trial = Trial(fl.FedAvg(cohort=number(3)))
        options = {"rounds": number(2), "seed": number(5), "engine": "sequential"}
        return trial.experiment(**options, out=tmp_path / name).run()

    assert difference(outcome(run(int, "a")), outcome(run(np.int64, "b"))) == ""
    one, other = (tomllib.loads((tmp_path / name / "config.toml").read_text()) for name in "ab")
    assert one["set"] == other["set"]
    assert other["seed"] == 5


def test_a_log_that_cannot_be_written_says_how_to_go_on(tmp_path: Path):
    def fill(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 2:
            only((tmp_path / "metrics.jsonl").stat().st_size + 10)

    reference = Trial(fl.FedAvg).experiment(rounds=4).run()
    with limits(), pytest.raises(DiskError, match=r"metrics\.jsonl.*Make room, then continue with Experiment"):
        Trial(fl.FedAvg).experiment(rounds=4, out=tmp_path, observers=(fill,)).run()
    resumed = Trial(fl.FedAvg).experiment(rounds=4, out=tmp_path).run(resume=True)
    assert difference(outcome(resumed), outcome(reference)) == ""
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_report_that_cannot_be_written_is_one_message(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    words = ["run", "fedavg", "--limit", "200", "--clients", "8", "--rounds", "1", "--engine", "sequential", "-o"]
    with limits():
        only(1_000_000)
        with pytest.raises(SystemExit) as end:
            main([*words, str(tmp_path)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "report.html: File too large. The runs are whole. Make room, or choose another place: fedloom" in said
    assert {"summary.json", "model.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.partial"))


def test_what_was_chosen_is_in_the_configuration_and_chosen_again(tmp_path: Path):
    recipe = Recipe(method="fedavg", clients=8, rounds=2, limit=200)
    first = recipe.experiment(out=tmp_path / "a", checkpoint_seconds=3600.0).run()
    chosen = choices_in(tmp_path / "a" / "config.toml")
    assert chosen
    assert chosen == first.summary["choices"]
    (name,) = chosen
    other = {name: "plain: told so"}  # nothing that is measured says this
    config = tmp_path / "a" / "config.toml"
    config.write_text(config.read_text().replace(chosen[name], other[name]))
    for more, expected in (([], other), (["--engine", "stacked"], {name: "stacked: as asked"})):
        place = tmp_path / "-".join(["b", *more])
        with pytest.raises(SystemExit):
            main(["run", "--recipe", str(config), "--no-report", "-o", str(place), *more])
        assert choices_in(place / "config.toml") == expected
    (tmp_path / "a" / "checkpoints" / "round-000002.ckpt").unlink()  # at round 0 nothing had been chosen yet
    assert recipe.experiment(out=tmp_path / "a").run(resume=True).summary["choices"] == other
