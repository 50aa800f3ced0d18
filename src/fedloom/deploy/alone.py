"""A folder is worked in by one process at a time."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedloom.errors import ConfigError

from .blobs import writing

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """Nobody else works in this folder meanwhile. However a process ends, the system lets go of what it held; where
    it knows no such locks (Windows, some network folders), nobody is kept out.

    Args:
        wait: until the other one is done, which is soon.

    Raises:
        ConfigError: another one does. CannotWrite: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(lock, folder, wait)
        yield
    finally:
        os.close(lock)


def _take(lock: int, folder: Path, wait: bool) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as e:
        if e.errno in _TAKEN:
            raise ConfigError(
                f"{folder} is in use: another `fedloom serve` or `fedloom join` works in it. Stop that one, and this "
                f"goes on from where it was; or choose another folder, --out"
            ) from None
