"""The command line. `fedloom --help` lists the commands; every command's own `--help` has examples."""

from __future__ import annotations

import sys
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Run one command line and end the process with its exit code: 0 fine, 2 refused, 130 stopped by the user.

    An error of Fedloom's own, of a file or of the line is one message without a traceback; `--debug`, anywhere on the
    line, shows it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = _ran([word for word in words if word != "--debug"], debug)
    except KeyboardInterrupt:  # Typer answers those of a command; this one came while it was being loaded
        code = 130
    raise SystemExit(code)


def _ran(words: list[str], debug: bool) -> int | None:
    import warnings

    import typer
    from rich.console import Console

    from fedloom.errors import FedloomError

    from . import usage
    from .app import app

    console = Console(stderr=True, soft_wrap=True)

    def say(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        console.print("[bold yellow]note[/]", end="   ")
        console.print(str(message), markup=False, highlight=False)

    warnings.showwarning = say
    if words in ([], ["certs"]):
        words = [*words, "--help"]
    try:
        return app(words, prog_name="fedloom", standalone_mode=False)
    except typer.Abort:
        return 130
    except (FedloomError, OSError, usage.Refused) as error:
        if debug and not isinstance(error, usage.Refused):  # the line alone is to blame: there is nothing to trace
            raise
        console.print("[bold red]error[/]", end="  ")
        console.print(usage.said(error), markup=False, highlight=False)
        return 2
