"""One documented tree of exceptions. A message says what was given, what is accepted, why, and the call that works."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any


class FedloomError(Exception):
    """Base of everything Fedloom raises on purpose. The command line prints it without a traceback."""


class ConfigError(FedloomError, ValueError):
    """An option, recipe or combination that cannot be: unknown name, wrong type, impossible value."""


class NotSupported(ConfigError):
    """A method, engine, channel and federation that do not go together (refused before any work is done)."""


class DataError(FedloomError, ValueError):
    """Data that cannot be trained on: not finite, wrong shape, labels out of range, empty where it must not be."""


class MessageError(FedloomError, ValueError):
    """A message that cannot be sent or must not be accepted: wrong type, shape, checksum, or not finite."""


class CheckpointError(FedloomError):
    """A checkpoint that is missing, truncated, or belongs to another run."""


class DiskError(FedloomError, OSError):
    """A file that could not be written: the disk is full, or failing. The message says what to do."""


class MissingExtra(FedloomError, ImportError):
    """An optional dependency is not installed; the message names the extra."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'fedloom[{extra}]'")


class ClientFailure(FedloomError):
    """A client program raised. Carries where: `method`, `program`, `client`, `round`, and the payload's shapes."""

    def __init__(self, text: str, *, client: int, program: str, round: int) -> None:
        super().__init__(text)
        self.client, self.program, self.round = client, program, round

    def __reduce__(self) -> Any:  # it may have to come from another process
        return partial(ClientFailure, client=self.client, program=self.program, round=self.round), self.args


class RoundFailure(FedloomError):
    """A method's `round` raised; says where, and which replies of the round were unlike the others."""


class StateMutated(FedloomError):
    """A method changed a tensor of its state in place; states are shared with jobs that are still under way."""


class FedloomWarning(UserWarning):
    """Something the user should hear of that does not stop the run (a fallback, an exclusion)."""


def unknown(kind: str, given: object, accepted: Iterable[str], call: str = "") -> ConfigError:
    """An error for a name that is not known, with the nearest names that are."""
    names = sorted(accepted)
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = f" Known: {', '.join(names)}." if len(names) <= 40 or not (near or call) else ""  # few read so many
    return ConfigError(f"unknown {kind} {given!r}.{hint}{listed}{' ' + call if call else ''}")


class Declined(FedloomError):
    """Raise it in a client program to sit a job out: counted, and nothing of the job remains."""
