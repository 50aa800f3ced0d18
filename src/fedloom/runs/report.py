"""One HTML page of one run or several: curves, clients, data, figures, configuration, and how to repeat it.

    write_report([Path("runs/a"), Path("runs/b")], Path("report.html"))

The page is one file that needs no network. Runs that differ in their seed alone are one line with a band.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go

from . import figures
from .record import Group, Record, better, grouped

STATISTICS = ("mean", "worst10", "std")
BARS = 60
"""More clients than this are not drawn as bars; every n-th is."""


@dataclass(frozen=True)
class Column:
    """One column of the table of final figures: its key in `Group.final`, title, how it is written, and whether more
    (+1), less (-1) or neither (0) is better."""

    key: str
    title: str
    kind: str
    sign: int = 0


def write_report(runs: Iterable[Any], path: Path, title: str = "") -> Path:
    """Write the page for run directories, `Record`s, `Group`s, or runs in memory; returns `path`.

    Raises:
        ConfigError: a directory is not a run's, or there is no run at all.
    """
    html = render(as_groups(runs), title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def as_groups(runs: Iterable[Any]) -> list[Group]:
    """Groups of runs; runs that differ in their seed alone are put together."""
    from fedloom.errors import ConfigError

    given = list(runs)
    groups = [g for g in given if isinstance(g, Group)]
    groups += grouped(_record(r) for r in given if not isinstance(r, Group))
    if not groups:
        raise ConfigError("a report needs at least one run: write_report([Path('runs/a')], Path('report.html'))")
    return groups


def _record(run: Any) -> Record:
    if isinstance(run, Record):
        return run
    return Record.read(Path(run)) if isinstance(run, str | Path) else Record.of(run)


def curves(runs: Iterable[Any]) -> list[go.Figure]:
    """The headline of every view against rounds, one figure each."""
    groups = as_groups(runs)
    views = dict.fromkeys(view for g in groups for record in g.records for view in record.views)
    return [figures.curves(groups, view=view) for view in views]


def render(groups: Sequence[Group], title: str = "") -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    columns = table_columns(groups)
    first = groups[0].records[0]
    seeds = max(len(group.records) for group in groups)
    drawings, choices = _curves(groups)
    drawings |= _distributions(groups)
    data = _data(first.heterogeneity)
    if data:
        drawings["data"] = figures.as_json(data["figure"])
    return _template().render(
        title=title or _title(groups),
        lede=_lede(groups, columns),
        facts=_facts(first, seeds),
        tiles=_tiles(groups, columns),
        groups=[
            {"label": g.label, "slot": i, "dash": figures.DASHES[i % len(figures.DASHES)]}
            for i, g in enumerate(groups)
        ],
        choices=choices,
        distributions=[k.partition("/")[2] for k in drawings if k.startswith("clients/")],
        views=figures.VIEWS,
        columns=columns,
        lines=_lines(groups, columns),
        seeds=seeds,
        data=data,
        configs=[(g.label, g.records[0].config) for g in groups if g.records[0].config],
        commands=_commands(groups),
        notes=_notes(groups),
        versions=first.summary.get("versions", {}),
        date=datetime.now().strftime("%-d %B %Y"),
        drawings=_script(drawings),
        themes=_script(
            {
                "light": {"slots": figures.LIGHT, "ramp": _ramp(figures.LIGHT_RAMP)},
                "dark": {"slots": figures.DARK, "ramp": _ramp(figures.DARK_RAMP)},
            }
        ),
        plotly=get_plotlyjs(),
    )


# ----------------------------------------------------------------------------------------------- the table's content


def table_columns(groups: Sequence[Group]) -> list[Column]:
    """What the table of final figures shows: each view's headline and statistics over clients, bytes, seconds."""
    finals = [group.final() for group in groups]
    known = list(dict.fromkeys(key for final in finals for key in final))
    found: list[Column] = []
    for view in dict.fromkeys(k.partition(".")[0] for k in known if "." in k):
        head = next((h for g in groups if (h := figures.headline_of(g, view))), "")
        for name in (head, *STATISTICS):
            if f"{view}.{name}" in known:
                kind = "share" if figures.is_share(name, head) else "number"
                sign = -1 if name == "std" else better(head)
                found.append(Column(f"{view}.{name}", _short(view, name), kind, sign))
    for key, title, kind in (
        ("bytes_up", "sent up", "bytes"),
        ("bytes_down", "sent down", "bytes"),
        ("time", "virtual time", "seconds"),
        ("wall", "wall time", "seconds"),
    ):
        if any(final.get(key, (0.0, 0.0))[0] for final in finals):
            found.append(Column(key, title, kind, -1))
    return found


def _short(view: str, name: str) -> str:
    words = {"mean": "client mean", "worst10": "worst 10 %", "std": "spread over clients"}
    text = words.get(name, name)
    return f"{view} {text}" if name not in words else (text if view == "global" else f"{view} {text}")


def shown(column: Column, final: Mapping[str, tuple[float, float]], spread: bool = True) -> str:
    """A cell: the mean over seeds, and the standard deviation where there are several."""
    if column.key not in final:
        return "–"
    mean, std = final[column.key]
    if column.kind == "bytes":
        return in_bytes(mean)
    if column.kind == "seconds":
        return in_seconds(mean)
    scale, digits = (100, 1) if column.kind == "share" else (1, 3)
    unit = " %" if column.kind == "share" else ""
    return f"{scale * mean:.{digits}f}" + (f" ± {scale * std:.{digits}f}" if spread and std else "") + unit


def in_bytes(n: float) -> str:
    """`1.5 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" or n >= 99.5 else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


def in_seconds(s: float) -> str:
    """`0.42 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if s < 10:
        return f"{s:.2g} s"
    if s < 120:
        return f"{s:.0f} s"
    if s < 7200:
        return f"{s // 60:.0f} min {s % 60:.0f} s"
    return f"{s // 3600:.0f} h {s % 3600 // 60:.0f} min"


def _lines(groups: Sequence[Group], columns: Sequence[Column]) -> list[dict[str, Any]]:
    finals = [group.final() for group in groups]
    best = {c.key: _best(c, finals) for c in columns if c.sign and len(groups) > 1}
    return [
        {
            "slot": i,
            "label": group.label,
            "dash": figures.DASHES[i % len(figures.DASHES)],
            "cells": [(shown(c, finals[i]), best.get(c.key) == i) for c in columns],
        }
        for i, group in enumerate(groups)
    ]


def _best(column: Column, finals: Sequence[Mapping[str, tuple[float, float]]]) -> int | None:
    """The line with the best mean; None where several share it or only some have it."""
    values = [final[column.key][0] for final in finals if column.key in final]
    if len(values) < len(finals) or column.kind == "seconds":
        return None
    top = max(values, key=lambda v: column.sign * v)
    return values.index(top) if values.count(top) == 1 else None


# ------------------------------------------------------------------------------------------------- words of the page


def _title(groups: Sequence[Group]) -> str:
    data = groups[0].records[0].summary.get("data", "")
    names = [group.label for group in groups]
    if len(names) == 1:
        return f"{names[0]} on {data}" if data else names[0]
    return f"{len(names)} methods on {data}" if data else " and ".join(names)


def _lede(groups: Sequence[Group], columns: Sequence[Column]) -> str:
    """The result in one sentence, without a word it cannot back."""
    if not columns or columns[0].kind not in ("share", "number"):
        return ""
    main, finals = columns[0], [group.final() for group in groups]
    ranked = sorted(
        (i for i in range(len(groups)) if main.key in finals[i]),
        key=lambda i: -main.sign * finals[i][main.key][0],
    )
    if not ranked:
        return ""
    first = ranked[0]
    text = f"{groups[first].label} ends at {shown(main, finals[first])} {main.title}"
    if len(ranked) == 1:
        return text + "."
    gap = abs(finals[first][main.key][0] - finals[ranked[1]][main.key][0])
    spread = max(finals[i][main.key][1] for i in ranked[:2])
    unit, scale = (" points", 100) if main.kind == "share" else ("", 1)
    text += f", {gap * scale:.{1 if scale == 100 else 3}f}{unit} from {groups[ranked[1]].label}"
    if len(groups[first].records) == 1:
        return text + ". One seed: a difference this page cannot tell from chance."
    if gap <= spread:
        return text + "; the difference is within the spread over seeds."
    return text + ", more than the spread over seeds."


def _facts(record: Record, seeds: int) -> list[str]:
    s = record.summary
    federation = s.get("federation", {})
    facts = [f"{n} clients" if (n := s.get("clients", federation.get("clients"))) else ""]
    facts += [str(s.get("partition", federation.get("partition", "")) or "")]
    facts += [f"{s['rounds']} rounds" if "rounds" in s else ""]
    facts += [f"{seeds} seeds" if seeds > 1 else (f"seed {s['seed']}" if "seed" in s else "")]
    facts += [f"engine {s['engine']}" if "engine" in s else ""]
    return [fact for fact in facts if fact]


def _tiles(groups: Sequence[Group], columns: Sequence[Column]) -> list[tuple[str, str]]:
    """The main figures of a single run; a comparison has its table."""
    if len(groups) > 1:
        return []
    final = groups[0].final()
    return [(c.title, shown(c, final)) for c in columns if not c.key.endswith(".std")][:6]


def _notes(groups: Sequence[Group]) -> list[str]:
    """What was chosen, left out or fell back, as the runs themselves said."""
    found: dict[str, None] = {}
    for group in groups:
        for record in group.records:
            for name, value in dict(record.summary.get("choices") or {}).items():
                found[f"{group.label}: {name} {value}"] = None
            if record.summary.get("excluded"):
                found[f"{group.label}: {record.summary['excluded']} replies excluded"] = None
    return list(found)


def _commands(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(r.command for group in groups for r in group.records if r.command))


# -------------------------------------------------------------------------------------------------------- the figures


def _curves(groups: Sequence[Group]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Drawings by "curve/<view>.<figure>/<axis>", and what there is to choose from."""
    views = list(dict.fromkeys(view for g in groups for record in g.records for view in record.views))
    whats: dict[str, str] = {}
    for view in views:
        head = next((h for g in groups if (h := figures.headline_of(g, view))), "")
        for name in (head, "mean", "worst10", "loss"):
            if any(len(g.curve(view, name, "round")) > 0 for g in groups):
                whats.setdefault(f"{view}.{name}", _short(view, name))
    axes = {
        name: title
        for name, title in figures.AXES.items()
        if name == "round" or any(any(r.axis(name).values()) for g in groups for r in g.records)
    }
    drawn = {
        f"curve/{what}/{axis}": figures.as_json(figures.curves(groups, axis, *what.split(".", 1)))
        for what in whats
        for axis in axes
    }
    short = {"round": "rounds", "bytes": "bytes", "time": "virtual time", "wall": "wall time"}
    return drawn, {"whats": whats, "axes": {name: short[name] for name in axes}}


def _distributions(groups: Sequence[Group]) -> dict[str, Any]:
    found = {}
    for view in dict.fromkeys(view for g in groups for record in g.records for view in record.views):
        fig = figures.distribution(groups, view)
        if fig is not None:
            found[f"clients/{view}"] = figures.as_json(fig)
    return found


def _data(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return data_section(given) if given else None


def data_section(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figure of a heterogeneity report, and its numbers as (name, value) pairs."""
    counts, sizes, note = given.get("counts"), given.get("sizes"), ""
    names = given.get("label_names") or [str(k) for k in range(len(counts[0]))] if counts else []
    if counts:
        drawn = list(range(0, len(counts), -(-len(counts) // BARS)))
        if len(drawn) < len(counts):
            note = f"{len(drawn)} of {len(counts)} clients are drawn."
        ids = given.get("clients") or list(range(len(counts)))
        fig = figures.labels([counts[i] for i in drawn], names, [str(ids[i]) for i in drawn])
    elif sizes:
        fig = figures.sizes(sizes)
    else:
        return None
    ends = {"first": names[0], "last": names[-1]} if names else {}
    return {"figure": fig, "numbers": data_numbers(given), "note": note, "labels": len(names), **ends}


def data_numbers(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The single numbers of a heterogeneity report, as a reader wants them."""
    return [
        (name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
        for name, value in given.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    ]


def _ramp(stops: Sequence[str]) -> list[str]:
    return [figures.ramp(i / 20, stops) for i in range(21)]


def _script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "report.html.jinja"
    )
