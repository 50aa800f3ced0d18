"""Errors as the terminal shows them; one of the line itself says what was given and accepted, and a call that works."""

from __future__ import annotations

from typing import Any

import typer
from pydantic import ValidationError

Refused: Any = typer.BadParameter.__bases__[0]
"""The usage error of Typer, or of Click, wherever this version of Typer keeps it."""

_KINDS = {"int_parsing": "a whole number", "float_parsing": "a number"}


def said(error: Any) -> str:
    """The message; of a file that cannot be read or written, its name and why; of a line, how it is called, too."""
    if isinstance(error, Refused):
        return _line(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _line(error: Any) -> str:
    context = error.ctx
    path = context.command_path if context else "fedloom"
    help = (context.command.help or "") if context else ""
    example = next((line.strip() for line in help.splitlines() if line.strip().startswith("fedloom ")), "")
    return "\n".join([
        _message(error),
        *([f"       for example: {example}"] if example else ()),
        f"       {path} --help says what there is",
    ])  # fmt: skip


def _message(error: Any) -> str:
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        text = error.format_message().rstrip(".")
        return f"{text[0].lower()}{text[1:]}"
    first = cause.errors()[0]
    text = first["msg"].removeprefix("Value error, ").rstrip(".")
    accepted = (
        f"takes {_KINDS[first['type']]}" if first["type"] in _KINDS else f"cannot be: {text[0].lower()}{text[1:]}"
    )
    return f"{_name(error)} {accepted}; given {first['input']!r}"


def _name(error: Any) -> str:
    """The option or argument as it is written on the line."""
    return max(error.param.opts, key=len) if error.param is not None else "a value"
