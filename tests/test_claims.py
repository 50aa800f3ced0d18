"""The claims harness: rules judge as written, tuning cannot see test data, budgets cut, nothing is written unasked."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

import fedloom as fl
from fedloom import claims
from fedloom.claims import Arm, Beats, Claim, Final, FirstReach, Setting
from fedloom.cli import checking
from fedloom.testing import difference, tiny_federation


def setting(seed, quick):
    federation = tiny_federation(sizes=(14, 1, 10, 9), seed=seed, dtype=torch.float32)
    return Setting(fl.Classification(model="mlp:8"), federation, 2 if quick else 4, {"engine": "sequential"})


def make(**changes):
    given = {
        "method": "fedavg",
        "statement": "many steps beat none to speak of",
        "setting": setting,
        "arms": {"many": fl.FedAvg(solver=fl.SGD(epochs=5)), "few": fl.FedAvg(solver=fl.SGD(steps=1, batch_size=2))},
        "measure": Final("global.loss", last=1, lower=True),
        "rule": Beats("many", "few"),
        "grid": {"solver.lr": (1e-6, 0.1)},
        "seeds": 2,
    }
    return Claim(**{**given, **changes})


@pytest.mark.parametrize(
    ("ours", "theirs", "rule", "lower", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], Beats("a", "b"), False, "reproduced"),
        ([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], Beats("a", "b", by=0.2), False, "mixed"),
        ([0.9, 0.7, 0.8], [0.8, 0.78, 0.79], Beats("a", "b"), False, "mixed"),
        ([0.7, 0.71, 0.7], [0.8, 0.81, 0.82], Beats("a", "b"), False, "not reproduced"),
        ([10, 11, 12], [40, 45, 47], Beats("a", "b", ratio=0.5), True, "reproduced"),
        ([30, 33, 36], [40, 45, 47], Beats("a", "b", ratio=0.5), True, "mixed"),
        ([40, 45, 47], [10, 11, 12], Beats("a", "b", ratio=0.5), True, "not reproduced"),
        ([0.9], [0.8], Beats("a", "b"), False, "mixed"),
        ([math.nan, 0.9], [0.8, 0.8], Beats("a", "b"), False, "not reproduced"),
        ([math.inf, 1.0], [2.0, 2.0], Beats("a", "b", ratio=0.5), True, "not reproduced"),
        ([1.0, 1.0], [0.0, 2.0], Beats("a", "b", ratio=0.5), True, "not reproduced"),
    ],
)
def test_rule(ours, theirs, rule, lower, verdict):
    assert rule.judge({"a": ours, "b": theirs}, lower).verdict == verdict


def test_several_rules():
    assert claims.overall(["reproduced", "reproduced"]) == "reproduced"
    assert claims.overall(["reproduced", "not reproduced"]) == "mixed"
    assert claims.overall(["not reproduced"]) == "not reproduced"


def test_interval_is_student_t():
    mean, low, high = claims.interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    half = 4.302653 * 1.527525 / math.sqrt(3)  # t(0.975, 2), standard deviation of the three
    assert (high - low) / 2 == pytest.approx(half, rel=1e-5)


def test_measures():
    rows = [{"round": k, "bytes_up": 10 * k, "bytes_down": 5 * k, "global": {"accuracy": a}} for k, a in
            enumerate((0.1, 0.5, 0.8, 0.7), start=1)]  # fmt: skip
    assert FirstReach(0.5)(rows, 9) == 2
    assert FirstReach(0.6, unit="bytes")(rows, 9) == 45
    assert FirstReach(0.95)(rows, 9) == 9
    assert Final("global.accuracy", last=2)(rows, 9) == pytest.approx(0.75)
    assert math.isnan(Final("personal.accuracy")(rows, 9))


def test_names_with_dots():
    row = {"round": 3, "rate0.25": {"accuracy": 0.5}, "a": {"b": {"c": 1.0}, "b.c": 2.0}, "global": {"accuracy": 0.7}}
    assert claims.look_up(row, "rate0.25.accuracy") == 0.5
    assert claims.look_up(row, "global.accuracy") == 0.7
    assert claims.look_up(row, "a.b.c") == 2.0
    assert claims.look_up(row, "round") == 3
    for path in ("rate0.5.accuracy", "rate0.25.loss", "round.accuracy", "rate0"):
        assert claims.look_up(row, path) is None
    assert Final("rate0.25.accuracy")([row], 9) == 0.5


def test_tuning_sees_no_test_data():
    federation = setting(0, False).federation
    blind = claims.without_test(federation)
    assert blind.test is None
    for i in federation.ids:
        mine, seen = federation.local(i), blind.local(i)
        assert torch.equal(mine.x, seen.x)
        assert torch.equal(mine.val.x, seen.test.x)
        assert len(seen.val) == 0


def test_tuning_sees_no_test_data_on_another_device():
    blind = claims.without_test(setting(0, False).federation)
    moved = blind.to("cpu", torch.float64)
    for i in blind.ids:
        assert torch.equal(moved.local(i).test.x, blind.local(i).test.x.double())
        assert len(moved.local(i).val) == 0


def test_tuning_needs_validation_samples():
    federation = fl.Federation.from_arrays(torch.randn(20, 3), torch.arange(20) % 2, clients=2)
    with pytest.raises(fl.FedloomError, match="val="):
        claims.without_test(federation)


def test_run_tunes_judges_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(claims.files, "folder", lambda: tmp_path)
    result = claims.run(make())
    assert not list(tmp_path.iterdir())
    many, few = result.content["arms"]["many"], result.content["arms"]["few"]
    assert many["chosen"] == few["chosen"] == {"solver.lr": 0.1}
    assert [t["point"]["solver.lr"] for t in many["tuning"]] == [1e-6, 0.1]
    assert [r["data_sha256"] for r in many["runs"]] == [r["data_sha256"] for r in few["runs"]]
    assert len(many["runs"][0]["curve"]["global.loss"]) == 4
    assert result.content["comparisons"][0]["effects"] == [b - a for a, b in zip(many["figures"], few["figures"])]
    assert result.verdict in ("reproduced", "mixed", "not reproduced")
    assert {"commit", "dirty", "versions", "wall_seconds", "seeds", "rules"} <= set(result.content)


def test_a_claim_that_is_run_again_computes_in_the_ways_its_result_chose(monkeypatch):
    def measuring(seed, quick):
        usual = setting(seed, quick)
        return Setting(usual.task, usual.federation, usual.rounds, {"engine": "auto", "workers": 1})

    claim = make(setting=measuring, grid={}, seeds=1)
    first = claims.run(claim).content["arms"]
    (label,) = first["many"]["choices"]
    told = {"many": {"choices": {label: "plain: as it was"}}}
    monkeypatch.setattr(claims.running, "load", lambda name: claim)
    monkeypatch.setattr(claims.running, "results", lambda: {"fedavg": {"arms": told}})
    again = claims.run("fedavg").content["arms"]
    assert again["many"]["choices"] == told["many"]["choices"]
    assert again["few"]["choices"].keys() == first["few"]["choices"].keys() != set()
    assert claims.run("fedavg", afresh=True).content["arms"]["many"]["choices"] != told["many"]["choices"]


def test_all_runs_of_an_arm_compute_in_the_ways_the_first_one_chose(monkeypatch):
    given = []
    went = claims.running.Run

    def noting(experiment):
        given.append(dict(experiment.choices))
        made = went(experiment)
        monkeypatch.setattr(made.host.engine, "choices", lambda: {"a kind": f"plain: run {len(given)}"} | given[-1])
        return made

    monkeypatch.setattr(claims.running, "Run", noting)
    arms = claims.run(make()).content["arms"]
    assert given == [{}, *[{"a kind": "plain: run 1"}] * 3, {}, *[{"a kind": "plain: run 5"}] * 3]
    assert arms["few"]["choices"] == {"a kind": "plain: run 5"}


def test_a_seed_that_ran_away_is_judged_too():
    result = claims.run(make(measure=Final("no.such"), rule=Beats("few", "many"), seeds=2, grid={}))
    assert result.verdict == "not reproduced"
    assert all(math.isnan(arm["mean"]) and math.isnan(arm["std"]) for arm in result.content["arms"].values())


def test_quick_gives_no_verdict():
    result = claims.run(make(), quick=True)
    assert "quick" in result.verdict
    assert result.content["arms"]["many"]["tuning"] == []


def test_budget_cuts_every_arm_at_the_same_cost():
    one = 2 * 4 * 558 * 4  # bytes of a round: both ways, 4 clients, 64*8+8+8*4+4 numbers of 4 bytes, with room below
    result = claims.run(
        make(
            arms={"many": fl.FedAvg(cohort=4), "few": Arm(fl.FedAvg(cohort=2), rounds=50)},
            budget=("bytes", 3.5 * one),
            measure=Final("global.loss", lower=True),
            grid={},
            seeds=1,
        )
    )
    rounds = {name: a["runs"][0]["rounds"] for name, a in result.content["arms"].items()}
    assert rounds["few"] == 2 * rounds["many"] + 1 or rounds["few"] == 2 * rounds["many"]
    for arm in result.content["arms"].values():
        curve = arm["runs"][0]["curve"]
        assert curve["bytes_up"][-1] + curve["bytes_down"][-1] <= 3.5 * one


def test_saving(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.setattr(claims.files, "folder", lambda: tmp_path)
    result = claims.run(make())
    path = claims.save(claims.Result("mine", result.content))
    assert path == tmp_path / "results" / "mine.json"
    assert difference(claims.results()["mine"], json.loads(json.dumps(result.content))) == ""
    assert max(map(len, path.read_text().splitlines())) > 50  # a curve's figures are on one line
    assert f"**{result.verdict}**" in (tmp_path / "optimisation.md").read_text()
    assert "![mine](curves/mine.svg)" in (tmp_path / "optimisation.md").read_text()
    assert "| [optimisation](optimisation.md) |" in (tmp_path / "README.md").read_text()
    assert "global.loss" in (tmp_path / "curves" / "mine.svg").read_text()
    assert claims.outdated("mine")  # this folder has no history
    path.unlink()
    assert claims.outdated("mine") == "not run yet"
    claims.write()
    assert not list((tmp_path / "curves").iterdir())


def curve(**figures):
    return {"figure": 0.0, "curve": {"round": [1, 2, 3], **figures}}


def drawn(measure, budget=None, **arms):
    given = {"claim": "a holds", "measure": measure, "budget": budget}
    return claims.plot({**given, "arms": {arm: {"runs": runs} for arm, runs in arms.items()}})


def title(picture):
    return re.search(r">([^<]*): mean and range", picture)[1]


def test_curves_show_what_is_measured():
    some = {"global.accuracy": [0.1, None, 0.3], "global.loss": [3.0, 2.0, 1.0]}
    assert title(drawn("mean global.loss of the last 3", a=[curve(**some)], b=[curve(**some)])) == "global.loss"
    assert title(drawn("something else", a=[curve(**some)])) == "global.accuracy"
    own = {"personal.mean": [0.1, 0.2, 0.3], "global.mean": [0.1, 0.1, 0.1]}
    both = drawn("mean accuracy over clients on their own test data", a=[curve(**own)], b=[curve(**{**own, **some})])
    assert title(both) == "personal.mean"
    mixed = drawn("mean accuracy on their own test data", a=[curve(**own)], b=[curve(**{"global.mean": [0.1] * 3})])
    assert title(mixed) == "personal.mean, global.mean"
    assert drawn("seconds of a round", a=[curve(**{"seconds.compute": [1, 1, 1]})]) == ""
    assert drawn("mean global.loss", a=[curve(**some)], b=[curve()]) == ""


def test_curves_run_along_what_arms_have_equal():
    some = {"global.loss": [3.0, 2.0, 1.0], "time": [5.0, 10.0, 15.0], "bytes_up": [1, 2, 3], "bytes_down": [9, 18, 27]}
    for budget, axis, end in (
        (None, "round", "3"),
        (["time", 20], "virtual time (s)", "15"),
        (["bytes", 9], "all", "30"),
    ):
        picture = drawn("mean global.loss", budget, a=[curve(**some)])
        assert f"{axis}</text>" in picture
        assert f">{end}</text>" in picture


def test_a_line_is_the_mean_and_its_band_the_range():
    runs = [curve(**{"global.loss": [0.0, 2.0, 2.0]}), curve(**{"global.loss": [0.0, 4.0, 2.0]})]
    picture = drawn("mean global.loss", a=runs)
    line = re.search(r'<polyline points="([^"]*)"', picture)[1].split()
    band = re.search(r'<polygon points="([^"]*)"', picture)[1].split()
    height = {float(p.split(",")[1]) for p in (*line, *band)}
    low, top = max(height), min(height)  # 0 and 4: y grows downwards
    assert [float(p.split(",")[1]) for p in line] == [low, pytest.approx((low + top * 3) / 4), (low + top) / 2]
    assert len(band) == 2 * len(line)
    one = drawn("mean global.loss", a=runs[:1])
    assert "<polygon" not in one
    assert one == drawn("mean global.loss", a=runs[:1])


def test_a_claim_is_outdated_when_its_method_has_changed(monkeypatch, tmp_path):
    asked = []

    def git(*words):
        asked.append(words)
        return "src/fedloom/methods/optimisation/scaffold.py"

    monkeypatch.setattr(claims.files, "_git", git)
    assert claims.outdated("scaffold") == "changed since: scaffold.py"
    (words,) = asked
    assert words[:2] == ("diff", "--name-only")
    names = {word.rpartition("/")[2] for word in words}
    assert {"scaffold.py", "fedavg.py"} <= names
    monkeypatch.setattr(claims.files, "_git", lambda *words: "")
    assert claims.outdated("scaffold") == ""


def test_a_claim_is_outdated_when_settings_it_shares_have_changed(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(claims.files, "_git", lambda *words: asked.extend(words) or "")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "shared.json").write_text('{"commit": "c", "arms": {"a": {"method": "fedavg"}}}')
    (tmp_path / "shared.py").write_text("from __future__ import annotations\n\nfrom _presence import setting\n")
    (tmp_path / "_presence.py").write_text("import _images\n")
    (tmp_path / "_images.py").write_text("import _presence\n")
    (tmp_path / "_other.py").write_text("")
    monkeypatch.setattr(claims.files, "folder", lambda: tmp_path)
    claims.outdated("shared")
    names = [word.rpartition("/")[2] for word in asked]
    assert [n for n in names if n in ("shared.py", "_presence.py", "_images.py", "_other.py")] == [
        "shared.py",
        "_presence.py",
        "_images.py",
    ]


@pytest.mark.parametrize(
    ("line", "dirty"),
    [
        (" M benchmarks/claims/results/fedavg.json", False),
        ("?? benchmarks/claims/curves/fedavg.svg", False),
        (" M benchmarks/claims/optimisation.md", False),
        (" M benchmarks/claims/fedavg.py", True),
        (" M benchmarks/claims/_settings.py", True),
        (" M src/fedloom/vector.py", True),
    ],
)
def test_a_result_says_whether_its_claim_was_committed(monkeypatch, line, dirty):
    monkeypatch.setattr(claims.files, "_git", lambda *words: line if words[0] == "status" else "abc")
    assert claims.files.commit() == {"commit": "abc", "dirty": dirty}


def test_mistakes_are_named():
    with pytest.raises(fl.FedloomError, match="unknown arm 'mny'"):
        make(rule=Beats("mny", "few"))
    with pytest.raises(fl.FedloomError, match="equal budget"):
        make(measure=FirstReach(0.5, unit="bytes"))
    with pytest.raises(fl.FedloomError, match="unknown claim 'fedavgg'"):
        claims.load("fedavgg")


def test_committed_claims_load_and_match_their_methods():
    known = fl.catalogue()
    for name in claims.available():
        claim = claims.load(name)
        assert claim.method in known
        assert claim.statement
    for name, result in claims.results().items():
        assert name in claims.available()
        assert result["verdict"] in ("reproduced", "mixed", "not reproduced")


def test_the_command_runs_what_is_out_of_date(monkeypatch, tmp_path, capsys):
    result = claims.run(make(seeds=1, grid={}))
    ran = []

    def run(name, *options):
        ran.append(name)
        return claims.Result(name, result.content)

    monkeypatch.setattr(claims.files, "folder", lambda: tmp_path)
    monkeypatch.setattr(claims, "folder", lambda: tmp_path)
    monkeypatch.setattr(claims.files, "available", lambda family=None: dict.fromkeys(("new", "old"), tmp_path))
    monkeypatch.setattr(claims, "available", claims.files.available)
    monkeypatch.setattr(claims, "outdated", lambda name: "" if name in ("new", *ran) else "changed since: fedavg.py")
    monkeypatch.setattr(claims, "run", run)
    checking.claims()
    assert ran == []
    assert "changed since: fedavg.py" in capsys.readouterr().out
    checking.claims(run=True)
    assert ran == ["old"]
    assert "changed since" not in capsys.readouterr().out
    assert (tmp_path / "results" / "old.json").exists()
    assert "Not run yet: new." in (tmp_path / "README.md").read_text()


def test_pages_and_curves_are_current():
    made, folder = claims.pages(), claims.folder()
    there = [*folder.glob("*.md"), *(folder / "curves").iterdir()]
    assert {str(p.relative_to(folder)): p.read_text() for p in there} == made, "run fedloom claims"
    assert sum(map(len, made.values())) < 2_000_000
