"""All commands in one place."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from . import catalogue, checking, deploying, running

app = typer.Typer(
    name="fedloom",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: [cyan]fedloom compare fedavg fedprox scaffold --data digits --rounds 30[/]",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"fedloom {metadata.version('fedloom')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Federated learning where clients differ in data, model, device, network, task and trust."""
    sys.path.insert(0, os.getcwd())  # methods of one's own, module:Class, need not be installed


for command, panel in (
    (running.run, "Train"),
    (running.compare, "Train"),
    (running.resume, "Train"),
    (running.report, "Train"),
    (deploying.serve, "Deploy"),
    (deploying.join, "Deploy"),
    (deploying.status, "Deploy"),
    (deploying.replay, "Deploy"),
    (catalogue.methods, "Look up"),
    (catalogue.show, "Look up"),
    (catalogue.data, "Look up"),
    (checking.check, "Check"),
    (checking.claim, "Check"),
    (checking.claims, "Check"),
    (checking.bench, "Check"),
    (checking.doctor, "Check"),
):
    app.command(rich_help_panel=panel)(command)
app.add_typer(deploying.certs, name="certs", rich_help_panel="Deploy")
