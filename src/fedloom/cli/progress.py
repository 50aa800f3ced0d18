"""Live progress of a run on a terminal: rounds, remaining time, the current metric, bytes. Silent anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedloom.runs.figures import is_share
from fedloom.runs.record import headline, views_of
from fedloom.runs.report import in_bytes


class Watch:
    """An observer of runs: call it with their events. One line per run, below each other."""

    def __init__(self, progress: Progress | None, console: Console) -> None:
        self._progress, self._console = progress, console
        self._label, self._line = "", None

    _line: TaskID | None

    def next(self, label: str, rounds: int) -> Watch:
        """The run whose events come from now on."""
        self._label = label
        if self._progress is not None:
            self._line = self._progress.add_task(label, total=rounds, figures="")
        return self

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "note":
            self._console.print(f"{self._label}: {event['text']}", markup=False, highlight=False, soft_wrap=True)
        if self._progress is None or self._line is None:
            return
        if event["event"] == "start":
            self._progress.update(self._line, completed=event["round"], total=event["rounds"])
        if event["event"] == "round":
            self._progress.update(self._line, completed=event["round"], total=event["rounds"])
            if text := figures(event["row"]):
                self._progress.update(self._line, figures=text)


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """A `Watch` that draws while the block lasts, if the console is a terminal."""
    if not console.is_terminal:
        yield Watch(None, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("[cyan]{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=8) as progress:
        yield Watch(progress, console)


def figures(row: dict[str, Any]) -> str:
    """`accuracy 91.2 %  personal 95.0 %  4.1 MB up`; "" for a round without evaluation."""
    parts = []
    for view in (v for v in views_of(row) if v != "local"):
        name = headline(row[view])
        value = row[view][name]
        shown = f"{100 * value:.1f} %" if is_share(name, name) else f"{value:.4g}"
        parts.append(f"{name if view == 'global' else view} {shown}")
    return "  ".join([*parts, f"{in_bytes(row['bytes_up'])} up"]) if parts else ""
