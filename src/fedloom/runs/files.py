"""Files of a run: written whole, or the one before stays as it was; where the disk does not take them, that is said."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedloom.errors import ConfigError, DiskError


@contextmanager
def writing(path: Path, then: str) -> Iterator[None]:
    """Raises DiskError where the system says that it could not; `then` says what is there, and what to do."""
    try:
        yield
    except OSError as e:
        raise DiskError(f"could not write {path}: {e.strerror or e}. {then}") from None


def replace(path: Path, content: str | Sequence[bytes | memoryview], then: str) -> None:
    """Write a file whole, text or pieces: a kill or a full disk leaves the one before.

    Raises:
        DiskError: it could not be written; see `writing`.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path, then):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as f:
                f.writelines([content.encode()] if isinstance(content, str) else content)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, path)
    except DiskError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def held(folder: Path, then: str) -> Iterator[None]:
    """No other process works in this folder meanwhile. However this one ends, the system lets go of what it held, and
    processes it forked hold nothing; where there are no such locks (Windows, some network folders), nobody is kept out.

    Raises:
        ConfigError: another process does; `then` says what to do.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with writing(folder, "Nothing was changed there"):
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EAGAIN, errno.EACCES):
            os.close(lock)
            raise ConfigError(f"{folder} is in use: another process runs in it. {then}") from None
    try:
        yield
    finally:
        os.close(lock)
