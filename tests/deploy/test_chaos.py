"""Whatever dies and whatever the network does, the run is the undisturbed one; and the suite would notice if not."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

import chaos
import faults
import teams
from harness import Bench, Kill, Schedule
from network import RATES
from upsets import Upset

BLOBS, LINK = "fedloom.deploy.blobs:Blobs", "fedloom.deploy.link:Link"


@pytest.mark.parametrize("seed", range(14))
def test_a_dozen_schedules(seed):
    """`make chaos` runs two hundred."""
    done = chaos.one(chaos.KINDS[seed % len(chaos.KINDS)], seed)
    assert not done.trouble, done.trouble


DAMAGE = {**dict.fromkeys(RATES, 0.0), "hurt": 0.15, "back": 0.1, "head": 0.1}

PLANTED = {
    # the first reply of site "a" is one that does not count, so "b" dies
    "verdict_ignored": ("kills", Schedule()),
    "two_writes": ("kills", Schedule(sites={"b": [[Kill(f"{BLOBS}.put", 2)]]})),
    "memory_after_answer": ("kills", Schedule(sites={"b": [[Kill(f"{LINK}.reply", 1, after=True)]]})),
    "unjournaled_closing": ("late", Schedule(slow=0.5)),
    # a damaged network, a clock that is set while an exchange is open, a disk that is full when a reply comes again
    "sums_ignored": ("network", Schedule(network=2, rates=DAMAGE)),
    "hash_ignored": ("network", Schedule(network=2, rates={**DAMAGE, "hurt": 0.3})),
    "deadline_by_the_wall": (
        "unhurried",
        Schedule(slow=1.0, upsets=[Upset("jump", "server", at, hours=3.0) for at in (0.8, 1.6, 2.4)]),
    ),
    "said_before_it_is_kept": (
        "kills",
        Schedule(
            sites={"a": [[Kill(f"{LINK}._upload", 1, after=True)]]},
            upsets=[Upset("no room", "server", 0.0, lasts=1.0, after="a")],
        ),
    ),
    # somebody with a certificate that counts no more, or with one that was stolen
    "revocation_ignored": ("kills", Schedule(slow=1.0, upsets=[Upset("revoked", "a", 0.4, lasts=0.1)])),
    "anybodys_job": ("kills", Schedule(slow=0.5, upsets=[Upset("another's job", "b", 0.05)])),
    "no_limits": ("kills", Schedule(slow=0.5, upsets=[Upset("oversize", "b", 0.05)])),
    "one_at_a_time": ("kills", Schedule(slow=0.8, upsets=[Upset("slow body", "b", 0.05)])),
}
NOTICED = (
    r"differs|another|lost|counts on|no exchange|other figures|failed with|acknowledged|let in|accepted what|"
    r"not at its end"
)


# On a machine with other things to do the slow sender comes when all uploads are over.
_ALONE = {"one_at_a_time": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=_ALONE.get(name, ())) for name in PLANTED])
@pytest.mark.parametrize("planted", [False, True], ids=["honest", "planted"])
def test_the_suite_notices(name, planted, tmp_path):
    """The same schedule passes with the honest code, and fails with the mistake in it."""
    setting, schedule = PLANTED[name]
    bench = Bench(chaos.SETTINGS[setting](), tmp_path / "run", getattr(faults, name) if planted else None)

    def whole(seconds: float) -> None:
        bench.run(schedule, seconds)
        bench.check()

    if not planted:
        whole(90)
        return
    with pytest.raises(Exception, match=NOTICED):
        whole(15)


def test_the_suite_notices_work_that_a_dead_worker_took_along(tmp_path):
    assert teams.one(1, tmp_path / "honest")["killed pool worker"]
    with pytest.raises(AssertionError, match=r"another|Error"):
        teams.one(1, tmp_path / "planted", faults.lost_share)
