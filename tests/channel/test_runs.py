"""The channel in real runs: bytes, memory, privacy in the summary, kill and resume."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedloom as fl
from fedloom.channel import DP, Channel, Clip, GaussianNoise, Quantize, TopK, epsilon
from fedloom.channel.stage import Exchange, Stage
from fedloom.errors import NotSupported

D = 4 * 3 + 3


@dataclass(frozen=True)
class Drawn(fl.FedAvg):  # type: ignore[misc,name-defined]
    """FedAvg with clients drawn each on its own (`chance`), asked `times` in a round."""

    chance: float = 0.0
    times: int = 1

    def round(self, state: Any, clients: fl.Clients) -> Any:
        cohort = clients.sample(self.chance or self.cohort)
        for _ in range(self.times):
            got = clients.mean(self.local, cohort, weight=1.0, params=state.params)
            if got.count:
                state = replace(state, params=state.params + got.delta)
        return state


def federation(dtype: torch.dtype = torch.float32, clients: int = 12) -> fl.Federation:  # type: ignore[name-defined]
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(clients * 10, 4))).to(dtype)
    return fl.Federation.from_arrays(x, (x[:, 0] > 0).long() + (x[:, 1] > 1), clients=clients)  # type: ignore[attr-defined]


def run(method: Any, channel: Any, rounds: int = 3, **options: Any) -> fl.Run:
    task = fl.Classification(model=lambda: nn.Linear(4, 3))
    options = {"engine": "sequential", "evaluate_every": 0, "seed": 3, **options}
    data = federation(options.get("dtype", torch.float32))
    return fl.run(method, task, data, rounds=rounds, channel=channel, **options)


def uniform(**options: Any) -> Any:
    return fl.FedAvg(cohort=6, weight="uniform", solver=fl.SGD(lr=0.1, batch_size=5), **options)


def drawn(**options: Any) -> Any:
    return Drawn(cohort=6, solver=fl.SGD(lr=0.1, batch_size=5), **options)


def params(r: fl.Run) -> torch.Tensor:
    return r.state.params


@pytest.mark.parametrize(
    ("channel", "size"),
    [
        (None, 4 * D),
        (TopK(0.2), 4 * 3 + 2),
        (Quantize(4), 8 + 4),
        ([TopK(0.2), Quantize(8)], 2 + 3 + 4),
        (["clip:1"], 4 * D),
    ],
)
def test_bytes_of_a_run(channel: Any, size: int) -> None:
    r = run(uniform(), channel)
    assert r.summary["bytes_up"] == 3 * 6 * size
    assert r.summary["bytes_down"] == 3 * 6 * 4 * D


def test_a_channel_that_changes_nothing() -> None:
    plain = params(run(uniform(), None))
    for channel in (TopK(1.0), Clip(1e6), [Clip(1e6), GaussianNoise(0.0)]):
        assert torch.equal(params(run(uniform(), channel)), plain)
    assert not torch.equal(params(run(uniform(), Clip(1e-3))), plain)


def test_error_feedback_lives_at_the_clients() -> None:
    r = run(uniform(), TopK(0.2))
    kept = [m for m in r.host.memories.values() if any("TopK" in name for name in m)]
    assert len(kept) >= 6
    assert not torch.equal(params(r), params(run(uniform(), TopK(0.2, feedback=False))))


def test_the_noise_is_what_was_asked_for() -> None:
    """With a tiny clipping norm the parameters move by noise alone: std z S / expected in every round."""
    task = fl.Classification(model=lambda: nn.Linear(4, 2000))  # 10,000 numbers
    start, end = (
        params(
            fl.run(
                uniform(), task, federation(), rounds=r, channel=DP(1e-4, 50.0), engine="sequential", evaluate_every=0
            )
        )
        for r in (0, 1)
    )
    assert float((end - start).std()) == pytest.approx(50 * 1e-4 / 6, rel=0.04)


def test_epsilon_in_the_summary_follows_the_draw() -> None:
    fixed = run(uniform(), DP(0.5, 2.0))
    assert fixed.host.spent == {"gaussian fixed q=0.5 z=2.0 use=1": 3.0}
    poisson = run(drawn(chance=0.5), DP(0.5, 2.0))
    assert poisson.host.spent == {"gaussian poisson q=0.5 z=2.0 use=1": 3.0}
    twice = run(drawn(chance=0.5, times=2), DP(0.5, 2.0))
    assert twice.host.spent == {f"gaussian poisson q=0.5 z=2.0 use={k}": 3.0 for k in (1, 2)}
    everybody = run(replace(uniform(), cohort=12), DP(0.5, 2.0))
    assert everybody.host.spent == {"gaussian all q=1.0 z=2.0 use=1": 3.0}
    for r in (fixed, poisson, twice, everybody):
        (figures,) = r.summary["privacy"].values()
        assert figures["epsilon"] == epsilon(r.host.spent, 1e-5) > 0


def test_the_mean_is_over_the_expected_cohort() -> None:
    seen: list[float] = []

    @dataclass(frozen=True)
    class Watching(Drawn):
        def round(self, state: Any, clients: fl.Clients) -> Any:
            got = clients.mean(self.local, clients.sample(0.5), weight=1.0, params=state.params)
            seen.extend([got.count, got.weight])
            return state

    run(Watching(), DP(0.5, 1.0), rounds=4)
    assert set(seen) == {6.0}


@pytest.mark.parametrize("over", [1.5, 3.0])
def test_of_more_than_were_wanted_the_mean_is_over_those_wanted(over: float) -> None:
    world = fl.World(over=over)
    without, noiseless = run(drawn(), None, world=world), run(drawn(), DP(math.inf, 0.0), world=world)
    torch.testing.assert_close(params(noiseless), params(without))
    (figures,) = run(drawn(), DP(0.5, 2.0), world=world).summary["privacy"].values()
    assert figures["neighbours"] == "replace one client"


def test_refused_before_any_work() -> None:
    with pytest.raises(NotSupported, match="weight=uniform"):
        run(replace(uniform(), weight="samples"), DP(1.0, 1.0))
    with pytest.raises(NotSupported, match="Clip before it"):
        run(uniform(), GaussianNoise(1.0))


def test_numbers_in_a_reply_must_be_declared() -> None:
    @dataclass(frozen=True)
    class Telling(fl.FedAvg):  # type: ignore[misc,name-defined]
        async def local(self, client: fl.Client, params: torch.Tensor) -> fl.Message:
            reply = await super().local(client, params)
            return reply.replace(loss=0.5)

    with pytest.raises(NotSupported, match="'loss'"):
        run(Telling(weight="uniform"), DP(1.0, 1.0))
    run(Telling(weight="uniform"), DP(1.0, 1.0, public=("loss",)), rounds=1)


CHANNELS = pytest.mark.parametrize("channel", [[TopK(0.2), Quantize(4)], DP(0.5, 1.0)], ids=["compressed", "private"])


@CHANNELS
@pytest.mark.parametrize("engine", ["debug", "stacked", "pool"])
def test_engines_agree(engine: str, channel: Any) -> None:
    one, other = (params(run(uniform(), channel, engine=e, dtype=torch.float64)) for e in ("sequential", engine))
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


@CHANNELS
def test_a_resumed_run_is_the_same_run(tmp_path: Path, channel: Any) -> None:
    """Error feedback and what was spent lie in the checkpoint."""
    whole = run(uniform(), channel, rounds=4)
    run(uniform(), channel, rounds=2, out=tmp_path, checkpoint_seconds=0)
    task = fl.Classification(model=lambda: nn.Linear(4, 3))
    again = fl.Experiment(
        uniform(), task, federation(), rounds=4, seed=3, engine="sequential", evaluate_every=0, channel=channel,
        out=tmp_path, checkpoint_seconds=0,
    ).run(resume=True)  # fmt: skip
    assert torch.equal(params(again), params(whole))
    assert again.host.spent == whole.host.spent
    assert again.host.ledger == whole.host.ledger


def test_texts_in_a_recipe() -> None:
    assert Channel.of(["topk:0.2", "dp:clip=1,noise=1"]) == Channel.of([TopK(0.2), *DP(1.0, 1.0)])
    recipe = fl.Recipe(method="fedavg", channel=("topk:0.2", "dp:clip=1,noise=1"))
    assert recipe.stages() == (TopK(0.2), *DP(1.0, 1.0))


@dataclass(frozen=True)
class Notes(Stage):
    """Adds to every sum how many replies it holds."""

    def settle(self, total: fl.Message, exchange: Exchange) -> fl.Message:
        return fl.Message(total, held=torch.tensor(exchange.count))


def test_a_stage_may_add_to_a_sum() -> None:
    assert torch.equal(params(run(uniform(), Notes())), params(run(uniform(), None)))
