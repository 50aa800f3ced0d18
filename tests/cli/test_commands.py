"""Commands as a user types them: what is on stdout, what on stderr, which exit code."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from fedloom.cli import main
from fedloom.cli.checking import findings
from fedloom.errors import FedloomWarning
from fedloom.named import split
from fedloom.runs import Recipe

QUICK = ["--data", "digits", "--clients", "8", "--rounds", "3", "--engine", "sequential", "--limit", "200"]


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    out, err = capsys.readouterr()
    code = end.value.code
    return code if isinstance(code, int) else 0, out, err


def test_a_run_prints_its_summary_alone_and_leaves_a_folder(capsys, tmp_path: Path):
    out = tmp_path / "one"
    code, printed, _ = ran(capsys, "run", "fedavg", *QUICK, "--set", "solver.lr=0.05", "--json", "-o", str(out))
    summary = json.loads(printed)
    assert code == 0
    assert summary["method"] == "fedavg"
    assert summary["engine"] == "sequential"
    assert summary["rounds"] == 3
    assert summary["hyperparameters"]["solver"]["lr"] == 0.05
    assert summary == json.loads((out / "summary.json").read_text())
    files = {f.name for f in out.iterdir()}
    assert files >= {
        "config.toml", "metrics.jsonl", "summary.json", "heterogeneity.json", "checkpoints", "model.safetensors",
        "report.html",
    }  # fmt: skip


def test_a_recipe_repeats_the_run_and_the_line_wins_over_it(capsys, tmp_path: Path):
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    ran(capsys, "run", "fedavg", *QUICK, "--no-report", "-o", str(first))
    ran(capsys, "run", "--recipe", str(first / "config.toml"), "--no-report", "-o", str(again))
    ran(capsys, "run", "--recipe", str(first / "config.toml"), "--seed", "5", "--no-report", "-o", str(other))
    weights = [(d / "model.safetensors").read_bytes() for d in (first, again, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert not (first / "report.html").exists()
    code, _, err = ran(capsys, "run", "scaffold", "--recipe", str(first / "config.toml"))
    assert code == 2
    assert "fedloom compare fedavg scaffold" in err


def test_a_comparison_is_one_table_one_report_and_json(capsys, tmp_path: Path):
    words = ["compare", "fedavg", "fedprox:mu=1", *QUICK, "--seeds", "2", "-o", str(tmp_path / "c")]
    code, printed, _ = ran(capsys, *words)
    assert code == 0
    assert "fedprox:mu=1" in printed
    assert "±" in printed
    assert (tmp_path / "c" / "report.html").exists()
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("metrics.jsonl")}
    _, printed, _ = ran(capsys, *words, "--json")
    found = json.loads(printed)
    assert found["seeds"] == [0, 1]
    accuracy = found["methods"]["fedavg"]["final"]["global.accuracy"]
    assert accuracy["mean"] == pytest.approx(sum(accuracy["seeds"]) / 2)
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("metrics.jsonl")}, "finished runs are kept"
    code, _, err = ran(capsys, *words, "--rounds", "4")
    assert code == 2
    assert "other options" in err


def test_the_settings_of_a_recipe_go_to_its_own_method_and_that_is_said(capsys, tmp_path: Path):
    (tmp_path / "r.toml").write_text('method = "fedprox"\ncohort = 2\n[set]\nmu = 0.5\n')
    words = ["compare", "fedavg", "fedprox", "--recipe", str(tmp_path / "r.toml"), *QUICK, "--rounds", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("always", FedloomWarning)
        code, _, err = ran(capsys, *words, "--no-report", "-o", str(tmp_path / "c"))
    assert code == 0
    assert re.findall(r"(\w+): the settings in", err) == ["fedavg"]
    recipe = Recipe.from_toml(tmp_path / "c" / "fedprox-seed0" / "config.toml")
    assert (recipe.set["mu"], recipe.set["cohort"]) == (0.5, 2)


def test_a_stopped_run_is_resumed_to_the_same_weights(capsys, tmp_path: Path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["run", "fedavg", *QUICK, "--no-report"]
    ran(capsys, *words, "-o", str(whole))

    import fedloom.runs.host as host

    honest, rounds = host.Host.round, []

    def interrupted(self):
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        honest(self)

    monkeypatch.setattr(host.Host, "round", interrupted)
    code, _, err = ran(capsys, *words, "-o", str(cut))
    assert code == 130
    assert f"fedloom resume {cut}" in err
    monkeypatch.undo()
    code, printed, _ = ran(capsys, "resume", str(cut), "--json", "--no-report")
    assert code == 0
    assert json.loads(printed)["rounds"] == 3
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "fedloom methods"),
        (["run", "fedavgg"], "Did you mean 'fedavg'"),
        (["run", "fedavg", "--set", "lr=0.1"], "Did you mean solver.lr"),
        (["run", "fedavg", "--set", "solver.lr"], "--set takes name=value"),
        (["run", "fedavg", "--set", "solver.lr=0.1", "--set", "solver.lr=0.2"], "given twice"),
        (["run", "fedavg", "--set", "solver.lr=fast"], "takes a number"),
        (["run", "fedavg", "--rounds", "0"], "rounds=0"),
        (["run", "fedavg", "--data", "digit"], "Did you mean 'digits'"),
        (["run", "fedavg", "--data", "mine.csv"], "no file 'mine.csv'"),
        (["run", "fedavg", "--data", "mine.npz"], "from_file('mine.npz'"),
        (["run", "fedavg", "--partition", "dirichlet:-1"], "above 0"),
        (["run", "fedavg", "--model", "cn"], "unknown model 'cn'"),
        (["run", "fedavg", "--channel", "topk:2"], "share"),
        (["run", "fedavg", "--engine", "warp"], "warp"),
        (["run", "fedavg", "--device", "cuda:9"], "cuda:9"),
        (["run", "fedavg", "--recipe", "nowhere.toml"], "nowhere.toml"),
        (["run", "fedavg", "--world", "speed=1"], "spread"),
        (["run", "nopackage:Thing"], "cannot load"),
        (["compare", "fedavg", "fedavg"], "given twice"),
        (["run", "fedavg", "fedprox"], "Say: fedloom compare fedavg fedprox"),
        (["run", "fedavg", "solver.lr=1", "cohort=2"], "Say: fedloom run fedavg --set solver.lr=1 --set cohort=2"),
        (["run", "fedprox:mu"], "fedprox:cohort=5; given 'fedprox:mu'"),
        (["run", "./my/own.py:Mine"], "no file './my/own.py' in "),
        (["run", "fedavg", "--world", "spread"], "--world spread=0.5"),
        (["run", "fedavg", "--rounds", "ten"], "--rounds takes a whole number; given 'ten'"),
        (["run", "fedavg", "--val", "half"], "--val takes a number; given 'half'"),
        (["compare", "fedavg", "--seeds", "0"], "greater than or equal to 1; given '0'"),
        (["serve", "x.toml", "--log-format", "yaml"], "'text', 'json'; given 'yaml'"),
        (["resume", "a", "b"], "for example: fedloom resume runs/"),
        (["check"], "for example: fedloom check scaffold"),
        (["run", "fedavg", "--data", "digits:size=1"], "digits takes no options; given 'size'"),
        (["join", "http://127.0.0.1:1", "--data", "x.csv"], "--site NAME"),
        (["join", "https://127.0.0.1:1", "--data", "x.csv", "--certs", "nope"], "nope holds no site's certificate"),
        (["certs", "issue", "x", "--days", "1000000000"], "given '1000000000'"),
        (["certs", "renew"], "certs holds no authority"),
        (["rn", "fedavg"], "Did you mean 'run'"),
        (["resume", "nowhere"], "nowhere"),
        (["report", "nowhere"], "not a run directory"),
        (["show", "scafold"], "Did you mean 'scaffold'"),
        (["methods", "--family", "personalization"], "Did you mean 'personalisation'"),
        (["data", "digits", "--partition", "dirichlett:1"], "Did you mean 'dirichlet'"),
    ],
)
def test_what_cannot_be_is_one_message_and_exit_code_2(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = ran(capsys, *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_settings_behind_a_methods_name_are_those_of_set(capsys, tmp_path: Path):
    words = ["run", "fedprox:mu=0.5,cohort=2", *QUICK, "--set", "solver.lr=0.05", "--no-report", "--json"]
    code, printed, _ = ran(capsys, *words, "-o", str(tmp_path / "r"))
    chosen = json.loads(printed)["hyperparameters"]
    assert code == 0
    assert (chosen["mu"], chosen["cohort"], chosen["solver"]["lr"]) == (0.5, 2, 0.05)


def test_whoever_waits_for_a_coordinator_reads_why_and_reads_it_once(capsys, tmp_path):
    words = ["join", "http://127.0.0.1:1", "--data", "x.npz", "--site", "a", "--patience", "0.3"]
    code, _, err = ran(capsys, *words, "--out", str(tmp_path / "a"))
    assert code == 2
    assert err.count("asking again: ") == 1
    assert "no answer from http://127.0.0.1:1" in err


def test_the_coordinator_s_certificate_is_renewed_and_can_still_be_tried_where_it_is(capsys, tmp_path):
    folder = ("--folder", str(tmp_path / "certs"))
    for words, hosts in (
        (["init", "--host", "old.org"], ""),
        (["renew"], "for old.org, localhost, 127.0.0.1;"),
        (["renew", "--host", "new.org"], "for new.org, localhost, 127.0.0.1;"),
    ):
        code, out, _ = ran(capsys, "certs", *words, *folder)
        assert code == 0
        assert hosts in out


@pytest.mark.parametrize("words", [[], ["certs"]])
def test_no_words_are_answered_with_the_help(capsys, words):
    code, out, _ = ran(capsys, *words)
    assert code == 0
    assert "Usage: fedloom" in out


def test_a_command_that_is_stopped_while_it_loads_ends_without_a_traceback(capsys, monkeypatch):
    import fedloom.cli.app

    def stopped(*words: str, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fedloom.cli.app, "app", stopped)
    code, out, err = ran(capsys, "methods")
    assert (code, out, err) == (130, "", "")


def test_debug_shows_the_traceback():
    from fedloom.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["run", "fedavgg", "--debug"])


def test_debug_shows_no_traceback_of_a_mistyped_option(capsys):
    code, _, err = ran(capsys, "run", "fedavg", "--rouns", "2", "--debug")
    assert code == 2
    assert "no such option: --rouns" in err


def test_lists_and_cards(capsys):
    from fedloom.method import catalogue

    _, printed, _ = ran(capsys, "methods", "--json")
    assert {m["id"] for m in json.loads(printed)} == set(catalogue())
    _, printed, _ = ran(capsys, "show", "fedprox", "--json")
    fields = {h["name"]: h for h in json.loads(printed)["hyperparameters"]}
    assert fields["solver.lr"]["kind"] == "a number"
    _, printed, _ = ran(capsys, "show", "fedprox", "--cite")
    assert printed.startswith("@misc{fedprox")
    for words in (["methods"], ["show", "scaffold"], ["data"], ["doctor"]):
        code, printed, _ = ran(capsys, *words)
        assert code == 0
        assert printed


def test_doctor_asks_for_packages_whatever_their_modules_are_called(monkeypatch):
    asked = ["scikit-learn>=1 ; extra == 'tables'", "numpy ; extra == 'mixed'", "fedloom-nowhere ; extra == 'mixed'"]
    monkeypatch.setattr(metadata, "requires", lambda package: asked)
    found = {name: (good, text) for name, good, text in findings()}
    assert found["tables"] == (True, f"scikit-learn {metadata.version('scikit-learn')}")
    assert found["mixed"] == (None, "without fedloom-nowhere: pip install 'fedloom\\[mixed]'")


def test_data_is_measured_and_drawn(capsys, tmp_path: Path):
    words = ["data", "digits", "--clients", "5", "--report", str(tmp_path / "data.html"), "--json"]
    code, printed, _ = ran(capsys, *words)
    found = json.loads(printed)
    assert code == 0
    assert found["clients"] == 5
    assert sum(map(sum, found["drawn"]["counts"])) == sum(found["drawn"]["sizes"])
    assert "Plotly" in (tmp_path / "data.html").read_text()


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("fedavg", "fedavg", []),
        ("fedprox:mu=1", "fedprox", ["mu=1"]),
        ("fedprox:mu=1,solver.lr=0.1", "fedprox", ["mu=1", "solver.lr=0.1"]),
        ("my.module:Mine", "my.module:Mine", []),
        ("my.module:Mine:betas=0.1,0.2,mu=3", "my.module:Mine", ["betas=0.1,0.2", "mu=3"]),
    ],
)
def test_a_method_with_settings(text: str, name: str, options: list[str]):
    assert split(text) == (name, options)


def test_a_method_of_the_folder_one_is_in_is_found(capsys, tmp_path: Path, monkeypatch):
    (tmp_path / "ownthing.py").write_text(
        "from dataclasses import dataclass\n"
        "import fedloom as fl\n"
        "@dataclass(frozen=True)\n"
        "class Mine(fl.FedAvg):\n"
        "    rate: float = 0.5\n"
        "class Bare(fl.Method):\n"
        "    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    code, printed, _ = ran(capsys, "show", "ownthing:Mine")
    assert code == 0
    assert "rate" in printed
    code, _, err = ran(capsys, "check", "ownthing:Bare")
    assert code == 2
    assert "card = Card(id=" in err


OWN_CODE = """
from dataclasses import dataclass
import fedloom as fl
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x):
        return self.layers(x)

class Nine(Net):
    def __init__(self):
        super().__init__(classes=9)

@dataclass(frozen=True)
class Mine(fl.FedAvg):
    rate: float = 0.5
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "own_code.py").write_text(OWN_CODE)
    yield
    for name in ("own_code", "lab.own_code", "lab"):
        sys.modules.pop(name, None)


def test_a_network_of_ones_own_is_run_repeated_and_resumed_by_its_name(capsys, own_code):
    name = "lab/own_code.py:Net:width=12"
    words = ["run", "fedavg", *QUICK, "--no-report", "--model", name]
    code, printed, _ = ran(capsys, *words, "--json", "-o", "one")
    assert code == 0
    assert json.loads(printed)["model"] == name
    assert json.loads(printed)["parameters"] == 64 * 12 + 12 + 12 * 10 + 10
    assert f"--model {name}" in Recipe.from_toml(Path("one/config.toml")).command()
    ran(capsys, "run", "--recipe", "one/config.toml", "--no-report", "-o", "again")
    ran(capsys, *words, "--rounds", "1", "-o", "cut")
    config = Path("cut/config.toml")
    config.write_text(config.read_text().replace("rounds = 1", "rounds = 3"))
    assert ran(capsys, "resume", "cut", "--no-report")[0] == 0
    weights = {Path(folder, "model.safetensors").read_bytes() for folder in ("one", "again", "cut")}
    assert len(weights) == 1
    code, _, err = ran(capsys, *words[:-1], "lab/own_code.py:Nine", "-o", "nine")
    assert code == 2
    assert "the outputs of the network 'lab/own_code.py:Nine' are 9" in err


def test_a_method_of_ones_own_is_named_by_its_file_and_so_is_one_inside_another(capsys, own_code):
    _, printed, _ = ran(capsys, "show", "lab/own_code.py:Mine")
    assert "rate" in printed
    words = [*QUICK, "--no-report", "--json"]
    _, printed, _ = ran(capsys, "run", "lab/own_code.py:Mine:rate=0.25,cohort=2", *words, "-o", "one")
    assert json.loads(printed)["hyperparameters"]["rate"] == 0.25
    settings = ["--set", "inner=lab/own_code.py:Mine", "--set", "inner.weight=uniform"]
    assert ran(capsys, "run", "selected", *settings, *words, "-o", "two")[0] == 0
    assert Recipe.from_toml(Path("two/config.toml")).set["inner"] == "lab/own_code.py:Mine"


def test_a_folder_that_cannot_be_written_is_one_line(capsys, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for words in (["run", "fedavg", *QUICK], ["compare", "fedavg", *QUICK]):
        code, _, err = ran(capsys, *words, "-o", str(tmp_path / "file" / "run"))
        assert code == 2
        assert str(tmp_path / "file") in err
        assert "Traceback" not in err


def test_a_comparison_is_not_resumed_as_a_run(capsys, tmp_path: Path):
    ran(capsys, "compare", "fedavg", *QUICK, "--no-report", "-o", str(tmp_path))
    code, _, err = ran(capsys, "resume", str(tmp_path))
    assert code == 2
    assert str(tmp_path / "fedavg-seed0") in err


def test_what_was_left_out_and_who_was_absent_is_said(capsys, tmp_path: Path):
    words = ["run", "fedavg", *QUICK, "--no-report"]
    _, printed, _ = ran(capsys, *words, "--set", "solver.lr=1e30", "-o", str(tmp_path / "wild"))
    assert "24 replies excluded; the first: " in printed
    assert "holds NaN or infinity" in printed
    _, printed, _ = ran(capsys, *words, "--world", "present=0.0001", "-o", str(tmp_path / "empty"))
    assert "nobody replied in 3 of 3 rounds" in printed


def test_batch_norm_and_failing_clients_have_their_options(capsys, tmp_path: Path):
    words = ["run", "fedbn", *QUICK, "--rounds", "1", "--model", "cnn-bn", "--no-report", "--json"]
    code, _, err = ran(capsys, *words)
    assert code == 2
    assert "--buffers vector" in err
    words += ["--buffers", "vector", "--on-failure", "exclude", "-o", str(tmp_path)]
    code, printed, _ = ran(capsys, *words)
    assert code == 0
    assert json.loads(printed)["excluded"] == 0
    assert "--buffers vector" in Recipe.from_toml(tmp_path / "config.toml").command()


def test_a_module_of_ones_own_that_does_not_load(capsys, tmp_path: Path, monkeypatch):
    (tmp_path / "slipped.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, err = ran(capsys, "run", "slipped:Mine")
    assert code == 2
    assert "cannot load the method 'slipped:Mine': SyntaxError" in err
    code, _, err = ran(capsys, "run", "fedavg", *QUICK, "--address", "auto")
    assert code == 2
    assert "is of the engine 'ray'" in err


def test_a_table_of_ones_own(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{i % 3},{'ill' if i % 7 > 3 else 'well'},{'ab'[i % 5 == 0]}" for i in range(120)]
    Path("patients.csv").write_text("\n".join(["dose,age,outcome,hospital", *rows]))
    short = ["--rounds", "2", "--engine", "sequential", "--no-report"]
    code, printed, _ = ran(
        capsys, "run", "fedavg", "--data", "patients.csv:target=outcome,group=hospital", *short, "--json", "-o", "own"
    )
    summary = json.loads(printed)
    assert (code, summary["clients"], summary["rounds"]) == (0, 2, 2)
    assert summary["final"]["global.accuracy"] > 0
    assert ran(capsys, "resume", "own", "--no-report")[0] == 0
    code, printed, _ = ran(
        capsys, "run", "fedavg", "--data", "patients.csv:target=dose,task=regression", *short, "--json", "-o", "two"
    )
    assert (code, "global.rmse" in json.loads(printed)["final"]) == (0, True)
    for text, said in (
        ("patients.csv", "its columns are dose, age, outcome, hospital"),
        ("patients.csv:target=doze", "unknown column 'doze'"),
        ("patients.csv:tarjet=dose", "Did you mean 'target'"),
        ("nothere.csv:target=dose", "no file 'nothere.csv'"),
        ("nothere", "patients.csv:target=outcome"),
    ):
        code, _, err = ran(capsys, "run", "fedavg", "--data", text, *short)
        assert code == 2
        assert said in " ".join(err.split())


def test_the_card_of_a_method_of_ones_own_names_the_call_that_works(capsys):
    _, printed, _ = ran(capsys, "show", "fedloom.methods.optimisation.fedavg:FedAvg")
    assert "fedloom run fedloom.methods.optimisation.fedavg:FedAvg" in printed


def test_weights_of_twice_the_width_are_trained_on_samples_of_it(capsys, tmp_path: Path):
    for data in ("digits", "diabetes"):  # targets that are numbers, too
        words = ["run", "fedavg", "--data", data, "--clients", "4", "--rounds", "1", "--engine", "sequential"]
        code, _, err = ran(capsys, *words, "--dtype", "float64", "--no-report", "-o", str(tmp_path / data))
        assert code == 0, err


def test_a_long_list_of_names_does_not_bury_the_hint(capsys):
    code, _, err = ran(capsys, "run", "fedavgg")
    assert code == 2
    assert "Did you mean 'fedavg'" in err
    assert "`fedloom methods` lists them all" in err
    assert len(err) < 250


def test_a_card_says_what_its_bytes_are_counted_in(capsys):
    _, printed, _ = ran(capsys, "show", "scaffold")
    assert "8*d bytes a client and exchange" in printed
    assert "a whole number or a number" not in printed


def test_a_cluster_without_its_package_is_refused_before_the_first_round(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    code, _, err = ran(capsys, "run", "fedavg", *QUICK[:-4], "--engine", "ray", "-o", str(tmp_path / "r"))
    assert code == 2
    assert "fedloom[ray]" in err
    assert not (tmp_path / "r").exists()


def test_a_stopped_comparison_is_continued_with_its_own_line(capsys, tmp_path: Path, monkeypatch):
    words = ["compare", "fedavg", *QUICK, "--no-report", "--json", "-o", str(tmp_path / "c")]

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedloom.runs.host.Host.round", stopped)
    code, _, err = ran(capsys, *words)
    assert (code, "Continue with: the same line" in err) == (130, True)
    monkeypatch.undo()
    code, printed, _ = ran(capsys, *words)
    assert (code, json.loads(printed)["seeds"]) == (0, [0])


def test_a_comparison_is_refused_before_its_first_run(capsys, tmp_path: Path):
    code, _, err = ran(capsys, "compare", "fedavg", "fedmd", *QUICK, "-o", str(tmp_path / "c"))
    assert code == 2
    assert "--public 0.1" in err
    assert not (tmp_path / "c").exists()
