"""One HTML page of one run or several: curves, clients, data, figures, configuration, and how to repeat it.

    write_report([Path("runs/a"), Path("runs/b")], Path("report.html"))

The page is one file that needs no network. Runs that differ in their seed alone are one line with a band.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go

from fedloom.errors import ConfigError
from fedloom.timing.meter import PHASES

from . import figures, files, skew
from .record import Group, Record, Spread, better, grouped


@dataclass(frozen=True)
class Column:
    """One column of the table of final figures: its key in `Group.final`, title, how it is written, and whether more
    (+1), less (-1) or neither (0) is better."""

    key: str
    title: str
    kind: str
    sign: int = 0


def write_report(runs: Iterable[Any], path: Path, title: str = "") -> Path:
    """Write the page for run directories, `Record`s, `Group`s, or runs in memory; into a folder as report.html.

    Raises:
        ConfigError: a directory is not a run's, or there is no run at all.
        DiskError: the page could not be written.
    """
    path = path / "report.html" if path.is_dir() else path
    html = render(as_groups(runs), title)
    files.replace(
        path, html, "The runs are whole. Make room, or choose another place: fedloom report FOLDER --out report.html"
    )
    return path


def as_groups(runs: Iterable[Any]) -> list[Group]:
    """Groups of runs; runs that differ in their seed alone are put together."""
    given = [one for run in runs for one in _opened(run)]
    groups = [g for g in given if isinstance(g, Group)]
    groups += grouped(g for g in given if isinstance(g, Record))
    if not groups:
        raise ConfigError("a report needs at least one run: write_report([Path('runs/a')], Path('report.html'))")
    return groups


def _opened(run: Any) -> list[Record | Group]:
    """What a run directory, a directory of runs (as `fedloom compare` leaves), or a run in memory holds."""
    if isinstance(run, Record | Group):
        return [run]
    if not isinstance(run, str | Path):
        return [Record.of(run)]
    inside = sorted(log.parent for log in Path(run).glob("*/metrics.jsonl"))
    return [Record.read(place) for place in inside or [Path(run)]]


def curves(runs: Iterable[Any]) -> list[go.Figure]:
    """The headline of every view against rounds, one figure each."""
    groups = as_groups(runs)
    return [figures.curves(groups, view=view) for view in views_in(groups)]


def views_in(groups: Sequence[Group]) -> list[str]:
    """The views of all runs; those that every method may have come first."""
    found = dict.fromkeys(view for g in groups for record in g.records for view in record.views)
    known = [view for view in figures.VIEWS if view in found]
    return known + [view for view in found if view not in known]


def render(groups: Sequence[Group], title: str = "") -> str:
    """The page as text."""
    columns = table_columns(groups)
    first = groups[0].records[0]
    seeds = max(len(group.records) for group in groups)
    drawings, choices = _curves(groups)
    return _page(
        drawings | _distributions(groups) | _timelines(groups),
        heterogeneity=first.heterogeneity,
        title=title or _title(groups),
        lede=_lede(groups, columns),
        facts=_facts(first, seeds),
        tiles=_tiles(groups, columns),
        groups=[
            {"label": g.label, "slot": i, "dash": figures.DASHES[i % len(figures.DASHES)]} for i, g in enumerate(groups)
        ],
        choices=choices,
        columns=columns,
        lines=_lines(groups, columns),
        lengths=_lengths(groups),
        time=_time(groups),
        seeds=seeds,
        configs=[(g.label, g.records[0].config) for g in groups if g.records[0].config],
        commands=_commands(groups),
        notes=_notes(groups),
        versions=first.summary.get("versions", {}),
    )


def write_data_report(heterogeneity: Mapping[str, Any], path: Path, title: str) -> Path:
    """Write a page about data alone: what `skew.described` says of a federation."""
    files.replace(path, _page({}, heterogeneity, title=title), "Make room, or give another --report")
    return path


def _page(drawings: dict[str, Any], heterogeneity: Mapping[str, Any] | None, **parts: Any) -> str:
    from plotly.offline import get_plotlyjs

    data = data_section(heterogeneity) if heterogeneity else None
    if data:
        drawings["data"] = figures.as_json(data["figure"])
    themes = {
        "light": {"slots": figures.LIGHT, "ramp": _ramp(figures.LIGHT_RAMP)},
        "dark": {"slots": figures.DARK, "ramp": _ramp(figures.DARK_RAMP)},
    }
    clients = [key.partition("/")[2] for key in drawings if key.startswith("clients/")]
    timelines = [key.partition("/")[2] for key in drawings if key.startswith("timeline/")]
    return _template().render(
        data=data,
        distributions={view: figures.VIEWS.get(view, view) for view in clients},
        timelines={label: label for label in timelines},
        phases=figures.PHASES,
        date=f"{datetime.now():%d %B %Y}".lstrip("0"),
        drawings=_script(drawings),
        themes=_script(themes),
        plotly=get_plotlyjs(),
        **parts,
    )


# ----------------------------------------------------------------------------------------------- the table's content


def table_columns(groups: Sequence[Group]) -> list[Column]:
    """What the table of final figures shows: headlines, statistics over clients, bytes, seconds."""
    finals = [group.final() for group in groups]
    known = set().union(*finals)
    found: list[Column] = []
    for view in views_in(groups):
        head = next((h for g in groups if (h := figures.headline_of(g, view))), "")
        # over clients, their mean says more than the pooled figure
        over_clients = f"{view}.mean" in known and view != "global"
        for name in ("mean", "worst10") if over_clients else (head, "mean", "worst10"):
            if f"{view}.{name}" in known:
                kind = "share" if figures.is_share(name, head) else "number"
                found.append(Column(f"{view}.{name}", short(view, name), kind, better(head)))
    if any("epsilon" in final for final in finals):
        found.append(Column("epsilon", "privacy spent (epsilon)", "plain"))
    for key, title, kind in (
        ("bytes_up", "sent up", "bytes"),
        ("bytes_down", "sent down", "bytes"),
        ("bytes_peers", "between clients", "bytes"),
        ("time", "virtual time", "seconds"),
        ("wall", "wall time", "seconds"),
    ):
        if any(key in final and final[key].mean for final in finals):
            found.append(Column(key, title, kind, -1))
    return found


def short(view: str, name: str) -> str:
    """A figure in a few words: `accuracy`, `client mean`, `personal worst 10 %`."""
    words = {"mean": "mean" if view == "personal" else "client mean", "worst10": "worst 10 %"}
    text = words.get(name, name)
    return text if view in ("global", "local") else f"{view} {text}"


def shown(column: Column, final: Mapping[str, Spread]) -> str:
    """A cell: the mean over seeds, and the standard deviation where there are several."""
    if column.key not in final:
        return "–"
    mean, std = final[column.key]
    if column.kind == "bytes":
        return in_bytes(mean)
    if column.kind == "seconds":
        return in_seconds(mean)
    if column.kind == "plain":
        return f"{mean:.3g}"
    scale, digits = (100, 1) if column.kind == "share" else (1, 3)
    unit = " %" if column.kind == "share" else ""
    return f"{scale * mean:.{digits}f}" + ("" if std is None else f" ± {scale * std:.{digits}f}") + unit


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
    whole = round(s)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _lines(groups: Sequence[Group], columns: Sequence[Column]) -> list[dict[str, Any]]:
    finals = [group.final() for group in groups]
    best = {c.key: _best(c, finals) for c in columns if len(groups) > 1}
    return [
        {
            "slot": i,
            "label": group.label,
            "dash": figures.DASHES[i % len(figures.DASHES)],
            "cells": [(shown(c, finals[i]), i in best.get(c.key, ())) for c in columns],
        }
        for i, group in enumerate(groups)
    ]


def _best(column: Column, finals: Sequence[Mapping[str, Spread]]) -> list[int]:
    """The lines with the best mean, and those that the spread over seeds does not tell from it; none of a column that
    only some lines have, that says nothing of quality, or where all are alike, or no numbers."""
    values = [final[column.key] for final in finals if column.key in final]
    known = [v for v in values if not math.isnan(v.mean)]
    if len(values) < len(finals) or not known or column.kind not in ("share", "number"):
        return []
    top = max(known, key=lambda v: column.sign * v.mean)
    near = [i for i, v in enumerate(values) if abs(v.mean - top.mean) <= max(v.std or 0.0, top.std or 0.0)]
    return near if len(near) < len(values) else []


def _time(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Where the time of each group went, in shares, and what else a clock tells; None where no time passed."""
    spent = [[record.spent() for record in group.records] for group in groups]
    phases = [phase for phase in PHASES if any(one["seconds"].get(phase) for each in spent for one in each)]
    if not phases:
        return None
    lines = [_time_line(i, group, each, phases) for i, (group, each) in enumerate(zip(groups, spent))]
    shown = [k for k in range(len(phases), len(phases) + 3) if any(line["cells"][k] != "–" for line in lines)]
    for line in lines:
        line["cells"] = line["cells"][: len(phases)] + [line["cells"][k] for k in shown]
    more = ["energy", "mean staleness", "even participation"]
    return {"columns": phases + [more[k - len(phases)] for k in shown], "lines": lines}


def _time_line(slot: int, group: Group, spent: Sequence[Mapping[str, Any]], phases: Sequence[str]) -> dict[str, Any]:
    def mean(values: Sequence[float | None], write: str) -> str:
        held = [v for v in values if v is not None]
        return format(sum(held) / len(held), write) if held else "–"

    totals = [sum(one["seconds"].values()) for one in spent]
    cells = [mean([one["seconds"][p] / t if t else 0.0 for one, t in zip(spent, totals)], ".1%") for p in phases]
    stale = [{int(k): n for k, n in one["staleness"].items()} for one in spent]
    means = [sum(k * n for k, n in held.items()) / sum(held.values()) if any(held) else None for held in stale]
    cells += [
        mean([one["energy"] for one in spent], ".3g").replace("–", "") + " J" if spent[0]["energy"] else "–",
        mean(means, ".2f"),
        mean([record.summary.get("participation") for record in group.records], ".2f"),
    ]
    return {"slot": slot, "label": group.label, "dash": figures.DASHES[slot % len(figures.DASHES)], "cells": cells}


# ------------------------------------------------------------------------------------------------- words of the page


def _title(groups: Sequence[Group]) -> str:
    data = groups[0].records[0].summary.get("data", "")
    names = [group.label for group in groups]
    if len(names) == 1:
        return f"{names[0]} on {data}" if data else names[0]
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    number = words[len(names)] if len(names) < len(words) else str(len(names))
    same = len({record.method for group in groups for record in group.records}) == 1
    return f"{number} {'runs' if same else 'methods'}{f' on {data}' if data else ''}"


def _lede(groups: Sequence[Group], columns: Sequence[Column]) -> str:
    """The result in one sentence, without a word it cannot back."""
    if not columns or columns[0].kind not in ("share", "number"):
        return ""
    main, finals = columns[0], [group.final() for group in groups]
    means = {i: final[main.key].mean for i, final in enumerate(finals) if main.key in final}
    lost = [f"{groups[i].label} ends without a number" for i, mean in means.items() if math.isnan(mean)]
    ranked = sorted((i for i, mean in means.items() if not math.isnan(mean)), key=lambda i: -main.sign * means[i])
    told = [_ranked(main, groups, finals, ranked)] if ranked else []
    return " ".join([*told, *(f"{text}." for text in lost)])


def _ranked(
    main: Column, groups: Sequence[Group], finals: Sequence[Mapping[str, Spread]], ranked: Sequence[int]
) -> str:
    """The best group, and what tells it from the second."""
    first = ranked[0]
    text = f"{groups[first].label} ends at {shown(main, finals[first])} {main.title}"
    if len(ranked) == 1:
        return text + "."
    gap = abs(finals[first][main.key].mean - finals[ranked[1]][main.key].mean)
    spread = max(finals[i][main.key].std or 0.0 for i in ranked[:2])
    unit, scale = (" points", 100) if main.kind == "share" else ("", 1)
    text += f", {gap * scale:.{1 if scale == 100 else 3}f}{unit} from {groups[ranked[1]].label}"
    if len(groups[first].records) == 1:
        return text + ". One seed: a difference this page cannot tell from chance."
    if gap <= spread:
        return text + "; the difference is within the spread over seeds."
    return text + ", more than the spread over seeds."


def _facts(record: Record, seeds: int) -> list[str]:
    s, given = record.summary, record.settings
    facts = [f"{n} clients" if (n := s.get("clients")) else "", str(given.get("partition", ""))]
    facts += [str(s.get("model", given.get("model", "")))]
    facts += [f"{s['parameters']:,} parameters" if "parameters" in s else ""]
    facts += [f"{s['rounds']} rounds" if "rounds" in s else ""]
    facts += [f"{seeds} seeds" if seeds > 1 else (f"seed {s['seed']}" if "seed" in s else "")]
    return [fact for fact in facts if fact]


def _tiles(groups: Sequence[Group], columns: Sequence[Column]) -> list[tuple[str, str]]:
    """The main figures of a single run; a comparison has its table."""
    if len(groups) > 1:
        return []
    final = groups[0].final()
    return [(c.title, shown(c, final)) for c in columns]


def _lengths(groups: Sequence[Group]) -> str:
    """After which round the runs ended, where not all did after the same one; a killed run ends where it was killed."""
    ends = {group.label: [int(r.rows[-1]["round"]) if r.rows else 0 for r in group.records] for group in groups}
    if len({end for each in ends.values() for end in each}) < 2:
        return ""
    told = [
        f"{label} after {', '.join(map(str, each if len(set(each)) > 1 else each[:1]))}" for label, each in ends.items()
    ]
    return f"Not all runs are equally long, and each counts as it ended: {'; '.join(told)} rounds."


def _notes(groups: Sequence[Group]) -> list[str]:
    """What the runs themselves said, once each: how fast something was is measured anew for every seed."""
    several, said = len(groups) > 1, {}
    for group in groups:
        for text in (text for record in group.records for text in record.remarks()):
            said.setdefault((group.label, re.sub(r"[\d.e+-]+x as fast", "", text)), text)
    return list(dict.fromkeys(f"{label}: {text}" if several else text for (label, _), text in said.items()))


def _commands(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(r.command for group in groups for r in group.records if r.command))


# -------------------------------------------------------------------------------------------------------- the figures


def _curves(groups: Sequence[Group]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Drawings by "curve/<view>.<figure>/<axis>", and what there is to choose from."""
    whats: dict[str, str] = {}
    for view in views_in(groups):
        head = next((h for g in groups if (h := figures.headline_of(g, view))), "")
        over_clients = any(len(g.curve(view, "mean", "round")) > 1 for g in groups) and view != "global"
        for name in ("mean", "worst10") if over_clients else (head, "mean", "worst10", "loss"):
            if any(len(g.curve(view, name, "round")) > 1 for g in groups):
                whats.setdefault(f"{view}.{name}", short(view, name))
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
    words = {"round": "rounds", "bytes": "bytes", "time": "virtual time", "wall": "wall time"}
    return drawn, {"whats": whats, "axes": {name: words[name] for name in axes}}


def _distributions(groups: Sequence[Group]) -> dict[str, Any]:
    views = views_in(groups)
    mixed = ["own"] if "personal" in views and len(groups) > 1 else []
    drawn = {f"clients/{view}": figures.distribution(groups, view) for view in [*mixed, *views]}
    return {key: figures.as_json(fig) for key, fig in drawn.items() if fig is not None}


def _timelines(groups: Sequence[Group]) -> dict[str, Any]:
    """Of the first run of each group that wrote down single jobs."""
    drawn = {group.label: fig for group in groups if (fig := figures.timeline(group.records[0]))}
    return {f"timeline/{label}": figures.as_json(fig) for label, fig in drawn.items()}


def data_section(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figure of the data's heterogeneity (`skew.described`), its measures, and what a caption needs."""
    drawn = given.get("drawn") or {}
    if not drawn.get("sizes"):
        return None
    labels = drawn.get("labels") or []
    if labels:
        fig = figures.labels(drawn["counts"], labels, drawn["clients"])
    else:
        fig = figures.sizes(drawn["sizes"], drawn["clients"])
    total = given.get("clients", len(drawn["sizes"]))
    return {
        "figure": fig,
        "numbers": skew.numbers(given),
        "labels": labels,
        "note": f"{len(drawn['sizes'])} of {total} clients." if total > len(drawn["sizes"]) else "",
    }


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
