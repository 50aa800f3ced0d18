"""Claims: a paper's central direction as a small experiment with a rule that was written before it was run.

A claim is a file `benchmarks/claims/<name>.py` with one `claim = Claim(...)`. All its arms see the same data, seeds,
budget and tuning grid; step sizes are chosen on validation data, in runs that cannot see the test data; the rule is
applied to the test figures of the remaining seeds, paired by seed. `fedloom claim <name>` writes the result.

    claim = Claim(
        method="scaffold",
        statement="reaches 70 % in fewer rounds than FedAvg when labels are skewed",
        setting=setting,                                         # (seed, quick) -> Setting: task, data, rounds
        arms={"scaffold": Scaffold(cohort=10), "fedavg": FedAvg(cohort=10)},
        grid={"solver.lr": (0.03, 0.1, 0.3)},
        measure=FirstReach(0.7),
        rule=Beats("scaffold", "fedavg", ratio=0.9),
    )
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from .data import Federation, Local
from .errors import ConfigError, unknown
from .method import Method, catalogue
from .runs import Experiment
from .runs.describe import versions
from .runs.options import configure, written
from .task import Task

Row = Mapping[str, Any]
Verdict = str
"""reproduced, mixed, or not reproduced."""

TUNING_SEED = 1000
"""Data and draws of the tuning runs; never one of the seeds that are judged."""


# ---------------------------------------------------------------- what a claim says


@dataclass(frozen=True)
class Setting:
    """What all arms share for one seed.

    Args:
        task, federation: clients need validation samples (`val > 0`) where there is a grid.
        rounds: server steps, unless the budget ends a run before.
        options: further arguments of `Experiment` (world, evaluate_every, ...).
    """

    task: Task
    federation: Federation
    rounds: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A method with options of its own: `Arm(FedAvg(), channel="topk:0.01")`, `Arm(FedBuff(), rounds=400)`."""

    method: Method
    options: Mapping[str, Any]

    def __init__(self, method: Method, **options: Any) -> None:
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "options", options)


class Measure(Protocol):
    """One figure of a run from its log rows (already cut at the budget)."""

    lower: bool
    """Whether less is better."""

    def __call__(self, rows: Sequence[Row], budget: float) -> float: ...

    def known(self, row: Row) -> bool:
        """Whether later rows cannot change the figure; tuning runs end there."""
        ...


@dataclass(frozen=True)
class Final:
    """Mean of a metric over the last rows: `Final("global.accuracy")`. The best row would be a choice on test data."""

    metric: str = "global.accuracy"
    last: int = 3
    lower: bool = False

    def __call__(self, rows: Sequence[Row], budget: float) -> float:
        values = [v for r in rows if (v := look_up(r, self.metric)) is not None]
        return statistics.fmean(values[-self.last :]) if values else math.nan

    def known(self, row: Row) -> bool:
        return False

    def __str__(self) -> str:
        return f"mean {self.metric} of the last {self.last} evaluations"


@dataclass(frozen=True)
class FirstReach:
    """When a metric first reaches a target, in rounds, seconds or bytes; the whole budget where it never does."""

    target: float
    metric: str = "global.accuracy"
    unit: str = "round"
    lower: bool = True

    def __call__(self, rows: Sequence[Row], budget: float) -> float:
        return next((spent(r, self.unit) for r in rows if self.known(r)), budget)

    def known(self, row: Row) -> bool:
        value = look_up(row, self.metric)
        return value is not None and value >= self.target

    def __str__(self) -> str:
        return f"{self.unit}s until {self.metric} >= {self.target} (the whole budget if never)"


@dataclass(frozen=True)
class Comparison:
    """One arm against another over paired seeds: per-seed effects (positive: better), mean, 95 % interval, verdict."""

    arm: str
    than: str
    effects: list[float]
    mean: float
    low: float
    high: float
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Beats:
    """`arm` is better than `than`, by at least `by` (difference) or with at most `ratio` times its figure.

    Reproduced: the mean effect over seeds is at least what is claimed and its 95 % interval excludes no effect.
    Not reproduced: the mean effect is zero or in the other direction. Mixed: anything between.

    Args:
        by: a difference in the measure's own unit, >= 0.
        ratio: claimed `arm / than` where less is better (0.5: half the rounds); compared on a log scale.
    """

    arm: str
    than: str
    by: float = 0.0
    ratio: float | None = None

    def judge(self, figures: Mapping[str, Sequence[float]], lower: bool) -> Comparison:
        """Apply the rule to the figures per arm, one per seed in the same order."""
        pairs = list(zip(figures[self.arm], figures[self.than]))
        if self.ratio is None:
            effects = [(b - a) if lower else (a - b) for a, b in pairs]
            least = self.by
        else:
            effects = [math.log(b / a) if lower else math.log(a / b) for a, b in pairs]
            least = -math.log(self.ratio) if lower else math.log(self.ratio)
        mean, low, high = interval(effects)
        if not math.isfinite(mean) or mean <= 0:
            verdict = "not reproduced"
        else:
            verdict = "reproduced" if mean >= least and low > 0 else "mixed"
        if self.ratio is None:
            text = f"{self.arm} better than {self.than} by {mean:.4g} [{low:.4g}, {high:.4g}]"
        else:
            sign = -1 if lower else 1
            r = [math.exp(sign * e) for e in (mean, low, high)]
            text = f"{self.arm} / {self.than} = {r[0]:.3g} [{min(r[1:]):.3g}, {max(r[1:]):.3g}]"
        return Comparison(self.arm, self.than, effects, mean, low, high, verdict, text)

    def __str__(self) -> str:
        claimed = f"at most {self.ratio:g} times" if self.ratio is not None else f"better by at least {self.by:g} than"
        return (
            f"{self.arm} is {claimed} {self.than}. Reproduced: the mean over paired seeds is, and its 95 % interval "
            f"excludes no effect; not reproduced: no effect or the other way; mixed: between"
        )


@dataclass(frozen=True)
class Claim:
    """An experiment with its verdict's rule.

    Args:
        method: the id whose card makes the claim.
        statement: the direction that is tested, one sentence.
        setting: `setting(seed, quick) -> Setting`: what all arms share; `quick` may be tiny.
        arms: name -> method or `Arm`.
        measure: the figure of a run.
        rule: one `Beats` or several (reproduced when all are, not reproduced when none is more than that).
        grid: dotted option -> values, tried for every arm that has the option, chosen on validation data.
        budget: unit ("round", "time", "bytes") and amount equal for all arms; None: the setting's rounds.
        seeds: how many are judged; with 3 the interval is twice as wide as with 5.
        notes: differences from the paper's experiment, for the reader.
    """

    method: str
    statement: str
    setting: Callable[[int, bool], Setting]
    arms: Mapping[str, Method | Arm]
    measure: Measure
    rule: Beats | tuple[Beats, ...]
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    budget: tuple[str, float] | None = None
    seeds: int = 5
    notes: str = ""

    def __post_init__(self) -> None:
        for rule in self.rules:
            for name in (rule.arm, rule.than):
                if name not in self.arms:
                    raise unknown("arm", name, self.arms)
        unit = self.budget[0] if self.budget else "round"
        if unit not in _UNITS:
            raise unknown("unit of a budget", unit, _UNITS)
        measured = getattr(self.measure, "unit", unit)
        if measured != unit:
            raise ConfigError(
                f"measured in {measured}s, so arms must have an equal budget of that: budget=({measured!r}, ...)"
            )

    @property
    def rules(self) -> tuple[Beats, ...]:
        return self.rule if isinstance(self.rule, tuple) else (self.rule,)


@dataclass(frozen=True)
class Result:
    """What a claim came to; `content` is what is written as JSON."""

    name: str
    content: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        return self.content["verdict"]

    @property
    def lines(self) -> list[str]:
        """The verdict's reasons, for a terminal."""
        arms = [f"{n}: {a['mean']:.4g} +- {a['std']:.2g}  {a['chosen'] or ''}" for n, a in self.content["arms"].items()]
        return [f"measured: {self.content['measure']}", *arms, *(c["text"] for c in self.content["comparisons"])]


# ---------------------------------------------------------------- running one


def run(
    name: str | Claim, seeds: int | None = None, quick: bool = False, say: Callable[[str], None] = lambda text: None
) -> Result:
    """Tune, run and judge; nothing is written (see `save`).

    Args:
        name: a claim's file name without `.py`, or a `Claim`.
        seeds: how many are judged; default the claim's own. An interval needs two.
        quick: the claim's tiny setting with one seed and no tuning, to see that it runs.
        say: hears of progress.
    """
    claim = load(name) if isinstance(name, str) else name
    count = 1 if quick else seeds or claim.seeds
    began = time.monotonic()
    arms: dict[str, dict[str, Any]] = {}
    for arm_name, given in claim.arms.items():
        arm = given if isinstance(given, Arm) else Arm(given)
        chosen, tried = ({}, []) if quick else _tuned(claim, arm_name, arm, say)
        tuned = Arm(_with(arm.method, chosen), **arm.options)
        outcomes = []
        for seed in range(count):
            outcomes.append(_judged(claim, tuned, claim.setting(seed, quick), seed))
            say(f"{arm_name} seed {seed}: {outcomes[-1]['figure']:.4g}")
        figures = [o["figure"] for o in outcomes]
        arms[arm_name] = {
            "method": arm.method.card.id,
            "hyperparameters": _words(tuned.method),
            "options": {k: repr(v) for k, v in arm.options.items()},
            "chosen": chosen,
            "tuning": tried,
            "figures": figures,
            "mean": statistics.fmean(figures),
            "std": statistics.stdev(figures) if count > 1 else 0.0,
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
            **_commit(),
        },
    )


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """All reproduced, none better than not reproduced, or mixed."""
    kinds = set(verdicts)
    return kinds.pop() if len(kinds) == 1 else "mixed"


class _Enough(Exception):
    """The budget is spent."""


def _judged(claim: Claim, arm: Arm, setting: Setting, seed: int, brief: bool = False) -> dict[str, Any]:
    """One run of one arm, cut at the budget (`brief`: or where the figure is known): its figure and its curve."""
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
    experiment = Experiment(arm.method, setting.task, setting.federation, **options)
    with contextlib.suppress(_Enough):
        experiment.run()
    budget = limit if math.isfinite(limit) else float(experiment.rounds)  # never reached: the whole of it
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
    claim: Claim, name: str, arm: Arm, say: Callable[[str], None]
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
        outcome = _judged(claim, Arm(_with(arm.method, point), **arm.options), blind, TUNING_SEED, brief=True)
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


# ---------------------------------------------------------------- figures

_UNITS = ("round", "time", "bytes")


def spent(row: Row, unit: str) -> float:
    """What a run had used by then: rounds, virtual seconds, or bytes of all links."""
    if unit == "bytes":
        return float(row["bytes_up"] + row["bytes_down"] + row.get("bytes_peers", 0))
    return float(row[unit])


def look_up(row: Row, path: str) -> float | None:
    """`look_up(row, "global.accuracy")`; None in rows that were not evaluated."""
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return float(value)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval; infinitely wide for one value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2 or not math.isfinite(mean):
        return mean, -math.inf, math.inf
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


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


# ---------------------------------------------------------------- files


def folder() -> Path:
    """`benchmarks/claims` of the repository this package is installed from, or of the current directory.

    Raises:
        ConfigError: neither is a checkout.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "benchmarks" / "claims").is_dir():
            return root / "benchmarks" / "claims"
    raise ConfigError("claims are part of the repository, not of the installed package: clone it, and run there")


def available(family: str | None = None) -> dict[str, Path]:
    """Claims by name; only those of methods of a family where one is given."""
    found = {p.stem: p for p in sorted(folder().glob("*.py")) if not p.stem.startswith("_")}
    if family is None:
        return found
    families = {cls.card.family for cls in catalogue().values()}
    if family not in families:
        raise unknown("family", family, families)
    return {n: p for n, p in found.items() if catalogue()[load(n).method].card.family == family}


def load(name: str) -> Claim:
    """The claim in `benchmarks/claims/<name>.py`.

    Raises:
        ConfigError: no such file, or it has no `claim`.
    """
    found = available()
    if name not in found:
        raise unknown("claim", name, found)
    if str(folder()) not in sys.path:
        sys.path.insert(0, str(folder()))  # claims share settings: `from _settings import images`
    spec = importlib.util.spec_from_file_location(f"fedloom_claim_{name.replace('-', '_')}", found[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    claim = getattr(module, "claim", None)
    if not isinstance(claim, Claim):
        raise ConfigError(f"{found[name]} defines no `claim = Claim(...)`")
    return claim


def save(result: Result) -> Path:
    """Write `results/<name>.json` and the table of all results. Only the command calls this."""
    path = folder() / "results" / f"{result.name}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(result.content, indent=1, default=str)
    path.write_text(re.sub(r"\[\s+([^\[\]{}\"]+?)\s+\]", _on_one_line, text) + "\n")
    (folder() / "README.md").write_text(table())
    return path


def _on_one_line(numbers: re.Match[str]) -> str:
    return "[" + " ".join(numbers[1].split()) + "]"


def results() -> dict[str, dict[str, Any]]:
    """Every result on file, by claim."""
    return {p.stem: json.loads(p.read_text()) for p in sorted((folder() / "results").glob("*.json"))}


def table() -> str:
    """`benchmarks/claims/README.md`: every result on file, and the claims that have none."""
    lines = [
        "# Claims",
        "",
        "Each method's central claim as an experiment whose rule was written before it was run. Generated by",
        "`fedloom claim`; the files in `results/` hold configurations, seeds, curves, versions and data hashes.",
        "A claim that does not reproduce is a result, not a defect.",
        "",
        "| claim | tested | figures (mean +- std over seeds) | comparison (95 % interval) | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    done = results()
    for name, r in done.items():
        figures = "; ".join(f"{n} {a['mean']:.4g} +- {a['std']:.2g}" for n, a in r["arms"].items())
        compared = "; ".join(c["text"] for c in r["comparisons"])
        lines.append(f"| {name} | {r['claim']} ({r['measure']}) | {figures} | {compared} | **{r['verdict']}** |")
    missing = [n for n in available() if n not in done]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _commit() -> dict[str, Any]:
    """Commit of the checkout, and whether anything but claims' own results differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder(), capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = [line for line in git("status", "--porcelain").splitlines() if "benchmarks/claims/" not in line]
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


if __name__ == "__main__":
    print("\n".join(available()))
