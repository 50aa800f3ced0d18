"""Finished runs as they are read back: from a run directory, or from a run still in memory; and groups of them."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedloom.errors import ConfigError, FedloomWarning

from .config import configuration
from .describe import NOT_VIEWS, spent
from .skew import described

if TYPE_CHECKING:
    from .loop import Run

Row = Mapping[str, Any]

_AXES = {"round": "round", "bytes": "bytes", "time": "time", "wall": "wall"}
_LOWER_IS_BETTER = ("rmse", "loss")


@dataclass(frozen=True)
class Record:
    """One run: its summary, one row per round, its configuration and the heterogeneity of its data.

    Attributes:
        summary: what `summary.json` holds.
        rows: what `metrics.jsonl` holds, by round.
        config: the text of `config.toml`, "" where there is none.
        heterogeneity: what `heterogeneity.json` holds, or None.
        command: the command line that repeats the run, "" where there is none.
        place: the directory, or None.
    """

    summary: Mapping[str, Any]
    rows: Sequence[Row]
    config: str = ""
    heterogeneity: Mapping[str, Any] | None = None
    command: str = ""
    place: Path | None = None

    @staticmethod
    def read(place: Path) -> Record:
        """A run directory.

        Raises:
            ConfigError: not a run directory, or one of its files cannot be read; a last line that was cut off by a kill
                is left out.
        """
        from .recipe import Recipe

        if not (place / "metrics.jsonl").exists():
            raise ConfigError(f"{place} is not a run directory: it has no metrics.jsonl")
        rows = _lines(place / "metrics.jsonl")
        config = (place / "config.toml").read_text() if (place / "config.toml").exists() else ""
        try:
            command = Recipe.from_toml(config).command()
        except ConfigError:  # a run made of objects in Python
            command = ""
        return Record(
            summary=_json(place / "summary.json") or {},
            rows=rows,
            config=config,
            heterogeneity=_json(place / "heterogeneity.json"),
            command=command,
            place=place,
        )

    @staticmethod
    def of(run: Run) -> Record:
        """A run in memory."""
        recipe = run.experiment.recipe
        return Record(
            summary=run.summary,
            rows=run.rows,
            config=configuration(run.experiment),
            heterogeneity=described(run.experiment.federation),
            command=recipe.command() if recipe else "",
            place=run.out,
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration as a mapping; empty where it is not TOML."""
        try:
            return tomllib.loads(self.config)
        except tomllib.TOMLDecodeError:
            return {}

    @property
    def method(self) -> str:
        return str(self.summary.get("method", self.place.name if self.place else "run"))

    @property
    def views(self) -> list[str]:
        """Views of the result that were evaluated: "global", "personal", ..."""
        found: dict[str, None] = {}
        for row in self.rows:
            found.update(dict.fromkeys(views_of(row)))
        return list(found)

    def curve(self, view: str, figure: str) -> dict[int, float]:
        """round -> value, where it was evaluated."""
        return {
            int(row["round"]): float(row[view][figure])
            for row in self.rows
            if view in views_of(row) and _is_number(row[view].get(figure))
        }

    def axis(self, name: str) -> dict[int, float]:
        """round -> rounds, bytes (all of them), virtual seconds or wall seconds."""
        if name == "bytes":
            kinds = ("bytes_up", "bytes_down", "bytes_peers")
            return {int(r["round"]): float(sum(r.get(kind, 0) for kind in kinds)) for r in self.rows}
        return {int(r["round"]): float(r.get(_AXES[name], 0) or 0) for r in self.rows}

    def final(self) -> dict[str, float]:
        """The last evaluated figures as "view.figure", and bytes and seconds."""
        found: dict[str, float] = {}
        for row in self.rows:
            for view in views_of(row):
                found.update({f"{view}.{k}": float(v) for k, v in row[view].items() if _is_number(v)})
        last = self.rows[-1] if self.rows else {}
        for name in ("bytes_up", "bytes_down", "bytes_peers", "time", "wall"):
            if _is_number(last.get(name)):
                found[name] = float(last[name])
        spent = [float(p["epsilon"]) for p in (self.summary.get("privacy") or {}).values() if "epsilon" in p]
        return found | ({"epsilon": max(spent)} if spent else {})

    def spent(self) -> Mapping[str, Any]:
        """Where the time went: see `describe.spent`."""
        return spent(self.rows)

    def remarks(self) -> list[str]:
        """What the run says besides its figures: what was chosen, left out, spent, and best on validation data."""
        s = self.summary
        found = [f"{name}: {value}" for name, value in (s.get("choices") or {}).items()]
        found += [
            f"{name}: epsilon {p['epsilon']:.3g} at delta {p['delta']:.0e}, {p['neighbours']}"
            for name, p in (s.get("privacy") or {}).items()
            if "epsilon" in p
        ]
        if s.get("excluded"):
            why = next((reason for row in self.rows for reason in row.get("exclusions", {})), "")
            replies = "1 reply" if s["excluded"] == 1 else f"{s['excluded']} replies"
            found.append(f"{replies} excluded" + (f"; the first: {why}" if why else ""))
        if silent := sum(row.get("replies") == 0 for row in self.rows):
            found.append(f"nobody replied in {silent} of {len(self.rows)} rounds")
        if s.get("best"):
            figures = ", ".join(f"{k} {v:.3f}" for k, v in s["best"].items() if k in ("global.accuracy", "global.rmse"))
            found.append(f"best by {s['best']['by']}: round {s['best']['round']}" + (f", {figures}" if figures else ""))
        return found

    def clients(self, view: str) -> list[Mapping[str, float]]:
        """The last kept figures of every client; the view "own" is its own model where there is one, else the global
        model at the clients. Empty where the run kept none."""
        for name in ("personal", "local", "global") if view == "own" else (view,):
            for row in reversed(self.rows):
                if name in views_of(row) and row[name].get("clients"):
                    return list(row[name]["clients"].values())
        return []


class Spread(NamedTuple):
    """A mean over seeds with the sample standard deviation: None for one seed, NaN where one of them ran away."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    records: Sequence[Record] = field(repr=False)

    def final(self) -> dict[str, Spread]:
        """Mean and standard deviation over the seeds of every final figure all of them have."""
        each = [record.final() for record in self.records]
        shared = [name for name in each[0] if all(name in one for one in each)]
        return {name: spread([one[name] for one in each]) for name in shared}

    def curve(self, view: str, figure: str, against: str) -> list[tuple[float, float, float, float]]:
        """(x, mean, lowest, highest) over the seeds at every round that all of them evaluated."""
        curves = [record.curve(view, figure) for record in self.records]
        axes = [record.axis(against) for record in self.records]
        rounds = sorted(set.intersection(*(set(c) for c in curves)))
        return [
            (
                statistics.fmean(axis[r] for axis in axes),
                statistics.fmean(c[r] for c in curves),
                min(c[r] for c in curves),
                max(c[r] for c in curves),
            )
            for r in rounds
        ]


def grouped(records: Iterable[Record]) -> list[Group]:
    """Runs with the same configuration but for the seed are one group, in the order they came. Groups are called by
    their method, and by what else tells them apart where a method occurs more than once."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(json.dumps(_choices(record), sort_keys=True), []).append(record)
    groups = [_by_seed(alike) for alike in found.values()]
    names = [group[0].method for group in groups]
    labels = [
        name if names.count(name) == 1 else f"{name} {_difference(group[0], groups)}".strip()
        for name, group in zip(names, groups)
    ]
    labels = [n if labels.count(n) == 1 else f"{n} ({labels[:i].count(n) + 1})" for i, n in enumerate(labels)]
    return [Group(label, group) for label, group in zip(labels, groups)]


def _by_seed(alike: Sequence[Record]) -> list[Record]:
    """One record for each seed: a run that is given twice, or was made twice, is no second piece of evidence."""
    whole: dict[Any, Record] = {}
    for record in alike:
        seed = record.settings.get("seed", record.summary.get("seed"))
        if seed not in whole or len(record.rows) > len(whole[seed].rows):
            whole[seed] = record
    if again := len(alike) - len(whole):
        warnings.warn(
            f"{alike[0].method}: {again} of {len(alike)} runs repeat the settings and the seed of another; "
            f"each seed is counted once, by its longest run",
            FedloomWarning,
            stacklevel=2,
        )
    return list(whole.values())


def views_of(row: Row) -> list[str]:
    """The views of one row."""
    return [k for k, v in row.items() if isinstance(v, Mapping) and k not in NOT_VIEWS and headline(v)]


def headline(view: Mapping[str, Any]) -> str:
    """The figure a view is compared by: accuracy, or else its first number; "" where it has none."""
    for name in ("accuracy", "rmse"):
        if _is_number(view.get(name)):
            return name
    return next((k for k, v in view.items() if _is_number(v)), "")


def better(figure: str) -> int:
    """+1 where more is better, -1 where less is."""
    return -1 if figure in _LOWER_IS_BETTER else 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def spread(values: Sequence[float]) -> Spread:
    """Of one figure for each seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(mean, None)
    return Spread(mean, statistics.stdev(values) if math.isfinite(mean) else math.nan)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise ConfigError(f"{path} is not JSON: {e}") from None


def _lines(path: Path) -> list[Row]:
    lines = path.read_text().splitlines()
    rows: list[Row] = []
    for i, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if i < len(lines) - 1:
                raise ConfigError(f"{path}, line {i + 1} is not JSON") from None
    return rows


def _choices(record: Record) -> dict[str, str]:
    """What was decided for a run, flat and as text: not its seed, nor what it found out for itself."""
    found: dict[str, str] = {}
    for name, value in record.settings.items():
        if name == "set" and isinstance(value, Mapping):
            found.update({k: str(v) for k, v in value.items()})
        elif name not in ("seed", "run"):
            found[name] = str(value)
    return found or {"method": record.method}


def _difference(record: Record, groups: Sequence[Sequence[Record]]) -> str:
    """The choices that not every run of this method shares."""
    rivals = [_choices(group[0]) for group in groups if group[0].method == record.method]
    own = [f"{k}={v}" for k, v in _choices(record).items() if any(other.get(k) != v for other in rivals)]
    return ", ".join(own[:3])
