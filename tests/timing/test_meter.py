"""Where the time of a round went, who took part, and the picture of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import fedloom as fl
from fedloom.runs.figures import timeline
from fedloom.runs.record import Record
from fedloom.runs.report import write_report
from fedloom.testing import Trial
from fedloom.timing.meter import PHASES, Meter, Span

SIZES = (7, 1, 4, 10)  # training samples 5, 1, 2, 6
SOLVER = fl.SGD(0.05, batch_size=1)


def fedavg(rounds=2, **world):
    method = replace(Trial(fl.FedAvg).method, cohort=4, solver=SOLVER)
    return Trial(fl.FedAvg).run(
        method=method, sizes=SIZES, rounds=rounds, world=fl.World(step_seconds=1.0, **world), per_client=True
    )


def test_phases_add_up_to_the_round():
    d = fedavg().plan.model.layout.size
    run = fedavg(up=8 * d / 2.0, down=8 * d, latency=0.25, aggregation=8 * d / 0.1)
    longest = 1.25 + 6 + 2.25
    assert run.rows[0]["time"] == pytest.approx(longest + 0.4, rel=1e-4)
    for job, steps in zip(sorted(run.rows[0]["jobs"], key=lambda j: j["id"]), (5, 1, 2, 6)):
        assert [job[p] for p in PHASES] == pytest.approx([1.25, steps, 2.25, 6 - steps, 0.4], rel=1e-4)
    seconds = run.rows[0]["seconds"]
    assert list(seconds.values()) == pytest.approx([5.0, 14.0, 9.0, 10.0, 1.6], rel=1e-4)
    assert sum(seconds.values()) == pytest.approx(4 * run.rows[0]["time"])


def test_the_same_through_the_clock():
    """A deadline nobody misses takes the other path, and writes down the same."""
    plain, timed = (fedavg(up=4e4, down=8e4, latency=0.25, aggregation=1e5, deadline=d) for d in (float("inf"), 1e6))
    for a, b in zip(plain.rows, timed.rows):
        assert list(a["seconds"].values()) == pytest.approx(list(b["seconds"].values()))
        assert a["time"] == pytest.approx(b["time"])


def test_summary_of_a_run():
    run = fedavg(rounds=3)
    time = run.summary["time"]
    assert time["seconds"]["compute"] == pytest.approx(3 * 14.0)
    assert time["idle"] == pytest.approx(10 / 24)
    assert time["staleness"] == {"0": 12}
    assert run.summary["participation"] == 1.0
    json.dumps(run.summary)


def test_replies_that_counted_are_counted_by_client():
    meter = Meter()
    fates = [(3, ""), (3, ""), (1, ""), (1, "late"), (2, "lost")]
    meter.add(Span(id, 0.0, 0.0, 1.0, 0.0, fate=fate) for id, fate in fates)
    assert meter.took_part == {3: 2, 1: 1}


def test_staleness_of_an_asynchronous_run():
    trial = Trial(fl.FedBuff)
    run = trial.run(rounds=6)
    stale = run.summary["time"]["staleness"]
    assert sum(stale.values()) == 6 * trial.method.buffer
    assert any(int(k) > 0 for k in stale)
    assert 0 < run.summary["participation"] <= 1


def test_single_jobs_only_where_asked_for():
    run = Trial(fl.FedAvg).run(rounds=1)
    assert "jobs" not in run.rows[0]
    assert "seconds" in run.rows[0]
    assert timeline(Record.of(run)) is None


def test_jain():
    meter = Meter()
    assert meter.fairness(4) is None
    meter.add([Span(0, 0.0, 0, 1, 0)])
    assert meter.fairness(4) == 0.25
    meter.add([Span(k, 0.0, 0, 1, 0) for k in (1, 2, 3)])
    assert meter.fairness(4) == 1.0
    meter.add([Span(0, 0.0, 0, 1, 0, fate="late")])
    assert meter.fairness(4) == 1.0


def test_jain_of_clients_that_take_part_unlike_often():
    meter = Meter()
    meter.add([Span(id, 0.0, 0, 1, 0) for id in (0, 0, 1)])
    assert meter.fairness(4) == pytest.approx((2 + 1) ** 2 / (4 * (2**2 + 1**2)))


def test_energy_of_each_round():
    run = fedavg(devices=[fl.Device(step_seconds=1.0, energy=3.0)])  # joules per step; 14 steps a round
    assert [row["energy"] for row in run.rows] == pytest.approx([42.0, 42.0])
    assert run.summary["time"]["energy"] == pytest.approx(84.0)
    assert "energy" not in fedavg(rounds=1).rows[0]


def test_levels_reached():
    from fedloom.runs.describe import reached

    rows = [
        {"round": k, "time": 2.0 * k, "wall": 0.1, "bytes_up": 5 * k, "bytes_down": k, "bytes_peers": 0,
         "global": {"accuracy": a}}
        for k, a in enumerate((0.1, 0.55, 0.52, 0.72), 1)
    ]  # fmt: skip
    found = reached(rows, "accuracy")
    assert {k: v["round"] for k, v in found.items()} == {"0.5": 2, "0.6": 4, "0.7": 4}
    assert found["0.6"] == {"round": 4, "time": 8.0, "wall": 0.1, "bytes": 24}


def test_the_picture(tmp_path):
    run = fedavg(deadline=5.5, rounds=3)
    fig = timeline(Record.of(run))
    assert fig is not None
    names = {trace.name for trace in fig.data}
    assert {"compute", "wait", "lost"} <= names
    (compute,) = [t for t in fig.data if t.name == "compute"]
    assert sorted(compute.x)[:3] == [1.0, 1.0, 1.0]
    page = write_report([run], tmp_path / "r.html").read_text()
    assert "Where the time went" in page
    assert "Who worked, waited, was lost" in page


def test_a_picture_that_can_be_read():
    """Of many clients and rounds, thirty and a window."""
    jobs = [
        {"id": i, "sent": 0.0, "download": 0.1, "compute": 1.0, "upload": 0.1, "wait": 0.5, "fate": ""}
        for i in range(100)
    ]
    rows = [{"round": r, "time": float(r), "jobs": [{**j, "sent": r - 1.0} for j in jobs]} for r in range(1, 50)]
    fig = timeline(Record(summary={}, rows=rows))
    assert fig is not None
    clients = {y for trace in fig.data for y in trace.y}
    assert len(clients) == 30
    assert max(x for trace in fig.data for x in trace.base) < 12
