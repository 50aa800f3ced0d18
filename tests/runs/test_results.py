"""What a run gives and says of itself: its model, its best round, its rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import fedloom as fl
from fedloom.errors import ConfigError

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
TASK = fl.Classification(model="softmax")


def run(federation: fl.Federation, rounds: int = 3, **options: Any) -> fl.Run:
    return fl.run(fl.FedAvg(), TASK, federation, rounds=rounds, engine="sequential", **options)


def test_the_model_is_an_ordinary_module_or_there_is_none():
    federation = fl.Federation.from_data({"x": X, "y": Y}, clients=4)
    made = run(federation, rounds=1)
    assert made.params is not None
    weight, bias = made.params[:24].view(3, 8), made.params[24:]
    with torch.no_grad():
        torch.testing.assert_close(made.model(X), X @ weight.T + bias)
    alone = fl.run(fl.DPSGD(), TASK, federation, rounds=1, engine="sequential")
    assert alone.params is None
    with pytest.raises(ConfigError, match=r"D-PSGD has no single global model; look at run\.state and run\.memories"):
        _ = alone.model


def test_a_report_lies_in_the_folder_of_its_run_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    federation = fl.Federation.from_data({"x": X, "y": Y}, clients=4)
    assert run(federation, rounds=1, out=tmp_path / "a").report() == tmp_path / "a" / "report.html"
    monkeypatch.chdir(tmp_path)
    assert run(federation, rounds=1).report().resolve() == tmp_path / "report.html"


def test_a_cohort_larger_than_the_population_is_said_to_be_all_of_it():
    said: list[dict[str, Any]] = []
    for clients in (10, 4):
        run(fl.Federation.from_data({"x": X, "y": Y}, clients=clients), rounds=0, observers=[said.append])
    (note,) = [event["text"] for event in said if event["event"] == "note"]
    assert note == "the cohort is 10, and there are 4 clients: all take part"


def test_the_best_round_is_known_though_the_first_client_has_too_few_samples_to_choose_by():
    federation = fl.Federation.from_clients([(X[:1], Y[:1]), (X, Y), (X.flip(0), Y)], val=0.3)
    assert [len(federation.local(id).val) > 0 for id in federation.ids] == [False, True, True]
    made = run(federation)
    chosen = [row["validation"]["accuracy"] for row in made.rows]
    assert made.summary["best"]["validation.accuracy"] == max(chosen)
    assert made.summary["best"]["round"] == 1 + chosen.index(max(chosen))


@pytest.mark.parametrize(
    ("chosen", "best"), [([math.nan, 0.2, 0.7, 0.4], 3), ([0.2, math.nan], 1), ([math.nan, math.nan], None)]
)
def test_a_round_whose_figure_is_no_number_is_never_the_best(chosen: list[float], best: int | None):
    made = run(fl.Federation.from_data({"x": X, "y": Y}, clients=4), rounds=0)
    made.rows = [{"round": k, "validation": {"accuracy": value}} for k, value in enumerate(chosen, 1)]
    assert (made.summary["best"] or {}).get("round") == best


def test_single_jobs_are_written_down_from_the_resume_that_asks_for_them(tmp_path: Path):
    federation = fl.Federation.from_data({"x": X, "y": Y}, clients=4)
    run(federation, rounds=1, out=tmp_path)
    options: dict[str, Any] = {"engine": "sequential", "out": tmp_path, "per_client": True}
    more = fl.Experiment(fl.FedAvg(), TASK, federation, rounds=2, **options).run(resume=True)
    assert [len(row.get("jobs", ())) for row in more.rows] == [0, 4]


@dataclass(frozen=True)
class Notes(fl.FedAvg):
    def round(self, state: Any, clients: fl.Clients) -> Any:
        clients.note(jobs=3.0, clients=2.0, staleness=0.5, exclusions=1.0)
        return super().round(state, clients)


def test_a_method_may_call_its_notes_what_it_likes():
    federation = fl.Federation.from_arrays(X, Y, clients=4)
    row = fl.run(Notes(), TASK, federation, rounds=1, engine="sequential").history.iloc[-1]
    assert (row["notes.jobs"], row["notes.clients"], row["notes.staleness"], row["notes.exclusions"]) == (3, 2, 0.5, 1)
    assert not [name for name in row.index if "clients" in name and not name.startswith("notes")]
