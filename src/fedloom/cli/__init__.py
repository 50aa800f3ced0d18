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
    words = [word for word in words if word != "--debug"]
    if words in ([], ["certs"]):
        words.append("--help")

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
    try:
        code = app(words, prog_name="fedloom", standalone_mode=False)
    except typer.Abort:
        raise SystemExit(130) from None
    except (FedloomError, OSError, usage.Refused) as error:
        if debug:
            raise
        console.print("[bold red]error[/]", end="  ")
        console.print(_said(error), markup=False, highlight=False)
        raise SystemExit(2) from None
    raise SystemExit(code)


def _said(error: Exception) -> str:
    """The message; of a file that cannot be read or written, its name and why; of a line, one that works, too."""
    from . import usage

    if isinstance(error, usage.Refused):
        return usage.said(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
