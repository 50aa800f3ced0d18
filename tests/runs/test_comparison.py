"""Several methods at once: in Python what `fedloom compare` gives."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fedloom as fl
from fedloom.cli import main
from fedloom.errors import ConfigError, NotSupported

QUICK: dict[str, Any] = {"rounds": 2, "engine": "sequential"}


def data(seed: int = 0) -> fl.Federation:
    return fl.federate("digits", 8, seed=seed, limit=200)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


TASK = fl.Classification(model=network)


def accuracies(done: fl.Comparison, label: str) -> list[float]:
    return done.summary["methods"][label]["final"]["global.accuracy"]["seeds"]


def test_each_method_is_run_with_each_seed_and_the_table_shows_mean_and_spread():
    done = fl.compare([fl.FedAvg(), fl.FedProx(mu=10.0)], TASK, data(), seeds=3, **QUICK)
    each = [fl.run(fl.FedAvg(), TASK, data(), seed=seed, **QUICK) for seed in range(3)]
    single = [run.summary["final"]["global.accuracy"] for run in each]
    assert accuracies(done, "fedavg") == single
    assert done.summary["seeds"] == [0, 1, 2]
    mean, std = 100 * statistics.fmean(single), 100 * statistics.stdev(single)
    assert done.table.loc["fedavg", "accuracy"] == f"{mean:.1f} ± {std:.1f} %"
    assert "fedprox" in repr(done)


def test_python_and_the_command_give_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    line = ["compare", "fedavg", "fedprox:mu=1", "--data", "digits", "--clients", "8", "--limit", "200", "--seeds", "2"]
    with pytest.raises(SystemExit):
        main([*line, "--rounds", "2", "--engine", "sequential", "--json", "-o", str(tmp_path / "line")])
    printed = json.loads(capsys.readouterr().out)
    done = fl.compare(["fedavg", "fedprox:mu=1"], data=data, seeds=2, out=tmp_path / "python", **QUICK)
    for label in ("fedavg", "fedprox:mu=1"):
        final = printed["methods"][label]["final"]["global.accuracy"]
        assert done.summary["methods"][label]["final"]["global.accuracy"] == final
    assert json.loads((tmp_path / "python" / "summary.json").read_text()) == done.summary
    assert done.report() == tmp_path / "python" / "report.html"
    assert "fedprox:mu=1" in done.report().read_text()


def test_what_is_finished_is_kept_what_was_stopped_goes_on_and_other_data_are_refused(tmp_path: Path):
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            raise KeyboardInterrupt

    methods = [fl.FedAvg(), fl.FedProx()]
    given: dict[str, Any] = {**QUICK, "checkpoint_seconds": 0}
    fl.compare(methods[:1], TASK, data(), out=tmp_path, **given)
    with pytest.raises(KeyboardInterrupt):
        fl.compare(methods, TASK, data(), out=tmp_path, observers=[stop], **given)
    before = (tmp_path / "fedavg-seed0" / "metrics.jsonl").stat().st_mtime_ns
    done = fl.compare(methods, TASK, data(), out=tmp_path, **given)
    assert (tmp_path / "fedavg-seed0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert done.groups[1].records[0].rows[-1]["round"] == 2
    assert accuracies(done, "fedprox") == accuracies(fl.compare(methods, TASK, data(), **given), "fedprox")
    with pytest.raises(ConfigError, match="other options or data"):
        fl.compare(methods, TASK, data(seed=1), out=tmp_path, **given)
    with pytest.raises(ConfigError, match="other options or data"):
        fl.compare([fl.FedAvg(cohort=3)], TASK, data(), out=tmp_path, **given)


@pytest.mark.parametrize(
    ("methods", "labels"),
    [
        ([fl.FedAvg(), "scaffold"], ["fedavg", "scaffold"]),
        ([fl.FedProx(cohort=3), fl.FedProx(cohort=3, mu=1.0)], ["fedprox", "fedprox:mu=1.0"]),
        ({"ours": fl.FedAvg(), "theirs": "fedavg:cohort=3"}, ["ours", "theirs"]),
    ],
)
def test_methods_are_called_by_what_tells_them_apart(methods: Any, labels: list[str]):
    done = fl.compare(methods, TASK, data(), **{**QUICK, "rounds": 0})
    assert [group.label for group in done.groups] == labels


def test_each_seed_may_have_a_split_of_its_own():
    asked: list[int] = []

    def split(seed: int) -> fl.Federation:
        asked.append(seed)
        return data(seed)

    done = fl.compare(["fedavg", "fedprox"], TASK, split, seeds=[3, 7], **QUICK)
    assert done.summary["seeds"] == [3, 7]
    assert {record.summary["data_sha256"] for record in done.groups[0].records} == {data(s).sha256 for s in (3, 7)}
    assert sorted(set(asked)) == [3, 7]


def bare() -> fl.Federation:
    return fl.Federation.from_arrays(torch.randn(40, 64), torch.arange(40) % 10, clients=2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fl.compare(fl.FedAvg(), TASK, data()), "methods is a list, as in compare([fl.FedAvg()"),  # type: ignore[arg-type]
        (lambda: fl.compare("fedavg", TASK, data()), "methods is a list"),
        (lambda: fl.compare([], TASK, data()), "which methods?"),
        (lambda: fl.compare([fl.FedAvg], TASK, data()), "an instance, as in fl.FedAvg()"),  # type: ignore[list-item]
        (lambda: fl.compare([fl.FedAvg(), fl.FedAvg()], TASK, data()), "given twice: fedavg fedavg"),
        (lambda: fl.compare(["fedavgg"], TASK, data()), "Did you mean 'fedavg'"),
        (lambda: fl.compare([fl.FedAvg()], data(), TASK), "data is a federation"),  # type: ignore[arg-type]
        (lambda: fl.compare([fl.FedAvg()], TASK, lambda seed: 3), "given 3"),  # type: ignore[arg-type]
        (lambda: fl.compare([fl.FedAvg()], data=bare()), "which task?"),
        (lambda: fl.compare([fl.FedAvg()], TASK, data(), seeds=0), "seeds=0 cannot be"),
        (lambda: fl.compare([fl.FedAvg()], TASK, data(), seeds=[1, 1]), "seeds=[1, 1] cannot be"),
        (lambda: fl.compare([fl.FedAvg()], TASK, federation=data()), "federation is called data in a comparison"),
        (lambda: fl.compare([fl.FedAvg()], TASK, data(), round=3), "Did you mean 'rounds'"),
    ],
)
def test_what_cannot_be_says_what_can(call: Callable[[], Any], said: str):
    with pytest.raises(ConfigError, match=re.escape(said)):
        call()


def test_all_methods_are_looked_at_before_the_first_run(tmp_path: Path):
    with pytest.raises(NotSupported, match="needs public data"):
        fl.compare(["fedavg", "fedmd"], TASK, data(), out=tmp_path / "c", **QUICK)
    assert not (tmp_path / "c").exists()
