"""The server's journal: what was asked, what came back, and what counted; on the disk before it is said.

Write-ahead logging with full syncing: when a method of `Journal` returns, a power cut changes nothing of it. Bodies are
blobs; the journal names them. A run that was killed is run again from its checkpoint over this journal: the exchanges
it asks for have the same names, so their jobs are here, their replies are here, and a closing is never made twice.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.errors import CheckpointError

from .blobs import CannotWrite

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS declarations (site TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, exchange TEXT NOT NULL, place INTEGER NOT NULL, site TEXT NOT NULL,
    round INTEGER NOT NULL, payload TEXT NOT NULL, header TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_exchange ON jobs (exchange, place);
CREATE INDEX IF NOT EXISTS by_round ON jobs (round);
CREATE TABLE IF NOT EXISTS replies (job TEXT PRIMARY KEY, body TEXT NOT NULL, refused TEXT, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS closings (
    place INTEGER PRIMARY KEY, exchange TEXT NOT NULL UNIQUE, round INTEGER NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (job TEXT, place INTEGER, body TEXT NOT NULL, PRIMARY KEY (job, place));
"""
_CLOSE = "INSERT OR IGNORE INTO closings (exchange, round, content) VALUES (?, ?, ?)"


@dataclass(frozen=True)
class Written:
    """A job in the journal: `header` is what its site is handed."""

    id: str
    exchange: str
    site: str
    round: int
    payload: str
    header: dict[str, Any]


@dataclass(frozen=True)
class Replied:
    """A reply in the journal: the name of its body, or why it was refused.

    Attributes:
        at: when, by the clock on the wall, which may jump; `place`: the order in which they were written down.
    """

    job: str
    body: str
    refused: str | None
    at: float
    place: int


class Database:
    """SQLite with every commit synced; one connection, used by one thread at a time.

    Raises:
        CannotWrite: no room for it. CheckpointError: what lies there is something else, or damaged.
    """

    def __init__(self, path: Path, schema: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(schema)
        except sqlite3.DatabaseError as e:
            if isinstance(e, sqlite3.OperationalError):
                raise CannotWrite(path, e) from None
            raise CheckpointError(f"{path} cannot be read: {e}. It is damaged, or not one of Fedloom's") from None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing.

        Raises:
            CannotWrite: nothing of it is on the disk, as there was no room for it.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as e:
                if self._connection.in_transaction:  # some failures have rolled it back already
                    self._connection.execute("ROLLBACK")
                if isinstance(e, sqlite3.OperationalError):
                    raise CannotWrite(self.path, e) from None
                if isinstance(e, sqlite3.DatabaseError):
                    raise CheckpointError(f"{self.path} cannot be read: {e}. It is damaged") from None
                raise

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.OperationalError as e:
                raise CannotWrite(self.path, e) from None  # to read needs room, too
            except sqlite3.DatabaseError as e:
                raise CheckpointError(f"{self.path} cannot be read: {e}. It is damaged") from None

    def write(self, query: str, *values: Any) -> None:
        with self.transaction() as c:
            c.execute(query, values)

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class Journal(Database):
    """The server's. All methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA)

    # ------------------------------------------------------------ what was agreed
    def fact(self, name: str) -> Any:
        """What was decided under that name; None before."""
        found = self.rows("SELECT content FROM facts WHERE name = ?", name)
        return json.loads(found[0][0]) if found else None

    def decide(self, name: str, content: Any) -> Any:
        """Decide once: what was there first stays, and is returned."""
        self.write("INSERT OR IGNORE INTO facts VALUES (?, ?)", name, json.dumps(content))
        return self.fact(name)

    def declare(self, site: str, content: dict[str, Any]) -> dict[str, Any]:
        """What a site says of its data, once."""
        self.write("INSERT OR IGNORE INTO declarations VALUES (?, ?)", site, json.dumps(content, sort_keys=True))
        return self.declarations()[site]

    def declarations(self) -> dict[str, dict[str, Any]]:
        return {site: json.loads(text) for site, text in self.rows("SELECT site, content FROM declarations")}

    # ------------------------------------------------------------ an exchange
    def open(self, jobs: Sequence[Written]) -> None:
        """Commit 1: an exchange's jobs, before any of them is handed out."""
        with self.transaction() as c:
            c.executemany(
                "INSERT OR IGNORE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(j.id, j.exchange, k, j.site, j.round, j.payload, json.dumps(j.header)) for k, j in enumerate(jobs)],
            )

    def job(self, id: str) -> Written | None:
        found = self.rows("SELECT id, exchange, site, round, payload, header FROM jobs WHERE id = ?", id)
        if not found:
            return None
        id, exchange, site, round, payload, header = found[0]
        return Written(id, exchange, site, round, payload, json.loads(header))

    def reply(self, job: str, body: str, refused: str | None, at: float) -> Replied:
        """Commit 3: a reply, before its answer. The first one stays."""
        self.write("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", job, body, refused, at)
        return self.replies([job])[job]

    def replies(self, jobs: Sequence[str]) -> dict[str, Replied]:
        found: dict[str, Replied] = {}
        for k in range(0, len(jobs), 500):
            part = list(jobs[k : k + 500])
            marks = ",".join("?" * len(part))
            asked = f"SELECT job, body, refused, at, rowid FROM replies WHERE job IN ({marks})"
            found |= {row[0]: Replied(*row) for row in self.rows(asked, *part)}
        return found

    def close_exchange(self, exchange: str, round: int, content: dict[str, Any]) -> dict[str, Any]:
        """Commit 4: which replies came in, and when, before the method sees any."""
        self.write(_CLOSE, exchange, round, json.dumps(content))
        closing = self.closing(exchange)
        assert closing is not None
        return closing

    def closing(self, exchange: str) -> dict[str, Any] | None:
        found = self.rows("SELECT content FROM closings WHERE exchange = ?", exchange)
        return json.loads(found[0][0]) if found else None

    def closings(self) -> dict[str, dict[str, Any]]:
        """All of them by exchange, in the order they were made."""
        return {e: json.loads(text) for e, text in self.rows("SELECT exchange, content FROM closings ORDER BY place")}

    # ------------------------------------------------------------ questions in mid-job
    def answer(self, job: str, place: int, body: str, exchange: str, round: int, content: dict[str, Any]) -> str:
        """The answer to a job's question number `place`, and from which state it came (a closing), in one: the first
        one stays, as the job may be run again.
        """
        with self.transaction() as c:
            c.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (job, place, body))
            c.execute(_CLOSE, (exchange, round, json.dumps(content)))
        return self.rows("SELECT body FROM answers WHERE job = ? AND place = ?", job, place)[0][0]

    def answers(self, job: str) -> list[str]:
        """Names of all answers a job was given."""
        return [body for (body,) in self.rows("SELECT body FROM answers WHERE job = ?", job)]

    def answered(self, job: str, place: int) -> str | None:
        found = self.rows("SELECT body FROM answers WHERE job = ? AND place = ?", job, place)
        return found[0][0] if found else None

    # ------------------------------------------------------------ what may go
    def unnamed(self, body: str | None) -> list[str]:
        """This body, if nothing here names it; else none."""
        named = "SELECT 1 FROM replies WHERE body = ? UNION SELECT 1 FROM jobs WHERE payload = ?"
        named += " UNION SELECT 1 FROM answers WHERE body = ?"
        return [] if body is None or self.rows(named, body, body, body) else [body]

    def bodies(self) -> set[str]:
        """All that are named here."""
        named = "SELECT payload FROM jobs UNION SELECT body FROM replies UNION SELECT body FROM answers"
        return {body for (body,) in self.rows(named)}

    def outlived(self, round: int) -> list[str]:
        """Bodies that no round from `round` on needs; their rows go, closings stay."""
        if not self.rows("SELECT 1 FROM jobs WHERE round < ? LIMIT 1", round):
            return []
        with self.transaction() as c:
            old = "SELECT id FROM jobs WHERE round < ?"
            bodies = {b for (b,) in c.execute(f"SELECT body FROM replies WHERE job IN ({old})", (round,))}
            bodies |= {b for (b,) in c.execute(f"SELECT body FROM answers WHERE job IN ({old})", (round,))}
            bodies |= {b for (b,) in c.execute("SELECT payload FROM jobs WHERE round < ?", (round,))}
            c.execute(f"DELETE FROM replies WHERE job IN ({old})", (round,))
            c.execute(f"DELETE FROM answers WHERE job IN ({old})", (round,))
            c.execute("DELETE FROM jobs WHERE round < ?", (round,))
            bodies -= {b for (b,) in c.execute("SELECT payload FROM jobs")}
            bodies -= {b for (b,) in c.execute("SELECT body FROM replies UNION SELECT body FROM answers")}
        return sorted(bodies)
