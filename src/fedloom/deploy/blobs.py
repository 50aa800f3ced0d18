"""Bytes by the hash of their content: written whole and synced, or not at all; transfers go on where they stopped."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedloom.errors import FedloomError, MessageError


class CannotWrite(FedloomError):
    """The disk does not take what must be kept: it is full, or failing. What was acknowledged before is on it."""

    def __init__(self, where: Path, why: object) -> None:
        super().__init__(
            f"{where} cannot be written: {why}. Nothing that was acknowledged is lost; make room, and the same command "
            f"goes on from here"
        )


class NotHere(MessageError):
    """Bytes that are asked for by name, and are not here (any more)."""


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """Raises CannotWrite where the system says that it could not."""
    try:
        yield
    except OSError as e:
        raise CannotWrite(where, e.strerror or e) from None


def name_of(*parts: bytes | memoryview) -> str:
    """The name of these bytes: SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def name_of_file(path: Path) -> str:
    """The name of what is in a file; it need not fit into memory."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def is_name(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


class Blobs:
    """A folder of synced files, each named by the hash of its content.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._one = threading.Lock()  # the same piece may come twice at the same time
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: str) -> bool:
        return self.path(name).exists()

    def path(self, name: str) -> Path:
        """Where it lies, or would.

        Raises:
            MessageError: not a name; nothing outside the folder can be named.
        """
        if not is_name(name):
            raise MessageError(f"{name[:80]!r} is not the hash of anything")
        return self.folder / name

    def put(self, *parts: bytes | memoryview) -> str:
        """Keep these bytes, given whole or in pieces; they are on the disk when this returns.

        Raises:
            CannotWrite: they could not be.
        """
        name = name_of(*parts)
        if name not in self:
            with writing(self.folder):
                handle, partial = tempfile.mkstemp(".partial", "put-", self.folder)
                try:
                    with os.fdopen(handle, "wb") as f:
                        f.writelines(parts)
                        f.flush()
                        sync(f.fileno())
                    self._place(Path(partial), name)
                except OSError:
                    Path(partial).unlink(missing_ok=True)  # half of it would only fill the disk more
                    raise
        return name

    def get(self, name: str) -> bytes:
        """The bytes of that name.

        Raises:
            MessageError: not here, or damaged since they were written.
        """
        try:
            data = self.path(name).read_bytes()
        except FileNotFoundError:
            raise NotHere(f"no bytes of the name {name} in {self.folder}") from None
        if name_of(data) != name:
            raise MessageError(f"{self.path(name)} is damaged: its content does not have the hash it is named by")
        return data

    def checked(self, name: str) -> Path:
        """Where the bytes of that name lie, looked at and found whole; `get` for what does not fit into memory.

        Raises:
            MessageError: as `get`.
        """
        path = self.path(name)
        try:
            found = name_of_file(path)
        except FileNotFoundError:
            raise NotHere(f"no bytes of the name {name} in {self.folder}") from None
        if found != name:
            raise MessageError(f"{path} is damaged: its content does not have the hash it is named by")
        return path

    def size(self, name: str) -> int:
        """Bytes of what is here."""
        return self.path(name).stat().st_size

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def keep(self, names: Iterable[str], transfers: bool = False) -> None:
        """Only these; what else is here goes. With `transfers` the unfinished ones go on where they stopped."""
        kept = set(names)
        for path in self.folder.iterdir():
            under_way = transfers and is_name(path.name.partition(".")[0]) and path.suffix == ".partial"
            if path.name not in kept and not under_way:
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------ piece by piece
    def received(self, name: str, owner: str = "") -> int:
        """How many bytes of an unfinished transfer are here."""
        partial = self._partial(name, owner)
        return partial.stat().st_size if partial.exists() else 0

    def forget(self, name: str, owner: str = "") -> None:
        """An unfinished transfer begins anew."""
        self._partial(name, owner).unlink(missing_ok=True)

    def append(self, name: str, offset: int, chunk: bytes, size: int, owner: str = "") -> int:
        """The next piece of a transfer; one that does not begin where the last ended changes nothing.

        Args:
            name: what all of it will hash to; `size` its length.
            owner: whose transfer; two owners do not write into one file, and an owner has one at a time.

        Returns:
            how many bytes are here; `size` when it is whole and kept.

        Raises:
            MessageError: the whole does not hash to its name; what was received is thrown away.
            CannotWrite: this piece could not be kept; those before it were.
        """
        with self._one, writing(self.folder):
            return size if name in self else self._append(name, offset, chunk, size, owner)

    def _append(self, name: str, offset: int, chunk: bytes, size: int, owner: str) -> int:
        partial = self._partial(name, owner)
        here = self.received(name, owner)
        if offset == here == 0:
            for other in self.folder.glob(f"{'?' * 64}.{owner or 'mine'}.partial"):  # names of owners hold dots, too
                other.unlink(missing_ok=True)
        if offset == here < size:
            with open(partial, "ab") as f:
                f.write(chunk)
                f.flush()
                sync(f.fileno())
            here += len(chunk)
        if here >= size:  # or it was all there before a kill
            self._finish(partial, name)
        return here

    def _finish(self, partial: Path, name: str) -> None:
        if name_of_file(partial) != name:
            partial.unlink()
            raise MessageError("the bytes received do not have the hash they were announced by; send them again")
        self._place(partial, name)

    def _partial(self, name: str, owner: str) -> Path:
        path = self.path(name)
        return path.with_name(f"{path.name}.{owner or 'mine'}.partial")

    def _place(self, partial: Path, name: str) -> None:
        os.replace(partial, self.path(name))
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            sync(handle)
        finally:
            os.close(handle)


def sync(handle: int) -> None:
    """To the disk, now. A system that cannot (some network folders) is not asked again."""
    with contextlib.suppress(InterruptedError):
        os.fsync(handle)
