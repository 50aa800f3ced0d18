"""A disk that is full, for real: what was acknowledged stays, the rest is refused in words, and there is a way on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from disk import Disk, mountable

from fedloom.deploy import blobs as blobs_module
from fedloom.deploy.blobs import Blobs, CannotWrite, name_of
from fedloom.deploy.journal import Journal
from fedloom.deploy.store import Store


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    if not mountable():
        pytest.skip("a file system can be mounted by root alone")
    made = Disk(tmp_path / "disk", "300k")
    yield made
    made.close()


def test_a_journal_on_a_full_disk_says_so_and_goes_on_when_there_is_room(disk):
    journal, written = Journal(disk.folder / "journal.db"), 0

    def fill() -> None:
        nonlocal written
        for written in range(1000):
            journal.decide(f"fact {written}", "x" * 3000)

    with pytest.raises(CannotWrite, match=r"journal.db cannot be written: .*full.*make room"):
        fill()
    with pytest.raises(CannotWrite):  # and again, the same: not "a transaction within a transaction"
        journal.decide("more", "x" * 3000)
    assert all(journal.fact(f"fact {k}") for k in range(written))
    assert journal.fact(f"fact {written}") is None
    disk.resize("3m")
    assert journal.decide("after", 1) == 1
    journal.close()
    assert Journal(disk.folder / "journal.db").fact(f"fact {written - 1}")


def test_blobs_on_a_full_disk_leave_nothing_half_written(disk):
    blobs, body = Blobs(disk.folder), os.urandom(400_000)
    with pytest.raises(CannotWrite, match="No space left"):
        blobs.put(body)
    assert list(disk.folder.iterdir()) == []
    with pytest.raises(CannotWrite, match="No space left"):
        blobs.append(name_of(body), 0, body, len(body))
    here = blobs.received(name_of(body))
    assert 0 < here < len(body)
    disk.resize("3m")
    assert blobs.append(name_of(body), here, body[here:], len(body)) == len(body)
    assert blobs.get(name_of(body)) == body


def test_a_site_without_room_keeps_what_it_had(disk):
    store = Store(disk.folder)
    store.done("j1", 0, b"reply", {"n": 1}, {"eps": 0.5}, {})
    with pytest.raises(CannotWrite):
        store.done("j2", 0, os.urandom(400_000), {"n": 2}, {"eps": 0.5}, {})
    assert store.reply("j2") is None
    assert store.books() == {0: {"eps": 0.5}}
    assert store.memory(0, "j1") == {"n": 1}
    disk.resize("3m")
    store.done("j2", 0, b"reply 2", {"n": 2}, {"eps": 0.5}, {})
    assert store.memory(0, "j2") == {"n": 2}


def test_a_transaction_that_fails_leaves_nothing(tmp_path):
    journal = Journal(tmp_path / "journal.db")

    def half() -> None:
        with journal.transaction() as c:
            c.execute("INSERT INTO facts VALUES ('plan', '1')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert journal.fact("plan") is None
    assert journal.decide("plan", 2) == 2


def test_bytes_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    """What is synced is all of it: nothing waits in a buffer meanwhile."""
    synced: list[int] = []
    honest = blobs_module.sync
    monkeypatch.setattr(blobs_module, "sync", lambda f: (synced.append(os.fstat(f).st_size), honest(f)))
    blobs = Blobs(tmp_path)
    blobs.put(b"nine byte")
    blobs.append(name_of(b"twice five"), 0, b"twice five", 10)
    assert synced[0] == 9
    assert synced[2] == 10
