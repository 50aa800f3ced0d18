"""Who is there, as a law, and who is lost in mid-job."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import fedloom as fl
from fedloom.errors import ConfigError, DataError
from fedloom.testing import Trial
from fedloom.timing.availability import All, Availability, Churn, Diurnal, Markov, Moment, Trace

IDS = np.arange(20_000)


def there(availability, round=0, time=0.0, ids=IDS, seed=0):
    found = availability.here(ids, Moment(round, time), seed)
    return np.ones(len(ids), bool) if found is None else found


@pytest.mark.parametrize(
    "text",
    [
        "always",
        "bernoulli:chance=0.5",
        "markov:stay=0.8",
        "diurnal:low=0.1+churn:crash=0.001",
        "diurnal",
        "bernoulli:chance=0.9|bernoulli:chance=0.1+churn:crash=0.001|always",
    ],
)
def test_texts_and_back(text):
    assert str(Availability.parse(text)) == text


def test_by_position_as_on_the_command_line():
    assert Availability.parse("markov:0.9,0.5") == Markov(stay=0.9, back=0.5)
    assert Availability.parse("diurnal:0.1,0.9 + churn:stay=1e4") == All((Diurnal(0.1, 0.9), Churn(stay=1e4)))


@pytest.mark.parametrize("text", ["markov:0.9,stay=0.5", "markov:back=0.5,0.8", "churn:crash=1,crash=1"])
def test_a_value_is_said_once(text):
    with pytest.raises(ConfigError, match="twice"):
        Availability.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("markov:0.3,0.6", "bernoulli:0", "diurnal:0.9,0.1", "churn:crash=-1", "trace:x.csv,-5", "trace:x.csv,inf"),
        *("markov:step=inf", "diurnal:slot=inf", "diurnal:day=inf", "churn:join=inf", "churn:crash=inf"),
    ],
)
def test_what_cannot_be(text):
    with pytest.raises(ConfigError, match="cannot be"):
        Availability.parse(text)


def test_bernoulli_is_the_plain_world():
    plain, named = fl.World(present=0.6, seed=4), fl.World(availability="bernoulli:0.6", seed=4)
    assert list(plain.here(range(500), 3)) == list(named.here(range(500), 3)) != list(range(500))


def test_one_client_after_the_other():
    """Each is there as it would be if all were of its kind."""
    often, rarely = Availability.parse("bernoulli:0.9"), Availability.parse("markov:0.3,0.1")
    both = Availability.parse("bernoulli:0.9|markov:0.3,0.1|always")
    for k in (0, 3):
        seen = there(both, round=k)
        assert np.array_equal(seen[::3], there(often, round=k)[::3])
        assert np.array_equal(seen[1::3], there(rarely, round=k)[1::3])
        assert seen[2::3].all()
    some = np.array([7, 2, 9])
    assert np.array_equal(there(both, ids=some), there(both)[some])
    assert not both.loses
    mortal = Availability.parse("always|churn:crash=1e-3")
    assert mortal.loses
    assert mortal.lost(0, (0, 0, 0), 5.0, 0) == math.inf
    assert 5.0 < mortal.lost(1, (1, 0, 0), 5.0, 0) < math.inf


# ---------------------------------------------------------------- Markov


def test_markov_chances_and_share():
    chain = Markov(stay=0.9, back=0.5)
    x = np.stack([there(chain, t) for t in range(12)])
    now, then = x[:-1].ravel(), x[1:].ravel()
    assert then[now].mean() == pytest.approx(0.9, abs=0.01)
    assert then[~now].mean() == pytest.approx(0.5, abs=0.01)
    assert x[0].mean() == pytest.approx(0.5 / 0.6, abs=0.01)


def test_markov_remembers_for_long():
    chain = Markov(stay=0.98, back=0.9)
    a, b = there(chain, 100), there(chain, 103)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(0.08**3, abs=0.03)
    chain = Markov(stay=0.99, back=0.05)
    a, b = there(chain, 100), there(chain, 110)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(0.94**10, abs=0.03)


def test_markov_together():
    """Pairs of one region correlate as told, pairs of two regions not at all; the law of each client is the same."""
    chain = Markov(stay=0.8, back=0.3, together=0.5, regions=4)
    ids = np.arange(400)
    x = np.stack([there(chain, 7 * t, ids=ids) for t in range(1500)]).astype(float)
    from fedloom.keyed import scattered

    region = (scattered(ids, 0, "region") * 4).astype(int)
    c = np.corrcoef(x.T)
    same = (region[:, None] == region[None]) & ~np.eye(400, dtype=bool)
    assert c[same].mean() == pytest.approx(0.5, abs=0.05)
    assert abs(c[region[:, None] != region[None]].mean()) < 0.05
    assert x.mean() == pytest.approx(0.6, abs=0.05)
    steps = np.stack([there(chain, t, ids=ids) for t in range(400)])
    now, then = steps[:-1].ravel(), steps[1:].ravel()
    assert then[now].mean() == pytest.approx(0.8, abs=0.03)


def test_markov_in_seconds():
    chain = Markov(stay=0.7, back=0.5, step=60.0)
    assert (there(chain, 0, 59.0) == there(chain, 9, 1.0)).all()
    assert (there(chain, 0, 59.0) != there(chain, 0, 61.0)).any()


# ---------------------------------------------------------------- the day


def test_diurnal_goes_up_and_down():
    day = Diurnal(low=0.2, high=0.8)
    shares = [there(day, time=3600.0 * h).mean() for h in range(24)]
    assert shares[0] == pytest.approx(0.2, abs=0.02)
    assert shares[12] == pytest.approx(0.8, abs=0.02)
    assert shares[6] == pytest.approx(0.5, abs=0.02)
    around = Diurnal(low=0.2, high=0.8, zones=1.0)
    assert {round(there(around, time=3600.0 * h).mean(), 1) for h in range(24)} == {0.5}


def test_a_server_waits_for_the_morning():
    world = fl.World(availability=Diurnal(low=0.0, high=1.0))
    run = Trial(fl.FedAvg).run(world=world, rounds=9, sizes=(4,) * 6)
    assert run.rows[0]["replies"] == 0
    assert run.rows[0]["time"] == 3600.0
    assert run.rows[-1]["replies"] > 0


# ---------------------------------------------------------------- traces


@pytest.fixture(params=["csv", "parquet"])
def trace(tmp_path, request):
    path = tmp_path / f"trace.{request.param}"
    table = pd.DataFrame({"client": [7, 7, 9, 11], "start": [5.0, 0.0, 2.0, 0.0], "end": [8.0, 1.0, 4.0, 10.0]})
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


def test_traces(trace):
    record = Availability.parse(f"trace:{trace}")
    ids = np.arange(6)  # three recorded clients, twice
    at = {t: there(record, time=t, ids=ids).astype(int).tolist() for t in (0.5, 3.0, 6.0, 9.0, 10.5)}
    assert at == {
        0.5: [1, 0, 1] * 2, 3.0: [0, 1, 1] * 2, 6.0: [1, 0, 1] * 2, 9.0: [0, 0, 1] * 2, 10.5: [1, 0, 1] * 2,
    }  # fmt: skip
    assert record.lost(0, (), 6.0, 0) == 8.0
    assert record.lost(4, (), 12.5, 0) == 14.0  # in the second period
    assert record.lost(2, (), 3.0, 0) == math.inf
    assert record.lost(0, (), 3.0, 0) == 3.0  # not there at all


def test_a_presence_over_the_seam(tmp_path):
    path = tmp_path / "t.csv"
    pd.DataFrame({"client": [0, 0], "start": [8.0, 0.0], "end": [10.0, 3.0]}).to_csv(path, index=False)
    assert Availability.parse(f"trace:{path}").lost(0, (), 9.0, 0) == 13.0


@pytest.mark.parametrize(
    ("times", "period", "until"),
    [
        ([(0, 4), (4, 6)], 9.0, 6.0),
        ([(0, 4), (4, 9)], 9.0, math.inf),
        ([(0, 1), (2, 12)], 9.0, 10.0),  # the record begins again before it has ended
        ([(2, 12)], 9.0, 9.0),
    ],
)
def test_nobody_is_lost_while_the_record_says_there(times, period, until, tmp_path):
    path = tmp_path / "t.csv"
    pd.DataFrame([(0, *time) for time in times], columns=["client", "start", "end"]).to_csv(path, index=False)
    record = Trace(str(path), period)
    assert record.lost(0, (), 3.0, 0) == until
    if until < math.inf:
        assert there(record, time=until - 0.1, ids=np.zeros(1, int)).all()
        assert not there(record, time=until, ids=np.zeros(1, int)).any()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (((0, 3, 2),), "ends before"),
        (((0, 0, 4), (0, 3, 5)), "overlap"),
        (((0, math.nan, 4),), "ends before"),
        ((), "empty"),
    ],
)
def test_traces_that_cannot_be(tmp_path, rows, said):
    path = tmp_path / "t.csv"
    pd.DataFrame(list(rows), columns=["client", "start", "end"]).to_csv(path, index=False)
    with pytest.raises(DataError, match=said):
        there(Availability.parse(f"trace:{path}"))


# ---------------------------------------------------------------- churn


def test_clients_come_and_leave():
    churn = Churn(join=100.0, stay=1000.0)
    assert there(churn, time=0.0).mean() == 0.0
    assert there(churn, time=100.0).mean() == pytest.approx((1 - math.exp(-1)), abs=0.08)
    assert there(churn, time=5000.0).mean() < 0.02
    leaves = np.array([churn.lost(i, (), 0.0, 0) for i in range(2000)])
    assert leaves.mean() == pytest.approx(1100.0, rel=0.1)
    assert not there(churn, time=float(leaves[3]) + 1e-6, ids=IDS[:2000])[3]


def test_crashes_are_the_jobs():
    crash = Churn(crash=0.1)
    times = np.array([crash.lost(0, (0, r, 0), 50.0, 0) for r in range(3000)]) - 50.0
    assert times.mean() == pytest.approx(10.0, rel=0.1)
    assert there(crash).all()


def test_a_lost_job_leaves_no_trace():
    """Client 3 crashes in every job: its memory stays as it was, the others count, and the round goes on at once."""
    import fedloom.timing.availability as module

    class Unlucky(module.Availability):
        def lost(self, id, key, began, seed):
            return began + 2.5 if id == 3 else math.inf

    trial = Trial(fl.Scaffold)
    from dataclasses import replace

    method = replace(trial.method, cohort=5, solver=fl.SGD(0.05, batch_size=1, steps=4))
    world = fl.World(step_seconds=1.0, availability=Unlucky())
    run = trial.run(method=method, sizes=(5,) * 5, world=world, rounds=2, per_client=True)
    assert sorted(run.memories) == [0, 1, 2, 4]
    assert run.rows[0]["excluded"] == 1
    assert next(iter(run.rows[0]["exclusions"])).startswith("lost")
    (lost,) = [job for job in run.rows[0]["jobs"] if job["fate"]]
    assert (lost["id"], lost["compute"]) == (3, 2.5)
    assert run.host.now == 8.0
    one = run.host.ledger.up // 8
    assert run.host.ledger.up == 8 * one  # four replies a round, and nothing of the lost ones
