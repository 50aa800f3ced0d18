"""Running a claim: tune on validation data, run every seed within the budget, judge."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import torch

from fedloom.data import Federation, Local
from fedloom.errors import ConfigError
from fedloom.method import Method
from fedloom.runs import Experiment, Run
from fedloom.runs.describe import versions
from fedloom.runs.options import configure, written
from fedloom.runs.record import spread

from .claim import Arm, Claim, Result, Setting
from .files import commit, load, results
from .measures import Row, spent
from .verdict import overall

TUNING_SEED = 1000
"""Data and draws of the tuning runs; never one of the seeds that are judged."""


def run(
    name: str | Claim,
    seeds: int | None = None,
    quick: bool = False,
    afresh: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Tune, run and judge; nothing is written (see `save`).

    An arm computes in the ways its first run chose, or those of the result on file: chosen anew by time they would
    move last bits, and through tuning now and then a verdict.

    Args:
        name: a claim's file name without `.py`, or a `Claim`.
        seeds: how many are judged; default the claim's own. An interval needs two.
        quick: the claim's tiny setting with one seed and no tuning, to see that it runs.
        afresh: measure anew which way of computing is the fastest, whatever the result on file chose.
        say: hears of progress.
    """
    claim = load(name) if isinstance(name, str) else name
    count = 1 if quick else seeds or claim.seeds
    began = time.monotonic()
    before = {} if quick or afresh or not isinstance(name, str) else results().get(name, {}).get("arms", {})
    arms: dict[str, dict[str, Any]] = {}
    for arm_name, given in claim.arms.items():
        arm = given if isinstance(given, Arm) else Arm(given)
        choices = dict(before.get(arm_name, {}).get("choices", {}))
        chosen, tried = ({}, []) if quick else _tuned(claim, arm_name, arm, choices, say)
        tuned = Arm(_with(arm.method, chosen), **arm.options)
        outcomes = []
        for seed in range(count):
            outcomes.append(_judged(claim, tuned, claim.setting(seed, quick), seed, choices))
            say(f"{arm_name} seed {seed}: {outcomes[-1]['figure']:.4g}")
        figures = [o["figure"] for o in outcomes]
        arms[arm_name] = {
            "method": arm.method.card.id,
            "hyperparameters": _words(tuned.method),
            "options": {k: repr(v) for k, v in arm.options.items()},
            "choices": choices,
            "chosen": chosen,
            "tuning": tried,
            "figures": figures,
            "mean": statistics.fmean(figures),
            "std": spread(figures).std or 0.0,
            "runs": outcomes,
        }
    figures = {n: a["figures"] for n, a in arms.items()}
    comparisons = [r.judge(figures, claim.measure.lower) for r in claim.rules]
    return Result(
        name if isinstance(name, str) else claim.method,
        {
            "claim": claim.statement,
            "method": claim.method,
            "verdict": "not judged (quick)" if quick else overall([c.verdict for c in comparisons]),
            "measure": str(claim.measure),
            "rules": [str(r) for r in claim.rules],
            "comparisons": [asdict(c) for c in comparisons],
            "budget": claim.budget,
            "grid": {k: list(v) for k, v in claim.grid.items()},
            "tuned_on": f"clients' validation samples, seed {TUNING_SEED}",
            "seeds": list(range(count)),
            "notes": claim.notes,
            "arms": arms,
            "wall_seconds": round(time.monotonic() - began, 1),
            "versions": versions(),
            "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            **commit(),
        },
    )


class _Enough(Exception):
    """The budget is spent."""


def _judged(
    claim: Claim, arm: Arm, setting: Setting, seed: int, choices: dict[str, str], brief: bool = False
) -> dict[str, Any]:
    """One run of one arm, cut at the budget (`brief`: or where the figure is known): its figure and its curve. It
    repeats `choices`, and adds to them."""
    rows: list[Row] = []
    unit, limit = claim.budget or ("round", math.inf)

    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] == "round":
            if spent(event["row"], unit) > limit:
                raise _Enough
            rows.append(event["row"])
            if brief and claim.measure.known(event["row"]):
                raise _Enough

    options = {"rounds": setting.rounds, **setting.options, **arm.options, "seed": seed, "observers": (listen,)}
    judged = Run(Experiment(arm.method, setting.task, setting.federation, choices=choices, **options))
    with contextlib.suppress(_Enough):
        judged.go()
    choices.update(judged.choices)
    budget = limit if math.isfinite(limit) else float(judged.experiment.rounds)  # never reached: the whole of it
    return {
        "seed": seed,
        "figure": claim.measure(rows, budget),
        "curve": _columns([_point(r) for r in rows]),
        "data": setting.federation.name,
        "data_sha256": setting.federation.sha256,
        "clients": len(setting.federation),
        "rounds": len(rows),
    }


def _tuned(
    claim: Claim, name: str, arm: Arm, choices: dict[str, str], say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best point of the grid on validation data, and all that were tried."""
    known = _options(arm.method)
    grid = {k: values for k, values in claim.grid.items() if k in known}
    if not grid:
        return {}, []
    setting = claim.setting(TUNING_SEED, False)
    blind = Setting(setting.task, without_test(setting.federation), setting.rounds, setting.options)
    tried = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values))
        trial = Arm(_with(arm.method, point), **arm.options)
        outcome = _judged(claim, trial, blind, TUNING_SEED, choices, brief=True)
        tried.append({"point": point, "figure": outcome["figure"], "last": _headline(outcome["curve"])})
        say(f"{name} {point}: {outcome['figure']:.4g} on validation")
    sign = -1 if claim.measure.lower else 1

    def merit(t: dict[str, Any]) -> tuple[float, float]:
        return (sign * t["figure"] if math.isfinite(t["figure"]) else -math.inf, t["last"])

    return max(tried, key=merit)["point"], tried


def without_test(federation: Federation) -> Federation:
    """The same clients with their validation samples in the place of their test samples, and no common test set.

    A run over it cannot see test data, whatever it evaluates.

    Raises:
        ConfigError: no client has validation samples.
    """
    if not federation.val:
        raise ConfigError("tuning needs validation samples at the clients: build the federation with val=0.1")
    blind = copy.copy(federation)
    blind.__class__ = _Blind
    blind.__dict__.pop("sha256", None)
    blind.test = None
    return blind


class _Blind(Federation):
    def local(self, id: int) -> Local:
        table, start, _ = self.population.rows(self._known(id))
        seen = super().local(id)
        return Local(table, start, len(seen), 0, len(seen.val))


def _options(method: Method) -> set[str]:
    return set(written(method))


def _with(method: Method, point: Mapping[str, Any]) -> Method:
    return configure(type(method), {**written(method), **point}) if point else method


def _words(method: Method) -> dict[str, Any]:
    return written(method) if is_dataclass(method) else {}


def _point(row: Row) -> dict[str, float]:
    """One row of a curve: costs, and every figure of every view."""
    out = {k: row[k] for k in ("round", "time", "bytes_up", "bytes_down", "bytes_peers") if k in row}
    for view, figures in row.items():
        if isinstance(figures, Mapping) and view not in ("notes", "exclusions", "validation"):
            out.update({f"{view}.{k}": round(v, 6) for k, v in figures.items() if isinstance(v, float)})
    return out


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """A curve by figure, a value per round, None where it was not evaluated; what stayed zero is left out."""
    names = dict.fromkeys(k for row in rows for k in row)
    columns = {k: [row.get(k) for row in rows] for k in names}
    return {k: values for k, values in columns.items() if any(values)}


def _headline(curve: Mapping[str, Sequence[float | None]]) -> float:
    """The last accuracy there is (or minus the last loss), to break ties between grid points."""
    for ending, sign in ((".accuracy", 1), (".loss", -1)):
        for name, values in curve.items():
            known = [v for v in values if v is not None and math.isfinite(v)]
            if name.endswith(ending) and known:
                return sign * known[-1]
    return -math.inf
