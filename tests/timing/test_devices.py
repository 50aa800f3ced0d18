"""Who has which device, what a step costs, and what becomes of a job that does not fit."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch

import fedloom as fl
from fedloom.errors import ConfigError, DataError
from fedloom.testing import Trial
from fedloom.timing.devices import TIERS, AIBenchmark, Device, Devices, Explicit, Lognormal, Tiers, _phones
from fedloom.training.request import Schedule, Training
from fedloom.training.work import Counted

NEEDS_DATA = pytest.mark.skipif("FEDLOOM_DATA" not in os.environ, reason="needs the phones of FEDLOOM_DATA")


@pytest.mark.parametrize("text", ["ai-benchmark", "ai-benchmark:since=2018", "tiers:high=0.5,mid=0.25,low=0.25"])
def test_texts_and_back(text):
    assert str(Devices.parse(text)) == text
    assert Devices.parse("lognormal:0.7,2e9") == Lognormal(spread=0.7, speed=2e9)


@pytest.mark.parametrize(
    ("text", "said"), [("tier", "Did you mean"), ("lognormal:x", "a number"), ("tiers:a=1", "high=0.2")]
)
def test_texts_that_cannot_be(text, said):
    with pytest.raises(ConfigError, match=said):
        Devices.parse(text)


@pytest.mark.parametrize(
    "text", ["tiers:nan,0.5,0.3", "lognormal:-0.5", "lognormal:inf", "lognormal:speed=nan", "ai-benchmark:factor=0"]
)
def test_numbers_no_device_can_have(text):
    with pytest.raises(ConfigError, match="cannot be"):
        Devices.parse(text)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("step_seconds", (0.0, -1.0, math.nan, math.inf)),
        ("spread", (-0.1, math.nan, math.inf)),
        ("jitter", (-0.1, 1.0)),
        ("latency", (-0.1, math.inf)),
        ("up", (0.0,)),
        ("down", (0.0,)),
        ("present", (0.0, 1.1)),
        ("deadline", (0.0,)),
        ("over", (0.9, math.inf)),
        ("aggregation", (0.0,)),
    ],
)
def test_numbers_no_world_can_have(name, values):
    for value in values:
        with pytest.raises(ConfigError, match="cannot be: "):
            fl.World(**{name: value})


@pytest.mark.parametrize(
    "fields",
    [
        *({"step_seconds": math.inf}, {"step_seconds": 0.0}, {"speed": 0.0}, {"memory": 0.0}, {"energy": -1.0}),
        *({"speed": 1e9, "energy": math.inf}, {"energy": 1e-9}),
    ],
)
def test_numbers_no_device_of_one_s_own_can_have(fields):
    with pytest.raises(ConfigError, match="cannot be: "):
        Device(**fields)


def test_energy_of_a_step_needs_no_speed():
    assert Device(step_seconds=0.5, energy=3.0).watts == 6.0
    assert Device(speed=1e9, energy=4e-9).watts == pytest.approx(4.0)


def test_tiers_come_in_their_shares_and_stay():
    tiers = Tiers(high=0.2, mid=0.5, low=0.3)
    drawn = [tiers.of(i, 0).name for i in range(4000)]
    assert drawn == [tiers.of(i, 0).name for i in range(4000)]
    for name, share in (("high", 0.2), ("mid", 0.5), ("low", 0.3)):
        assert drawn.count(name) / 4000 == pytest.approx(share, abs=0.03)
    assert TIERS["high"].speed > TIERS["mid"].speed > TIERS["low"].speed
    assert [d.watts for d in TIERS.values()] == pytest.approx([4.0] * 3)


def test_lognormal_speeds():
    logs = torch.tensor([Lognormal(0.5, 1e9).of(i, 3).speed for i in range(3000)]).log()
    assert float(logs.median()) == pytest.approx(torch.tensor(1e9).log().item(), abs=0.04)
    assert float(logs.std()) == pytest.approx(0.5, abs=0.03)


@NEEDS_DATA
def test_phones_of_the_table():
    assert len(_phones(os.environ["FEDLOOM_DATA"], 0, 1.0)) == 333
    phones = {AIBenchmark().of(i, 0).name: AIBenchmark().of(i, 0) for i in range(5000)}
    assert len(phones) == 307  # every phone is somebody's; some go by one name
    pixel, old = phones["Google Pixel 4"], phones["Samsung Galaxy Star Pro"]
    assert (pixel.cores, pixel.memory, pixel.speed) == (8, 6e9, pytest.approx(2e10))
    assert (old.cores, old.memory) == (1, 0.5e9)
    assert pixel.speed / old.speed == pytest.approx(3212 / 105)
    speeds = sorted(p.speed for p in _phones(os.environ["FEDLOOM_DATA"], 0, 1.0))
    third = len(speeds) // 3
    for name, part in (("low", speeds[:third]), ("mid", speeds[third : 2 * third]), ("high", speeds[2 * third :])):
        assert TIERS[name].speed == pytest.approx(part[len(part) // 2], rel=0.05)


def test_without_the_table(monkeypatch):
    monkeypatch.delenv("FEDLOOM_DATA", raising=False)
    with pytest.raises(DataError, match="FEDLOOM_DATA"):
        AIBenchmark().of(0, 0)


def test_one_device_for_each():
    world = fl.World(devices={0: Device(speed=1.0), 1: Device(speed=2.0)})
    assert world.device(1).speed == 2.0
    with pytest.raises(ConfigError, match="client 2"):
        world.device(2)
    assert fl.World(devices=[Device(speed=1.0), Device(speed=2.0)]).devices.of(3, 0).speed == 2.0
    assert isinstance(world.devices, Explicit)


# ---------------------------------------------------------------- what a step costs


def request(model, x, y, steps=3, batch=4, **options):
    schedule = Schedule.epochs(len(x), batch, steps, torch.Generator().manual_seed(0))
    return Training(0, model, model.initial(), fl.SGD(0.1), steps, {"": fl.Data(x=x, y=y)}, {"": schedule}, **options)


def linear(inputs=6, outputs=3):
    net = torch.nn.Linear(inputs, outputs)
    return fl.Model(net, fl.Classification(net), example=(torch.zeros(1, inputs),))


def twice(w, f, k, carry, extras):
    return f.grad(w - 0.1 * f.grad(w)), carry


def test_flops_of_a_linear_layer():
    """Forward 2 * b * i * o; backward as much for the weight's gradient, none for the input's."""
    x, y = torch.randn(10, 6), torch.randint(3, (10,))
    counted = Counted()
    work = counted.training(request(linear(), x, y))  # batches of 4, 4, 2
    assert work.steps == 3
    assert work.flops == 2 * (2 * (4 + 4 + 2) * 6 * 3)
    assert len(counted._known) == 2  # a batch of 4, a batch of 2
    again = counted.training(request(linear(), x, y, steps=30))
    assert again.flops == 10 * work.flops
    assert work.memory >= 2 * 21 * 4  # weights and gradient


def test_a_hook_that_takes_two_gradients_costs_twice():
    x, y, model = torch.randn(8, 6), torch.randint(3, (8,)), linear()
    one, two = (Counted().training(request(model, x, y, steps=2, step=step)).flops for step in (None, twice))
    assert two == 2 * one


def test_counting_draws_nothing():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    Counted().training(request(linear(), torch.randn(4, 6), torch.randint(3, (4,))))
    torch.manual_seed(5)
    assert torch.equal(before, torch.random.get_rng_state())


# ---------------------------------------------------------------- in a run


def test_time_and_energy_follow_from_flops():
    sizes = (8, 8, 8)
    fast, slow = Device(speed=2e6, energy=1e-9), Device(speed=1e6, energy=2e-9)
    run = Trial(fl.FedAvg).run(sizes=sizes, rounds=1, world=fl.World(devices=[fast, slow]), per_client=True)
    jobs = {job["id"]: job for job in run.rows[0]["jobs"]}
    ids = sorted(jobs)
    per = {i: jobs[i]["compute"] * (2e6 if i % 2 == 0 else 1e6) for i in ids}
    assert len({round(f) for f in per.values()}) == 1  # equal data: equal FLOPs
    assert run.host.now == pytest.approx(max(j["compute"] for j in jobs.values()))
    for i in ids:
        assert jobs[i]["energy"] == pytest.approx(per[i] * (1e-9 if i % 2 == 0 else 2e-9))


def test_the_simple_world_counts_no_flops():
    run = Trial(fl.FedAvg).run(rounds=1, world=fl.World(step_seconds=1.0))
    assert run.plan.counted._known == {}


def test_a_device_that_is_too_small_is_left_out():
    world = fl.World(devices={i: Device(speed=1e9, memory=10.0 if i == 1 else 1e9) for i in range(6)})
    method = replace(Trial(fl.FedAvg).method, cohort=6)
    run = Trial(fl.FedAvg).run(method=method, rounds=2, world=world)
    (reason,) = run.rows[0]["exclusions"]
    assert reason.startswith("out of memory")
    assert run.rows[1]["excluded"] == 1


def test_queries_take_time_too():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Looks(fl.FedAvg):
        async def local(self, client, params, **rest):
            await client.predict(params)
            return await super().local(client, params, **rest)

    world = fl.World(devices=[Device(speed=1e6)])
    took = []
    for cls in (fl.FedAvg, Looks):
        method = cls(**{f: getattr(Trial(fl.FedAvg).method, f) for f in ("cohort", "solver")})
        took.append(Trial(fl.FedAvg).run(method=method, rounds=1, world=world).host.now)
    assert took[1] > took[0]


def test_queries_take_no_time_where_a_device_says_only_what_a_step_takes():
    world = fl.World(devices=[Device(step_seconds=0.5), Device(speed=1e9)])
    assert (world.computes(0, 2e9), world.computes(1, 2e9), world.computes(1, 0.0)) == (0.0, 2.0, 0.0)


def test_on_the_command_line_and_back():
    from fedloom.runs import Recipe

    told = Recipe(
        method="fedavg", devices="tiers", network="wifi:spread=0.5", availability="diurnal", deadline=9.0, over=1.5
    )
    line = told.complete().command()
    for words in (
        "--devices tiers",
        "--network wifi:spread=0.5",
        "--availability diurnal",
        "--deadline 9.0",
        "--over 1.5",
    ):
        assert words in line
    assert "--world" not in line
    assert Recipe.from_toml(told.complete().to_toml()).world_object() == told.world_object()
    with pytest.raises(ConfigError, match="given both --network"):
        Recipe(method="fedavg", network="wifi", world={"network": "4g"}).world_object()
