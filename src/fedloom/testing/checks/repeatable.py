"""The same run on any engine, in any order, from any moment."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedloom.engines.base import Engine, Job, Outcome
from fedloom.engines.fold import Fold, Total
from fedloom.runs import Run
from fedloom.testing.compare import difference, outcome
from fedloom.testing.trial import Trial

from .suite import check, equal, lasting, require


def _engine(name: str) -> Callable[[Trial], None]:
    def body(trial: Trial) -> None:
        run = trial.run(engine=name, workers=2 if name == "pool" else None)
        tolerance = trial.example.stacked_tolerance
        for part in ("state", "memories", "books", "ledger", "now"):
            found = difference(outcome(run)[part], outcome(trial.reference)[part], tolerance, part)
            require(not found, f"{name} and sequential: {found}")

    body.__name__ = name
    body.__doc__ = f"The {name} engine gives the sequential engine's run to 1e-9 in float64."
    return body


for _name in ("stacked", "pool", "debug"):
    check()(_engine(_name))


@check()
def float32(trial: Trial) -> None:
    """In float32, stacked and sequential agree to 1e-5 after one round."""
    a, b = (trial.run(engine=e, dtype=torch.float32, rounds=1) for e in ("stacked", "sequential"))
    equal(lasting(a), lasting(b), "stacked and sequential in float32", 1e-5)


class _Backwards:
    """An engine that runs the jobs it is given last to first."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner

    def run(self, jobs: list[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        outcomes, total = self._inner.run(list(reversed(jobs)), fold)
        return list(reversed(outcomes)), total

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@check()
def order(trial: Trial) -> None:
    """The order in which an engine runs clients does not matter."""
    run = Run(trial.experiment())
    run.host.engine = _Backwards(run.host.engine)  # type: ignore[assignment]
    run.go()
    equal(lasting(run), lasting(trial.reference), "clients run last to first", trial.example.stacked_tolerance)


@check()
def seed(trial: Trial) -> None:
    """The same seed gives the same run bit for bit, another seed another one."""
    equal(lasting(trial.run()), lasting(trial.reference), "two runs of one seed")
    other = trial.run(seed=1)
    require(difference(lasting(other), lasting(trial.reference)), "seeds 0 and 1 gave the same result")


@check()
def keyed_randomness(trial: Trial) -> None:
    """Draws are keyed: global random states neither matter nor move."""
    before = _global_states()
    try:
        torch.manual_seed(11)
        random.seed(11)
        np.random.seed(11)
        seeded = _global_states()
        run = trial.run()
        moved = [name for name, state in _global_states().items() if difference(state, seeded[name])]
    finally:
        torch.set_rng_state(before["torch"])
        random.setstate(before["random"])
        np.random.set_state(before["numpy"])
    equal(lasting(run), lasting(trial.reference), "a run under other global seeds")
    require(not moved, f"the run drew from global randomness of {', '.join(moved)}; use client.rng or clients.rng")


def _global_states() -> dict[str, Any]:
    numpy: Any = np.random.get_state()
    plain = tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in numpy)
    return {"torch": torch.get_rng_state(), "random": random.getstate(), "numpy": plain}


@check()
def resume(trial: Trial) -> None:
    """Killed in any round and resumed, a run ends bit for bit as if it had not been."""
    for r in range(1, trial.example.rounds + 1):
        equal(outcome(trial.killed_after(r)), outcome(trial.reference), f"killed in round {r} and resumed")
