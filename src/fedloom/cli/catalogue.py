"""`fedloom methods`, `show`, `data`: what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .options import Json

if TYPE_CHECKING:
    from fedloom.method import Method


def methods(
    family: Annotated[str | None, typer.Option("--family", "-f", help="Only this family.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods, by family.

    [bold]Example[/]

      fedloom methods --family personalisation
    """
    from fedloom.errors import unknown
    from fedloom.method import catalogue

    found = catalogue()
    families = sorted({cls.card.family for cls in found.values()})
    if family is not None and family not in families:
        raise unknown("family", family, families)
    chosen = [cls for cls in found.values() if family in (None, cls.card.family)]
    if as_json:
        print(json.dumps([as_dict(cls) for cls in chosen], indent=2))
        return
    console = Console()
    for name in families if family is None else [family]:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(min_width=14)
        table.add_column(min_width=16)
        for cls in (c for c in chosen if c.card.family == name):
            table.add_row(f"[bold]{cls.card.id}[/]", f"{cls.card.title} ({cls.card.year})", cls.card.summary)
        console.print(f"\n[dim]{name}[/]")
        console.print(table)


def show(
    name: Annotated[str, typer.Argument(help="Id of a method, or file.py:Class, module:Class.", show_default=False)],
    cite: Annotated[bool, typer.Option("--cite", help="The BibTeX entry alone.")] = False,
    as_json: Json = False,
) -> None:
    """Show a method: its paper, what it sends and keeps, its hyperparameters, where it differs from the paper.

    [bold]Examples[/]

      fedloom show scaffold

      fedloom show scaffold --cite
    """
    from fedloom.method import method_named

    cls = method_named(name)
    if cite:
        print(cls.card.cite())
    elif as_json:
        print(json.dumps(as_dict(cls), indent=2))
    else:
        _print_card(cls, name)


def data(
    name: Annotated[str | None, typer.Argument(help="A data set; none: list them.", show_default=False)] = None,
    clients: Annotated[
        int | None, typer.Option("--clients", "-n", help="Clients. (the data's own groups, else 100 at most)")
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            "--partition", "-p", help="Who holds what: dirichlet:0.1, shards:2, iid, natural, ... (the data's own)"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of the partition.")] = 0,
    limit: Annotated[int | None, typer.Option("--limit", help="Train samples kept, at random. (all)")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Draw it into this HTML page.")] = None,
    as_json: Json = False,
) -> None:
    """List the data sets; or make clients of one, and measure how different they are.

    [bold]Examples[/]

      fedloom data

      fedloom data digits --clients 20 --partition dirichlet:0.1 --report data.html
    """
    if name is None:
        _list_data(as_json)
        return
    from fedloom.data.sources import federate
    from fedloom.runs.skew import described, numbers

    federation = federate(name, clients, partition, seed, limit=limit)
    found = described(federation)
    if report is not None:
        from fedloom.runs.report import write_data_report

        write_data_report(found, report, title=f"{federation.name}, {federation.info['partition']}")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console()
    console.print(f"[bold]{federation.name}[/]  {len(federation)} clients, {federation.info['partition']}")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for key, value in numbers(found):
        table.add_row(f"[dim]{key}[/]", value)
    console.print(table)
    if report is not None:
        console.print(f"[dim]report[/]  {report}", soft_wrap=True)


def _list_data(as_json: bool) -> None:
    from fedloom.data.sources import sources

    entries = sources()
    if as_json:
        keys = ("name", "task", "about", "bundled", "available", "options")
        print(json.dumps([{k: getattr(e, k) for k in keys} for e in entries], indent=2))
        return
    console = Console()
    for title, chosen in (
        ("here, without files", [e for e in entries if e.bundled]),
        ("in the folder that the environment variable FEDLOOM_DATA names", [e for e in entries if not e.bundled]),
    ):
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for e in chosen:
            mark = "" if e.available else "[dim]not found[/]"
            table.add_row(f"[bold]{e.name}[/]", e.task, e.about, mark)
        console.print(f"\n[dim]{title}[/]")
        console.print(table)


def as_dict(cls: type[Method]) -> dict[str, Any]:
    """A method's card and hyperparameters as plain values."""
    import dataclasses

    card = dataclasses.asdict(cls.card)
    card["needs"] = sorted(card["needs"])
    return {**card, "class": f"{cls.__module__}:{cls.__qualname__}", "hyperparameters": hyperparameters(cls)}


def hyperparameters(cls: type[Method]) -> list[dict[str, str]]:
    """Name, type in words and default of every field, those of solvers and inner methods by dotted name."""
    import dataclasses

    from fedloom.runs.options import fields_of

    return [dataclasses.asdict(field) for field in fields_of(cls)]


def _bytes(expression: str | None) -> str:
    return f"{expression} bytes a client and exchange; d numbers are trained" if expression else ""


def _print_card(cls: type[Method], name: str) -> None:
    card, console = cls.card, Console()
    console.print(f"\n[bold]{card.title}[/]  {card.summary}\n")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for key, value in (
        ("paper", f"{card.paper}\n{card.authors}, {card.venue} {card.year}\n{card.url}".strip()),
        ("family", card.family),
        ("sent down", _bytes(card.down) or card.why_bytes),
        ("sent up", _bytes(card.up) or card.why_bytes),
        ("kept at a client", card.keeps or "nothing"),
        ("needs", ", ".join(sorted(card.needs)) or "nothing"),
        ("equals", "\n".join(f"{other} where {setting}" for setting, other in card.reduces)),
        ("differs from the paper", "\n".join(card.deviations) or "nowhere known"),
        ("its claim", card.claim),
    ):
        if value:
            table.add_row(f"[dim]{key}[/]", value)
    console.print(table)
    console.print("\n[dim]hyperparameters[/]  [dim]--set name=value[/]")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for field in hyperparameters(cls):
        table.add_row(f"[bold]{field['name']}[/]", field["default"], f"[dim]{field['kind']}[/]")
    console.print(table)
    console.print(f"\n  fedloom run {name}\n", highlight=False)
