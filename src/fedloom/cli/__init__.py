"""The command line. `fedloom --help` lists the commands; every command's own `--help` has examples."""

from __future__ import annotations

import sys
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Run one command line and end the process with its exit code: 0 fine, 2 refused, 130 stopped by the user.

    An error of Fedloom's own, or of a file, is one message without a traceback; `--debug`, anywhere on the line,
    shows it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]

    import warnings

    from rich.console import Console

    from fedloom.errors import FedloomError

    from .app import app

    console = Console(stderr=True, soft_wrap=True)

    def say(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        console.print("[bold yellow]note[/]", end="   ")
        console.print(str(message), markup=False, highlight=False)

    warnings.showwarning = say
    try:
        app(words, prog_name="fedloom")
    except (FedloomError, OSError) as error:
        if debug:
            raise
        console.print("[bold red]error[/]", end="  ")
        console.print(_said(error), markup=False, highlight=False)
        raise SystemExit(2) from None


def _said(error: Exception) -> str:
    """The message; of a file that cannot be read or written, its name and why."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
