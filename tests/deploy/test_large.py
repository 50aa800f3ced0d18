"""A model that is large beside everything else: held once or twice, and sent on from where a transfer was cut."""

from __future__ import annotations

import gc
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from desk import Desk

from benchmarks import sites
from fedloom.deploy.blobs import Blobs
from fedloom.deploy.link import Link

MB = 1_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_bounded_memory_and_a_transfer_that_goes_on_where_it_was_cut():
    found = sites.trip("turned", sites.TRIPS["the model turned round"], "mlp:2000,8000", cut=30 * MB, rounds=1)
    size = found["model bytes"]
    assert size > 60 * MB
    for way in ("down", "up"):
        due, carried = found["bytes"][way], found["through the connection"][way]
        assert found["cut at"][way] < size
        assert due <= carried < due + 10 * MB, "begun anew, it would be 30 MB more"
    for process in ("server", "site"):
        taken = found[process]
        assert taken["peak"] - taken["before"] < 3 * size + 50 * MB, f"{process}: its network, a model, and another"


def test_pieces_that_were_sent_do_not_wait_for_the_collector(tmp_path):
    """Neither at the site nor at the coordinator, and not where the connection was cut."""
    piece = 200_000
    desk = Desk(tmp_path, largest=2.0, piece=piece / MB)
    try:
        job = next(filter(None, iter(desk.joined()[0].next_job, None)))
        blobs = Blobs(tmp_path / "out")
        body = blobs.put(bytes(8 * piece))
        with sites.Cutting(int(desk.serving.url.rpartition(":")[2]), at=3 * piece) as proxy:
            link = Link(f"http://127.0.0.1:{proxy.port}", "a", None, patience=5)
            link.plan = desk.serving.service.plan
            with Unreachable() as found:
                assert link.reply(job["id"], body, blobs, piece)["taken"] == "refused"
            link.close()
        assert proxy.cuts["up"] >= 3 * piece
        assert [type(holder) for holder in found.of(piece // 2)] == []
    finally:
        desk.close()


class Unreachable:
    """What came to be in the block that only the cycle collector could free."""

    def __enter__(self) -> Unreachable:
        gc.collect()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        gc.enable()
        self.objects = gc.garbage[:]
        gc.garbage.clear()

    def of(self, size: int) -> list[object]:
        """Those of them that hold so many bytes."""

        def large(x: object) -> bool:
            return isinstance(x, bytes | bytearray) and len(x) >= size

        return [o for o in self.objects if any(map(large, gc.get_referents(o)))]
