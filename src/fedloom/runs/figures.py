"""Plotly figures of runs. Every line carries its group's number (`meta["slot"]`), so that a page can recolour it for a
light or a dark ground; line styles differ as well, for readers who do not see the colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .record import Group, Record, better, headline, views_of

# told apart with every common form of colour blindness, on white and on near-black
LIGHT = ("#0072B2", "#D55E00", "#007A5E", "#A6458A", "#B07800", "#3A87C8", "#5B5B5B", "#7A1F3D")
DARK = ("#5AB0EE", "#F58A4B", "#35C79B", "#E59BCB", "#F2BF45", "#A5D8FA", "#BDBDBD", "#E0708F")
LIGHT_RAMP = ("#00224E", "#2A3F6D", "#575C6D", "#7D7C78", "#A69D75", "#D3C164", "#FEE838")
DARK_RAMP = ("#3D5FA0", "#5F72A0", "#7F8696", "#A09E88", "#BFB57C", "#DECB66", "#FEE838")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px,2px", "2px,2px")
POINTS = 600
"""More points than this are not drawn on one line."""

AXES = {
    "round": "round",
    "bytes": "bytes sent by all, in all directions",
    "time": "virtual time (s)",
    "wall": "wall time (s)",
}
VIEWS = {
    "global": "global model",
    "local": "global model at the clients",
    "personal": "each client's own model",
    "own": "what a client ends with",
}
"""Views in words; "own" is a client's own model where a method has one, else the global model."""


def curves(groups: Sequence[Group], against: str = "round", view: str = "global", figure: str = "") -> go.Figure:
    """One figure against rounds, bytes or time: the mean over seeds, and a band from the lowest to the highest.

    Args:
        groups: one line each.
        against: "round", "bytes", "time" or "wall".
        view: a view of the result, e.g. "global".
        figure: "accuracy", "worst10", ...; default: the view's headline.
    """
    fig = go.Figure()
    for slot, group in enumerate(groups):
        head = headline_of(group, view)
        name = figure or head
        points = _thinned(group.curve(view, name, against))
        if not points:
            continue
        x, mean, low, high = (list(column) for column in zip(*points))
        if len(group.records) > 1:
            fig.add_scatter(
                x=x + x[::-1], y=high + low[::-1], fill="toself", line={"width": 0}, hoverinfo="skip",
                fillcolor=_alpha(_colour(slot), 0.16), mode="lines", showlegend=False,
                meta={"slot": slot, "part": "band"}, legendgroup=str(slot),
            )  # fmt: skip
        fig.add_scatter(
            x=x, y=mean, name=group.label, mode="lines" if len(x) > 1 else "markers", legendgroup=str(slot),
            line={"color": _colour(slot), "width": 2.2, "dash": DASHES[slot % len(DASHES)]},
            hovertemplate=f"<b>{group.label}</b> %{{y:{_format(name, head)}}}<extra></extra>",
            meta={"slot": slot, "part": "line"},
        )  # fmt: skip
    head = next((h for group in groups if (h := headline_of(group, view))), "")
    what = figure or head
    _style(fig, AXES[against], title_of(view, what))
    fig.update_layout(hovermode="x unified")
    if is_share(what, head):
        fig.update_yaxes(tickformat=".0%")
    if against == "round" and all(len(record.rows) <= 12 for group in groups for record in group.records):
        fig.update_xaxes(dtick=1)  # no half rounds
    if against == "bytes":
        fig.update_xaxes(tickformat="~s", ticksuffix="B")
    return fig


def distribution(groups: Sequence[Group], view: str = "global") -> go.Figure | None:
    """The final figure of every client, from the worst client to the best (clients of all seeds together), one without
    a number being worst; None where no run kept figures per client."""
    fig = go.Figure()
    what = ""
    for slot, group in enumerate(groups):
        held = [c for record in group.records for c in record.clients(view)]
        if not held:
            continue
        what = headline(held[0])
        good = better(what)
        values = sorted((float(c[what]) for c in held if what in c), key=lambda v: (not math.isnan(v), good * v))
        share = [i / len(values) for i in range(len(values) + 1)]
        fig.add_scatter(
            x=share, y=[*values, *values[-1:]], name=group.label, mode="lines", legendgroup=str(slot),
            line={"color": _colour(slot), "width": 2.2, "dash": DASHES[slot % len(DASHES)], "shape": "hv"},
            hovertemplate=f"<b>{group.label}</b> %{{y:{_format(what, what)}}}<extra></extra>",
            meta={"slot": slot, "part": "line"},
        )  # fmt: skip
    if not what:
        return None
    _style(fig, "share of clients, worst first", title_of(view, what))
    fig.add_vrect(x0=0, x1=0.1, fillcolor="#888888", opacity=0.12, line_width=0, layer="below")
    fig.update_xaxes(tickformat=".0%", range=[0, 1], hoverformat=".0%")
    if is_share(what, what):
        fig.update_yaxes(tickformat=".0%")
    fig.update_layout(hovermode="x unified")
    return fig


def labels(counts: Sequence[Sequence[int]], names: Sequence[str], clients: Sequence[str]) -> go.Figure:
    """Samples of each client by label: one bar per client as high as its samples, largest first.

    Args:
        counts: clients x labels.
        names, clients: what labels and clients are called.
    """
    order = sorted(range(len(counts)), key=lambda i: -sum(counts[i]))
    fig = go.Figure()
    for k, name in enumerate(names):
        fig.add_bar(
            x=[clients[i] for i in order], y=[counts[i][k] for i in order], name=str(name),
            marker={"color": ramp(k / max(len(names) - 1, 1)), "line": {"width": 0}},
            hovertemplate=f"client %{{x}}, label {name}: %{{y}} samples<extra></extra>",
            meta={"part": "label", "at": k / max(len(names) - 1, 1)},
        )  # fmt: skip
    _style(fig, "client, largest first", "samples")
    fig.update_layout(barmode="stack", bargap=0.12, hovermode="closest")
    fig.update_xaxes(type="category", showticklabels=len(counts) <= 30, showgrid=False)
    return fig


def sizes(values: Sequence[float], clients: Sequence[str]) -> go.Figure:
    """Samples per client, largest first: for data without labels."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    fig = go.Figure()
    fig.add_bar(
        x=[clients[i] for i in order], y=[values[i] for i in order], marker={"color": _colour(0)},
        hovertemplate="client %{x}: %{y} samples<extra></extra>", meta={"slot": 0, "part": "bar"},
    )  # fmt: skip
    _style(fig, "client, largest first", "samples")
    fig.update_layout(bargap=0.12)
    fig.update_xaxes(type="category", showticklabels=len(values) <= 30, showgrid=False)
    return fig


PHASES = {"download": 0, "compute": 2, "upload": 1, "wait": 6, "lost": 7}
"""What a client does, and the colour it is drawn in."""

CLIENTS_DRAWN, ROUNDS_DRAWN, JOBS_DRAWN = 30, 12, 600


def timeline(record: Record) -> go.Figure | None:
    """Who worked, waited and was lost, in the first rounds of a run that wrote down single jobs: a bar per client and
    job, at most 30 clients; None where no job was written down.

    Waiting is drawn after the work, wherever it was; a job that did not count ends in a cross.
    """
    rows, jobs = _window(record)
    if not jobs:
        return None
    drawn = sorted({job["id"] for job in jobs}, key=lambda id: (-sum(j["id"] == id for j in jobs), id))[:CLIENTS_DRAWN]
    jobs = [job for job in jobs if job["id"] in drawn]
    fig = go.Figure()
    for phase, slot in PHASES.items():
        bars = [bar for job in jobs for bar in _bars(job) if bar[0] == phase and bar[2] > 0]
        if bars:
            fig.add_bar(
                y=[f"client {id}" for *_, id in bars], base=[start for _, start, _, _ in bars],
                x=[seconds for _, _, seconds, _ in bars], orientation="h", name=phase, marker={"color": _colour(slot)},
                hovertemplate=f"<b>%{{y}}</b> {phase} %{{x:.3~g}} s<extra></extra>", meta={"slot": slot, "part": "bar"},
            )  # fmt: skip
    lost = [job for job in jobs if job["fate"]]
    if lost:
        fig.add_scatter(
            x=[_end(job) for job in lost], y=[f"client {job['id']}" for job in lost], mode="markers", name="lost",
            marker={"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": _colour(PHASES["lost"])}},
            hovertext=[job["fate"] for job in lost], hovertemplate="<b>%{y}</b> %{hovertext}<extra></extra>",
        )  # fmt: skip
    for row in rows:
        fig.add_vline(x=row["time"], line={"width": 1, "dash": "dot", "color": "rgba(128,128,128,0.6)"})
    _style(fig, "virtual time (s); dotted: the end of a round", "")
    fig.update_layout(barmode="overlay", bargap=0.25, hovermode="closest")
    fig.update_yaxes(
        categoryorder="array", categoryarray=[f"client {i}" for i in sorted(drawn, reverse=True)], showgrid=False
    )
    return fig


def _window(record: Record) -> tuple[Sequence[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The first rounds, as many as can be read, and their jobs."""
    rows: list[Mapping[str, Any]] = []
    jobs: list[Mapping[str, Any]] = []
    for row in record.rows[:ROUNDS_DRAWN]:
        if jobs and len(jobs) + len(row.get("jobs", ())) > JOBS_DRAWN:
            break
        rows.append(row)
        jobs += row.get("jobs", ())
    return rows, jobs


def _bars(job: Mapping[str, Any]) -> list[tuple[str, float, float, int]]:
    """(phase, start, seconds, client), one after the other; what a job that did not count did is all lost."""
    bars: list[tuple[str, float, float, int]] = []
    at = float(job["sent"])
    for phase in ("download", "compute", "upload", "wait"):
        shown = "lost" if job["fate"] and phase != "wait" else phase
        bars.append((shown, at, float(job[phase]), job["id"]))
        at += job[phase]
    return bars


def _end(job: Mapping[str, Any]) -> float:
    return job["sent"] + job["download"] + job["compute"] + job["upload"]


def title_of(view: str, figure: str) -> str:
    """`accuracy, global model`; `accuracy of the worst 10 % of clients, global model`."""
    words = {
        "mean": "mean over clients",
        "worst10": "worst 10 % of clients",
        "std": "spread over clients",
    }
    return f"{words.get(figure, figure)}, {VIEWS.get(view, view)}"


def headline_of(group: Group, view: str) -> str:
    """The headline of a view in the first row that has it."""
    for record in group.records:
        for row in record.rows:
            if view in views_of(row):
                return headline(row[view])
    return ""


def ramp(at: float, stops: Sequence[str] = ()) -> str:
    """The colour at 0..1 of cividis, whose steps are even in lightness for every reader."""
    stops = stops or LIGHT_RAMP
    low = min(int(at * (len(stops) - 1)), len(stops) - 2)
    part = at * (len(stops) - 1) - low
    mixed = (round((1 - part) * a + part * b) for a, b in zip(_rgb(stops[low]), _rgb(stops[low + 1])))
    return "#" + "".join(f"{v:02x}" for v in mixed)


def _style(fig: go.Figure, x: str, y: str) -> None:
    grid = {"gridcolor": "rgba(128,128,128,0.18)", "zeroline": False, "ticks": "", "automargin": True}
    fig.update_layout(
        template="none", margin={"l": 8, "r": 12, "t": 12, "b": 8}, height=380,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "Inter, system-ui, sans-serif", "size": 13, "color": "#55524c"},
        xaxis={"title": {"text": x, "standoff": 10, "font": {"size": 13}}, **grid},
        yaxis={"title": {"text": y, "standoff": 10, "font": {"size": 13}}, **grid},
        legend={"orientation": "h", "y": 1.08, "x": 0}, hoverlabel={"font": {"size": 12}},
    )  # fmt: skip


def _thinned(points: list[Any]) -> list[Any]:
    step = math.ceil(len(points) / POINTS)
    return points[:: step or 1] + (points[-1:] if step > 1 and (len(points) - 1) % step else [])


def is_share(figure: str, head: str) -> bool:
    """Whether a figure is shown in percent: an accuracy, or a statistic over clients of one."""
    return head == "accuracy" and figure in ("accuracy", "mean", "worst10", "std")


def _format(figure: str, head: str) -> str:
    return ".1%" if is_share(figure, head) else ".4~g"


def _colour(slot: int) -> str:
    return LIGHT[slot % len(LIGHT)]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _alpha(colour: str, alpha: float) -> str:
    return "rgba({}, {}, {}, {})".format(*_rgb(colour), alpha)


def as_json(fig: go.Figure) -> Mapping[str, Any]:
    """Data and layout as plain values, NaN as null."""
    import json

    return json.loads(fig.to_json() or "{}")
