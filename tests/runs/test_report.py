"""The report: right numbers, whole without a network, and no run can break the page."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fedloom as fl
from fedloom.errors import ConfigError, FedloomWarning
from fedloom.runs import Recipe
from fedloom.runs.figures import DARK, LIGHT, curves, distribution, ramp
from fedloom.runs.record import Group, Record, grouped
from fedloom.runs.report import as_groups, in_bytes, in_seconds, render, shown, table_columns, write_report


def rows(accuracy: list[float], clients: dict[str, float] | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "round": r,
            "time": 2.0 * r,
            "wall": 0.5 * r,
            "bytes_up": 100 * r,
            "bytes_down": 300 * r,
            "notes": {"x": 1.0},
            "global": {"accuracy": a, "loss": 1 - a},
        }
        for r, a in enumerate(accuracy, 1)
    ]
    if clients:
        found[-1]["local"] = {
            "accuracy": 0.5,
            "mean": 0.6,
            "worst10": 0.1,
            "clients": {i: {"accuracy": a} for i, a in clients.items()},
        }
    return found


def record(method: str, accuracy: list[float], seed: int = 0, **more: Any) -> Record:
    config = f'method = "{method}"\nrounds = {len(accuracy)}\nseed = {seed}\n'
    summary = {"method": method, "rounds": len(accuracy), "seed": seed, "data": "digits", "clients": 4}
    return Record(summary | more, rows(accuracy, {"0": 0.2, "1": 1.0}), config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    Recipe(method="fedavg", clients=5, rounds=3, limit=200, engine="sequential", seed=3).experiment(out=out).run()
    return out


def test_a_line_is_the_mean_of_seeds_within_its_band():
    group = Group("a", [record("a", [0.2, 0.4], 0), record("a", [0.4, 0.8], 1)])
    assert group.curve("global", "accuracy", "bytes") == [
        (400, pytest.approx(0.3), 0.2, 0.4),
        (800, pytest.approx(0.6), 0.4, 0.8),
    ]
    assert group.final()["global.accuracy"] == (pytest.approx(0.6), pytest.approx(0.4 / 2**0.5))
    band, line = curves([group], "time").data
    assert line.x == (2.0, 4.0)
    assert tuple(line.y) == pytest.approx((0.3, 0.6))
    assert band.y == (0.4, 0.8, 0.4, 0.2)


def test_a_seed_that_ran_away_is_shown():
    away = record("a", [math.nan], 1)
    final = Group("a", [record("a", [0.5], 0), away]).final()
    assert math.isnan(final["global.accuracy"].mean)
    assert math.isnan(final["global.accuracy"].std or 0.0)
    assert final["bytes_up"] == (100, 0)
    assert "nan" in render([Group("a", [record("a", [0.5], 0), away]), Group("b", [record("b", [0.4])])])


def test_runs_that_are_not_equally_long_say_so():
    killed = Group("a", [record("a", [0.2, 0.4, 0.5], 0), record("a", [0.4], 1)])
    whole = Group("b", [record("b", [0.2, 0.4, 0.5], 0), record("b", [0.3, 0.4, 0.5], 1)])
    said = "Not all runs are equally long, and each counts as it ended: a after 3, 1; b after 3 rounds."
    assert said in render([killed, whole])
    assert "equally long" not in render([whole])
    assert "equally long" not in render([whole, Group("c", [record("c", [0.1, 0.1, 0.2])])])


def test_runs_that_differ_in_their_seed_alone_are_one_group():
    groups = grouped([record("a", [0.1], 0), record("b", [0.2], 0), record("a", [0.3], 1)])
    assert [(g.label, len(g.records)) for g in groups] == [("a", 2), ("b", 1)]
    groups = grouped([record("a", [0.1]), record("a", [0.1, 0.2])])
    assert [g.label for g in groups] == ["a rounds=1", "a rounds=2"]


def test_a_seed_that_comes_twice_is_counted_once_by_its_longest_run():
    def run(accuracy: list[float], seed: int) -> Record:
        made = record("a", accuracy, seed)
        return Record(made.summary, made.rows, f'method = "a"\nrounds = 2\nseed = {seed}\n')

    with pytest.warns(FedloomWarning, match="1 of 3 runs repeat"):
        (group,) = grouped([run([0.2], 0), run([0.2, 0.4], 0), run([0.6, 0.8], 1)])
    assert [len(r.rows) for r in group.records] == [2, 2]
    assert group.final()["global.accuracy"].mean == pytest.approx(0.6)


def test_seeds_of_real_runs_find_each_other(tmp_path: Path):
    for seed in (0, 1):
        for lr in ("0.1", "0.2"):
            recipe = Recipe(method="fedavg", clients=5, rounds=1, limit=200, seed=seed, set={"solver.lr": lr})
            recipe.experiment(out=tmp_path / f"{lr}-{seed}").run()
    (tmp_path / "report.html").write_text("not a run")
    groups = as_groups([tmp_path])
    assert [(g.label, len(g.records)) for g in groups] == [("fedavg solver.lr=0.1", 2), ("fedavg solver.lr=0.2", 2)]


async def doubled(client: fl.Client, honest: Any, **payload: Any) -> Any:
    return await honest(client, **payload)


DECIDED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "another rate": {"method": fl.FedAvg(solver=fl.SGD(lr=0.2))},
    "around another method": {"method": fl.Selected(inner=fl.FedAvg(cohort=2, weight="uniform"))},
    "around a third": {"method": fl.Selected(inner=fl.FedDyn(cohort=2))},
    "another partition": {"partition": "dirichlet:0.5"},
    "a channel": {"channel": fl.TopK(share=0.5)},
    "a world": {"world": fl.World(deadline=9.0)},
    "a device for each": {"world": fl.World(devices=[fl.Device(speed=1e9)] * 4)},
    "an adversary": {"behave": {1: doubled}},
    "whoever fails": {"on_failure": "exclude"},
}


def made_of_objects(out: Path | None = None, seed: int = 0, **given: Any) -> fl.Run:
    given = {"method": fl.FedAvg(), "partition": "iid", **given}
    federation = fl.federate("digits", 4, given.pop("partition"), seed=seed, limit=120)
    task = fl.Classification(model="softmax")
    return fl.run(task=task, federation=federation, rounds=1, seed=seed, engine="sequential", out=out, **given)


def test_runs_made_of_objects_are_one_group_where_they_differ_in_their_seed_alone(tmp_path: Path):
    for place, given in DECIDED.items():
        made_of_objects(tmp_path / place, **given)
    made_of_objects(tmp_path / "another seed", seed=1)
    groups = as_groups([tmp_path])
    found = {tuple(sorted(r.place.name for r in g.records if r.place)) for g in groups}
    assert found == {("another seed", "as it is"), *((place,) for place in DECIDED if place != "as it is")}
    assert len({g.label for g in groups}) == len(groups)


def test_networks_made_by_functions_of_ones_own_do_not_keep_seeds_apart():
    federation = fl.federate("digits", 4, "iid", limit=120)
    tasks = [fl.Classification(model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))) for _ in range(2)]
    assert repr(tasks[0]) != repr(tasks[1]), "as in another process"
    runs = [fl.run(fl.FedAvg(), task, federation, rounds=0, seed=seed) for seed, task in enumerate(tasks)]
    assert [len(group.records) for group in as_groups(runs)] == [2]


def test_in_memory_a_run_says_the_same_of_itself_as_in_its_folder(tmp_path: Path):
    run = made_of_objects(tmp_path, **DECIDED["a channel"])
    assert Record.read(tmp_path).config.startswith(Record.of(run).config)
    assert Record.of(run).settings["channel"] == ["topk:0.5"]
    assert Record.of(run).settings["set"]["solver.lr"] == 0.1
    assert len(grouped([Record.of(run), Record.of(made_of_objects())])) == 2


def test_the_table_shows_headline_clients_bytes_and_seconds():
    group = Group("a", [record("a", [0.25, 0.5])])
    columns = table_columns([group])
    cells = {c.title: shown(c, group.final()) for c in columns}
    assert cells == {
        "accuracy": "50.0 %", "client mean": "60.0 %", "worst 10 %": "10.0 %", "sent up": "200 B",
        "sent down": "600 B", "virtual time": "4 s", "wall time": "1 s",
    }  # fmt: skip


def test_clients_are_drawn_from_the_worst_to_the_best():
    fig = distribution([Group("a", [record("a", [0.5])])], "local")
    assert fig is not None
    assert fig.data[0].y == (0.2, 1.0, 1.0), "a step for each client, the last as wide as the first"
    assert fig.data[0].x == (0, 0.5, 1)
    assert distribution([Group("a", [record("a", [0.5])])], "personal") is None


@pytest.mark.parametrize(("figure", "drawn"), [("accuracy", [0.1, 0.5, 0.9]), ("rmse", [0.9, 0.5, 0.1])])
def test_a_client_without_a_number_is_the_worst(figure: str, drawn: list[float]):
    told = record("a", [0.5])
    told.rows[-1]["local"]["clients"] = {str(i): {figure: v} for i, v in enumerate([0.9, math.nan, 0.1, 0.5])}
    fig = distribution([Group("a", [told])], "local")
    assert fig is not None
    assert math.isnan(fig.data[0].y[0])
    assert list(fig.data[0].y[1:-1]) == drawn


def test_where_less_is_better_the_worst_client_is_the_one_with_most():
    told = record("a", [0.5])
    told.rows[-1]["local"]["clients"] = {"0": {"rmse": 1.0}, "1": {"rmse": 3.0}}
    fig = distribution([Group("a", [told])], "local")
    assert fig is not None
    assert fig.data[0].y == (3.0, 1.0, 1.0)


def test_a_choice_that_was_timed_anew_for_every_seed_is_noted_once():
    timed = [record("a", [0.5], seed, choices={"mlp": f"stacked: {speed}x as fast as one by one"}, excluded=seed)
             for seed, speed in enumerate((2.1, 17))]  # fmt: skip
    page = render([Group("a", timed)])
    assert page.count("as fast as one by one") == 1
    assert "2.1x as fast" in page
    assert "1 reply excluded" in page


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([0.50, 0.52], [0.51, 0.53], "within the spread"),
        ([0.50, 0.52], [0.90, 0.92], "more than the spread"),
        ([0.50], [0.90], "cannot tell from chance"),
    ],
)
def test_the_first_sentence_claims_no_more_than_the_runs_show(first, second, said):
    groups = [
        Group(name, [record(name, [a], k) for k, a in enumerate(values)])
        for name, values in (("a", first), ("b", second))
    ]
    assert said in render(groups)


@pytest.mark.parametrize("names", ["abc", "bca", "cab"])
def test_a_run_that_ran_away_is_neither_first_nor_keeps_the_best_from_being_marked(names: str):
    ends = {"a": math.nan, "b": 0.5, "c": 0.9}
    page = render([Group(name, [record(name, [ends[name]])]) for name in names])
    assert "c ends at 90.0 % accuracy, 40.0 points from b." in page
    assert "a ends without a number." in page
    assert re.findall(r'<td class="best">(.*?)</td>', page) == ["90.0 %"]


def test_runs_that_all_ran_away_are_not_ranked():
    page = render([Group(name, [record(name, [math.nan])]) for name in "ab"])
    assert "a ends without a number. b ends without a number.</p>" in page
    assert 'class="best"' not in page


def test_the_page_is_whole_and_asks_no_network(folder: Path, tmp_path: Path):
    page = write_report([folder], tmp_path / "deep" / "report.html").read_text()
    own = page[: page.index("<script>")] + page[page.rindex("<script>") :]
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert page.count("<script>") == 2
    assert "prefers-color-scheme: dark" in own
    for words in ("Over the run", "Over the clients", "The data", "Configuration", "To repeat it"):
        assert f"<h2>{words}</h2>" in own
    assert "fedloom run fedavg --clients 5" in own
    assert "--seed 3" in own
    drawings = json.loads(re.search(r"const drawings = (\{.*?\}), themes = ", own, re.S)[1])  # type: ignore[index]
    assert {"curve/global.accuracy/round", "curve/global.accuracy/bytes", "clients/local", "data"} <= set(drawings)


def test_a_view_only_some_have_is_drawn_in_its_own_unit():
    own = record("b", [0.5])
    own = Record(own.summary, [{**own.rows[0], "personal": {"accuracy": 0.9, "mean": 0.8}}], own.config)
    fig = curves([Group("a", [record("a", [0.5])]), Group("b", [own])], view="personal")
    assert [line.name for line in fig.data] == ["b"]
    assert fig.layout.yaxis.tickformat == ".0%"


def test_remarks_say_what_was_chosen_spent_left_out_and_best():
    told = record(
        "a", [0.5], choices={"mlp": "stacked: 2x"}, excluded=3,
        privacy={"noise:1": {"epsilon": 1.234, "delta": 1e-5, "neighbours": "add one"}},
        best={"by": "validation accuracy", "round": 1, "global.accuracy": 0.5},
    )  # fmt: skip
    assert told.remarks() == [
        "mlp: stacked: 2x", "noise:1: epsilon 1.23 at delta 1e-05, add one", "3 replies excluded",
        "best by validation accuracy: round 1, global.accuracy 0.500",
    ]  # fmt: skip
    assert told.final()["epsilon"] == 1.234


def test_names_cannot_break_out_of_the_page():
    nasty = "</script><script>alert(1)</script>"
    page = render([Group(nasty, [record(nasty, [0.5])]), Group("b", [record("b", [0.4])])])
    assert nasty not in page


def test_a_line_cut_off_by_a_kill_is_left_out(folder: Path, tmp_path: Path):
    place = tmp_path / "cut"
    place.mkdir()
    text = (folder / "metrics.jsonl").read_text()
    (place / "metrics.jsonl").write_text(text + '{"round": 4, "ti')
    assert len(Record.read(place).rows) == 3
    (place / "metrics.jsonl").write_text('{"round": 1, "ti\n' + text)
    with pytest.raises(ConfigError, match="line 1"):
        Record.read(place)


def test_a_run_without_evaluation_still_has_a_page():
    bare = Record({"method": "a"}, [{"round": 1, "time": 0.0, "bytes_up": 0, "bytes_down": 0, "notes": {}}])
    assert "<h1>a</h1>" in render([Group("a", [bare])])
    with pytest.raises(ConfigError, match="at least one run"):
        write_report([], Path("never.html"))


def test_a_report_into_a_folder_is_called_report(tmp_path: Path):
    assert made_of_objects().report(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_a_run_in_memory_reports_and_plots(tmp_path: Path):
    run = Recipe(method="fedavg", clients=5, rounds=2, limit=200, engine="sequential").experiment().run()
    assert run.report(tmp_path / "r.html").exists()
    assert len(run.plot().data) == 1


@pytest.mark.parametrize("given", [{"rounds": 0}, {"rounds": 1, "evaluate_every": 0}])
def test_a_run_without_figures_says_that_it_has_no_curve(given: dict[str, int], tmp_path: Path):
    federation = fl.federate("digits", 4, "iid", limit=120)
    run = fl.run(fl.FedAvg(), fl.Classification(model="softmax"), federation, engine="sequential", **given)
    with pytest.raises(ConfigError, match=r"nothing was evaluated in this run .*so there is no curve"):
        run.plot()
    assert "<h1>fedavg on digits</h1>" in run.report(tmp_path / "r.html").read_text()


def test_numbers_read_well():
    assert [in_bytes(n) for n in (0, 999, 1000, 123_456, 5e9)] == ["0 B", "999 B", "1.0 kB", "123 kB", "5.0 GB"]
    assert [in_seconds(s) for s in (0.123, 12, 179.9, 7199.9)] == ["0.12 s", "12 s", "3 min 0 s", "2 h 0 min"]


def test_colours_stand_out_from_their_ground():
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(c, "#ffffff") for c in LIGHT) > 3
    assert min(contrast(c, "#1c1e22") for c in DARK) > 3
    lightness = [luminance(ramp(i / 10)) for i in range(11)]
    assert lightness == sorted(lightness)
