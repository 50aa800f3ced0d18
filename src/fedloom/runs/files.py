"""Files of a run: written whole, or the one before stays as it was; where the disk does not take them, that is said."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedloom.errors import DiskError


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
