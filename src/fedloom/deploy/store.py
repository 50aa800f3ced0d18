"""What a site keeps: its clients' memories in two versions, its last replies, its books, its audit log.

A memory is named by the job that made it. `base` is the version the server last counted, `pending` what the last job
left; the next job names the version it starts from, and whichever has that name is it. An evaluation beside a job
under way changes neither. A reply, the book and the pending memory are one transaction, made before the first byte
leaves.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.errors import CheckpointError
from fedloom.written import load, pieces

from .blobs import Blobs
from .journal import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS memories (
    client INTEGER, kind TEXT, version TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (client, kind));
CREATE TABLE IF NOT EXISTS replies (job TEXT PRIMARY KEY, client INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS books (client INTEGER, name TEXT, amount REAL NOT NULL, PRIMARY KEY (client, name));
CREATE TABLE IF NOT EXISTS sums (client INTEGER PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS audit (place INTEGER PRIMARY KEY, entry TEXT NOT NULL, hash TEXT NOT NULL);
"""
_FIRST = "0" * 64


class MemoryLost(CheckpointError):
    """The server counts on a memory this site does not have: its disk was lost or put back."""


@dataclass(frozen=True)
class Entry:
    """One line of the audit log: what left, when, how large, under which plan; `hash` covers the line before too."""

    place: int
    what: dict[str, Any]
    hash: str


class Store(Database):
    """A site's folder.

    Args:
        folder: one site of one federation.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "site.db", _SCHEMA)
        self._connection.execute("PRAGMA secure_delete=ON")  # secrets that are done with are written over
        self.blobs = Blobs(folder / "blobs")

    def tidy(self) -> None:
        """What a kill left half done goes. For the process that works here; one that only looks must not."""
        if self.fact("joined") is not None:  # else it is new, or what names them is lost: then nothing goes for good
            self.blobs.keep(self._named())

    def decide(self, name: str, content: Any) -> Any:
        """Decide once: what was there first stays, and is returned."""
        self.write("INSERT OR IGNORE INTO facts VALUES (?, ?)", name, json.dumps(content))
        return json.loads(self.rows("SELECT content FROM facts WHERE name = ?", name)[0][0])

    def fact(self, name: str) -> Any:
        """What was decided under that name; None before."""
        found = self.rows("SELECT content FROM facts WHERE name = ?", name)
        return json.loads(found[0][0]) if found else None

    # ------------------------------------------------------------ memories
    def memory(self, client: int, version: str, *, read: bool = False) -> dict[str, Any]:
        """The memory a job starts from, by the name the server gave; from now on the base.

        Args:
            read: the job leaves none. All versions stay, as that of a job under way beside it may count yet.

        Raises:
            MemoryLost: neither version here has that name.
        """
        held = {kind: (name, body) for kind, name, body in self._versions(client)}
        found = next((held[kind] for kind in ("base", "pending") if kind in held and held[kind][0] == version), None)
        if found is not None or version == "":
            if not read:
                self._rebase(client, found)
            return {} if found is None else load(self.blobs.checked(found[1]))
        names = ", ".join(f"{kind} {name}" for kind, (name, _) in held.items()) or "none"
        raise MemoryLost(
            f"the coordinator counts on version {version} of the memory of client {client}, and this site has {names}. "
            f"Its folder {self.path.parent} was lost, or put back from an older copy; nothing was sent. Put the newest "
            f"copy back, or have the coordinator start the run anew"
        )

    def _versions(self, client: int) -> list[tuple[Any, ...]]:
        return self.rows("SELECT kind, version, body FROM memories WHERE client = ?", client)

    def _rebase(self, client: int, base: tuple[str, str] | None) -> None:
        """This version is the base and there is no other."""
        old = self._versions(client)
        if [(kind, name) for kind, name, _ in old] == ([] if base is None else [("base", base[0])]):
            return
        with self.transaction() as c:
            c.execute("DELETE FROM memories WHERE client = ?", (client,))
            if base is not None:
                c.execute("INSERT INTO memories VALUES (?, 'base', ?, ?)", (client, *base))
        self.sweep({body for _, _, body in old})

    def memories(self) -> dict[int, dict[str, dict[str, Any]]]:
        """client -> version -> content, for all that is kept."""
        found: dict[int, dict[str, dict[str, Any]]] = {}
        for client, version, body in self.rows("SELECT client, version, body FROM memories"):
            found.setdefault(client, {})[version] = load(self.blobs.checked(body))
        return found

    # ------------------------------------------------------------ replies
    def reply(self, job: str) -> str | None:
        """The bytes this job came to, if it was done before: the same job gets the same bytes again."""
        found = self.rows("SELECT body FROM replies WHERE job = ?", job)
        return found[0][0] if found else None

    def done(
        self,
        job: str,
        client: int,
        body: bytes | Sequence[bytes | memoryview],
        memory: Mapping[str, Any] | None,
        booked: Mapping[str, float],
        about: Any,
        sum: Mapping[str, Any] | None = None,
    ) -> str:
        """Commit 2: reply, book, pending memory and the line of the audit log, before the first byte leaves; and where
        its client stands in a secure sum, if it is part of one. The body is given whole or in pieces."""
        name = self.blobs.put(*([body] if isinstance(body, bytes) else body))
        pending = None if memory is None else self.blobs.put(*pieces(dict(memory)))
        old = {b for (b,) in self.rows("SELECT body FROM replies WHERE client = ?", client)}
        with self.transaction() as c:
            c.execute("DELETE FROM replies WHERE client = ?", (client,))
            c.execute("INSERT INTO replies (job, client, body) VALUES (?, ?, ?)", (job, client, name))
            if pending is not None:
                c.execute("INSERT OR REPLACE INTO memories VALUES (?, 'pending', ?, ?)", (client, job, pending))
            if sum is not None:
                c.execute("INSERT OR REPLACE INTO sums VALUES (?, ?)", (client, json.dumps(sum)))
            for entry, amount in booked.items():
                c.execute("INSERT OR IGNORE INTO books VALUES (?, ?, 0)", (client, entry))
                c.execute("UPDATE books SET amount = amount + ? WHERE client = ? AND name = ?", (amount, client, entry))
            size = self.blobs.size(name)
            self._note(c, {"left": "reply", "job": job, "client": client, "bytes": size, "sha256": name, **about})
        self.sweep(old)
        return name

    def sum(self, client: int) -> dict[str, Any] | None:
        """Where a client stands in its last secure sum; None if there was none."""
        found = self.rows("SELECT content FROM sums WHERE client = ?", client)
        return json.loads(found[0][0]) if found else None

    def books(self) -> dict[int, dict[str, float]]:
        found: dict[int, dict[str, float]] = {}
        for client, name, amount in self.rows("SELECT client, name, amount FROM books"):
            found.setdefault(client, {})[name] = amount
        return found

    def sweep(self, bodies: set[str]) -> None:
        """Of these bodies, those nothing names any more go."""
        self.blobs.drop(bodies - self._named())

    def _named(self) -> set[str]:
        return {body for (body,) in self.rows("SELECT body FROM memories UNION SELECT body FROM replies")}

    # ------------------------------------------------------------ what left this site
    def note(self, what: Mapping[str, Any]) -> None:
        """A line of the audit log, written before what it tells of."""
        with self.transaction() as c:
            self._note(c, what)

    def _note(self, c: Any, what: Mapping[str, Any]) -> None:
        found = c.execute("SELECT place, hash FROM audit ORDER BY place DESC LIMIT 1").fetchone()
        place, before = (found[0] + 1, found[1]) if found else (0, _FIRST)
        entry = json.dumps({"at": round(time.time(), 3), **what}, sort_keys=True)
        c.execute("INSERT INTO audit VALUES (?, ?, ?)", (place, entry, _chained(before, entry)))

    def audit(self) -> list[Entry]:
        """The log, checked from its beginning.

        Raises:
            CheckpointError: a line was changed, removed or put in between; says which is the first.
        """
        before, found = _FIRST, list[Entry]()
        for k, (place, entry, hash) in enumerate(self.rows("SELECT place, entry, hash FROM audit ORDER BY place")):
            if place != k or hash != _chained(before, entry):
                raise CheckpointError(
                    f"the audit log in {self.path} was changed: line {k} does not follow from the last"
                )
            found.append(Entry(place, json.loads(entry), hash))
            before = hash
        return found


def _chained(before: str, entry: str) -> str:
    return hashlib.sha256(f"{before}{entry}".encode()).hexdigest()
