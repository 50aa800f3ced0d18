"""Secure sums between real sites: the same run, whoever is killed in whichever phase; and what a site refuses."""

from __future__ import annotations

import json
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("starlette")

import dropping
from harness import Bench, Kill, Schedule, Setting

from fedloom.channel.secure import Secure
from fedloom.channel.secure.protocol import KEYS, PHASES, SHARES, UNMASK, Circle, Keys, unmasked
from fedloom.channel.secure.ring import Form, read
from fedloom.deploy import Authority, Policy, Refused, Store, Terms
from fedloom.deploy.agreement import Offer
from fedloom.deploy.partner import Partner, Unsafe
from fedloom.deploy.signing import Forged, Identity
from fedloom.deploy.wire import Reply
from fedloom.engines.base import Job
from fedloom.errors import NotSupported
from fedloom.message import Message
from fedloom.runs import Recipe

FIVE = ("a", "b", "c", "d", "e")


def setting(method: str = "fedavg", **more: Any) -> Setting:
    recipe = {"channel": ("secure",), **more.pop("recipe", {})}
    return Setting(method, **{"rounds": 2, "tls": False, **more}, recipe=recipe)


# ---------------------------------------------------------------- the same run


@pytest.mark.parametrize(
    "made",
    [
        setting(tls=True),
        setting("scaffold", sites=("a", "b"), terms={"names": {"a": 2, "b": 1}}),
        setting("counting:Counting", rounds=3),  # one reply of each round is unlike the others
        setting("adafed", recipe={"channel": ("secure:rounding=stochastic",)}),  # weights are numbers in replies
        setting("heterofl", recipe={"model": "mlp:8,dim=6"}, test=True),  # replies are parts of the model
    ],
    ids=["tls", "several", "odd", "weights", "parts"],
)
def test_equal_to_the_local_engine_bit_for_bit(made, tmp_path):
    bench = Bench(made, tmp_path)
    bench.run(Schedule())
    bench.check()
    assert not bench.saved()["rows"][-1]["excluded"] or made.method == "counting:Counting"


# ---------------------------------------------------------------- whoever dies

STORE, LINK, JOURNAL = "fedloom.deploy.store:Store", "fedloom.deploy.link:Link", "fedloom.deploy.journal:Journal"


def test_sites_killed_in_every_phase(tmp_path):
    """Before its outcome is on the disk and after; before it is sent, and after it was taken."""
    bench = Bench(setting("scaffold"), tmp_path)

    def around(point: str) -> list[list[Kill]]:
        """Every life ends at what the one before it did not get done."""
        return [[Kill(point, 1, after)] for _ in PHASES for after in (False, True)]

    bench.run(Schedule(sites={"a": around(f"{STORE}.done"), "b": around(f"{LINK}.reply")}))
    assert bench.counts["killed site"] == 16
    bench.check()


def test_a_coordinator_killed_around_every_decision(tmp_path):
    """Keys, shares, input, unmask, and the two that end the sum: before it is on the disk, and after."""
    bench = Bench(setting("scaffold"), tmp_path)
    deaths = [[Kill(f"{JOURNAL}.close_exchange", 1, after)] for _ in range(6) for after in (False, True)]
    deaths += [[Kill(f"{JOURNAL}.reply", k), Kill(f"{JOURNAL}.open", 1, after=True)] for k in (1, 2, 3)]
    bench.run(Schedule(server=deaths))
    assert bench.counts["killed server"] == 15
    bench.check()


@pytest.mark.parametrize("planted", [False, True], ids=["honest", "planted"])
def test_the_suite_notices_a_secret_that_is_written_too_late(planted, tmp_path):
    bench = Bench(setting(rounds=1), tmp_path, dropping.secret_after_answer if planted else None)
    bench.run(Schedule(sites={"b": [[Kill(f"{LINK}.reply", 1, after=True)]]}))
    if not planted:
        bench.check()
        return
    with pytest.raises(AssertionError, match=r"another model|other figures"):
        bench.check()


def test_the_coordinator_s_own_certificate_signs_for_no_site(tmp_path):
    """Not for one that has its name, either."""
    authority = Authority.init(tmp_path / "certs")
    site = Identity(authority.issue("coordinator"))
    for kind in ("pem", "key"):
        (authority.folder / f"site.{kind}").write_bytes((authority.folder / f"server.{kind}").read_bytes())
    site.check("coordinator", "text", site.signed("text"))
    with pytest.raises(Forged):
        site.check("coordinator", "text", Identity(authority.folder).signed("text"))


# ---------------------------------------------------------------- whoever is lost


@pytest.mark.parametrize("phase", PHASES)
def test_a_site_lost_in_any_phase(phase, tmp_path):
    """Five sites, of which four are enough."""
    bench = Bench(setting(sites=FIVE), tmp_path, partial(dropping.in_phase, phase, ("c",), dropping.refuses))
    bench.run(Schedule())
    run = bench.replayed()  # the same, without masks
    assert [row["excluded"] for row in bench.saved()["rows"]] == ([0, 0] if phase == UNMASK else [1, 1])
    assert not torch.equal(run.state.params, run.plan.model.initial())


@pytest.mark.parametrize("phase", ["input", UNMASK])
def test_a_site_that_is_late(phase, tmp_path):
    """It is lost as well: what comes after the deadline is not taken."""
    late = partial(dropping.in_phase, phase, ("c",), dropping.dawdles)
    made = setting(sites=FIVE, terms={"deadline": 1.0, "quorum": 4}, recipe={"channel": ("secure:0.6",)}, rounds=1)
    bench = Bench(made, tmp_path, late)
    bench.run(Schedule())
    bench.check()
    (row,) = bench.saved()["rows"]
    assert row["excluded"] >= (phase == "input")
    assert not torch.equal(bench.saved()["state"].params, bench.replayed().plan.model.initial())


@pytest.mark.parametrize("phase", PHASES)
def test_one_more_and_there_is_no_sum(phase, tmp_path):
    lossy = partial(dropping.in_phase, phase, ("c", "e"), dropping.refuses)
    bench = Bench(setting(sites=FIVE), tmp_path, lossy)
    bench.run(Schedule())
    run, rows = bench.replayed(), bench.saved()["rows"]
    assert torch.equal(run.state.params, run.plan.model.initial())
    assert [row["excluded"] for row in rows] == [5, 5]
    assert any(
        f"no secure sum: 3 of 5 clients came through the phase {phase!r}" in why for why in rows[0]["exclusions"]
    )
    assert not bench.saved()["memories"]


def test_a_reply_that_is_not_masked_is_left_out(tmp_path):
    bench = Bench(setting(sites=FIVE), tmp_path, partial(dropping.sends_unmasked, "b"))
    bench.run(Schedule())
    bench.replayed()
    assert bench.saved()["rows"][0]["exclusions"] == {"its reply is not masked": 1}


def test_shares_that_are_others_spoil_the_sum_and_are_noticed(tmp_path):
    lying = partial(dropping.shows_other_shares, "b")
    bench = Bench(setting(sites=FIVE), tmp_path, lying)
    bench.run(Schedule())
    bench.replayed()
    (why,) = bench.saved()["rows"][0]["exclusions"]
    assert "do not give what it committed to" in why


# ---------------------------------------------------------------- what a site refuses

NAMES = ("a", "b", "c")
E = "0" * 32


class Circled:
    """Three sites and a server of one's own: what it asks is up to the test."""

    def __init__(self, folder: Path, certs: bool = False, least: int = 0) -> None:
        terms, authority = Terms(names=list(NAMES)), Authority.init(folder / "certs") if certs else None
        self.partners = {
            u: Partner(
                Secure(), Store(folder / name), terms, name, "plan", least,
                Identity(authority.issue(name)) if authority else None,
            )
            for u, name in enumerate(NAMES)
        }  # fmt: skip
        self.said: dict[str, dict[int, Any]] = {}

    def ask(self, u: int, phase: str, exchange: str = E, number: int | None = None, **payload: Any) -> Message:
        """One site's answer, kept as a site keeps it."""
        number = u if number is None else number
        given = {"client": u, "number": number, "id": f"{phase} {u}", "secure": {"phase": phase, "exchange": exchange}}
        reply, row = self.partners[u].answer(given, Message(payload))
        self.keep(u, f"{phase} {u}", reply, row)
        assert reply.message is not None
        return reply.message

    def keep(self, u: int, id: str, reply: Reply, row: Any) -> None:
        self.partners[u].store.done(id, u, reply.dumps(), None, {}, {}, row)

    def opening(self, **more: Any) -> dict[str, Any]:
        jobs = {u: f"job {u}" for u in range(3)}
        return {"asked": [0, 1, 2], "threshold": 2, "weight": None, "jobs": jobs, **more}

    def until(self, phase: str) -> Circled:
        """All phases before that one, as they should be."""
        keys = {u: self.ask(u, KEYS, **self.opening()) for u in self.partners}
        self.roster = {u: {**dict(k), "client": u} for u, k in keys.items()}
        if phase == SHARES:
            return self
        self.sealed = {u: dict(self.ask(u, SHARES, roster=self.roster).sealed) for u in self.partners}
        if phase == "input":
            return self
        self.words = {u: self.input(u) for u in self.partners}
        return self

    def input(self, u: int, alive: Any = (0, 1, 2), id: str = "", samples: int = 2) -> Any:
        about = {"phase": "input", "exchange": E, "alive": list(alive)}
        given = {"client": u, "number": u, "id": id or f"job {u}", "secure": about}
        job = Job(u, u, "local", Message(), (), {}, samples=samples)
        row = self.partners[u].begun(given, job, 2)
        reply = self.partners[u].masked(row, Reply(message=Message(x=torch.full((4,), u + 1.0), n=float(u))), job)
        self.keep(u, given["id"], reply, row)
        assert reply.message is not None
        return reply.message.masked

    def ballot(self, u: int, survivors: Any) -> dict[str, Any]:
        return {"survivors": list(survivors), "sealed": {v: self.sealed[v][u] for v in self.sealed}}


def test_a_sum_of_three(tmp_path):
    table = Circled(tmp_path, certs=True).until(UNMASK)
    shown = {u: table.ask(u, UNMASK, **table.ballot(u, (0, 1))).shown for u in (0, 1)}
    circle = Circle(E, 2, {u: Keys.read(k) for u, k in table.roster.items()})
    total = table.words[0].vector(48) + table.words[1].vector(48)
    total = unmasked(total, circle, [0, 1, 2], [0, 1], shown)
    values, weight = read(Form(table.words[0].form), total, Secure().step, 48, 1.0)
    assert weight == 4
    assert torch.equal(values["x"], torch.full((4,), 6.0))
    assert values["n"] == 2
    # what is kept afterwards opens nothing
    assert "secret" not in json.dumps(table.partners[0].store.sum(0))


@pytest.mark.parametrize(
    ("phase", "call", "why"),
    [
        (SHARES, lambda t: t.ask(0, KEYS, **t.opening()), "was begun before"),
        (SHARES, lambda t: t.ask(1, KEYS, "1" * 32, 0, **t.opening()), "is older than"),
        (SHARES, lambda t: t.ask(0, KEYS, "1" * 32, 5, **t.opening(threshold=1)), "by the plan it takes 2"),
        (SHARES, lambda t: t.ask(0, KEYS, "1" * 32, 5, **t.opening(asked=[0, 1, 1])), "by the plan"),
        (SHARES, lambda t: t.ask(0, KEYS, "1" * 32, 5), "malformed"),
        (SHARES, lambda t: t.ask(0, UNMASK), "is not the next"),
        (SHARES, lambda t: t.ask(0, "more"), "is not the next"),
        (SHARES, lambda t: t.ask(0, SHARES, "1" * 32, roster=t.roster), "knows nothing"),
        (SHARES, lambda t: t.ask(0, SHARES, roster={0: t.roster[0]}), "1 clients the roster of"),
        (SHARES, lambda t: t.ask(0, SHARES, roster={**t.roster, 0: t.roster[1]}), "other keys in this client's name"),
        (SHARES, lambda t: t.input(0), "is not the next"),
        ("input", lambda t: t.ask(0, SHARES, roster=t.roster), "was done before"),
        ("input", lambda t: t.input(0, alive=(0,)), "1 clients in"),
        ("input", lambda t: t.input(0, alive=(1, 2)), "another than the one its keys were made for"),
        ("input", lambda t: t.input(0, id="other"), "another than the one its keys were made for"),
        ("input", lambda t: t.input(0, samples=3), "another than the one its keys were made for"),
        ("input", lambda t: t.input(0, alive=(0, 1, 7)), "not on its roster"),
        (UNMASK, lambda t: t.input(0), "was done before"),
        (UNMASK, lambda t: t.ask(0, UNMASK, **t.ballot(0, (0,))), "1 clients in"),
        (UNMASK, lambda t: t.ask(0, UNMASK, **t.ballot(0, (1, 2))), "not among those"),
        (UNMASK, lambda t: t.ask(0, UNMASK, **t.ballot(0, (0, 1, 5))), "not among those"),
    ],
)  # fmt: skip
def test_what_a_site_refuses(phase, call, why, tmp_path):
    table = Circled(tmp_path).until(phase)
    with pytest.raises(Unsafe, match=why):
        call(table)


def test_a_site_shows_one_share_of_each_once(tmp_path):
    """The other ballot, in which somebody who is there is said to be lost, would show both."""
    table = Circled(tmp_path).until(UNMASK)
    table.ask(0, UNMASK, **table.ballot(0, (0, 1, 2)))
    with pytest.raises(Unsafe, match="was done before"):
        table.ask(0, UNMASK, **table.ballot(0, (0, 1)))


def test_nothing_leaves_unmasked(tmp_path):
    table = Circled(tmp_path).until("input")
    with pytest.raises(Unsafe, match="masked, or not at all"):
        table.partners[0].begun({"client": 0, "id": "job 0"}, Job(0, 0, "local", Message(), (), {}), 2)


def _of_no_version(certificate: str) -> str:
    body = ssl.PEM_cert_to_DER_cert(certificate)
    return ssl.DER_cert_to_PEM_cert(body.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x1f", 1))


def test_a_roster_is_signed_by_the_sites_on_it(tmp_path):
    table = Circled(tmp_path / "one", certs=True).until(SHARES)
    other = Circled(tmp_path / "other", certs=True).until(SHARES)
    assert table.ask(1, SHARES, roster=table.roster)
    forged = [
        {**table.roster[1], "signature": "00"},
        {k: v for k, v in table.roster[1].items() if k != "certificate"},
        other.roster[1],  # of another authority
        {**table.roster[2], "client": 1},  # another's, in its name
        {**table.roster[1], "mask": table.roster[2]["mask"]},
        {**table.roster[1], "certificate": _of_no_version(table.roster[1]["certificate"])},
    ]
    for entry in forged:
        with pytest.raises(Forged, match="not signed with a certificate of b"):
            table.ask(0, SHARES, roster={**table.roster, 1: entry})


@pytest.mark.parametrize(("least", "fine"), [(1, True), (2, False)])
def test_fewer_partners_than_the_policy_are_refused_in_every_phase(least, fine, tmp_path):
    for phase, call in (
        (SHARES, lambda t: t.ask(0, SHARES, roster={u: t.roster[u] for u in (0, 1)})),
        ("input", lambda t: t.input(0, alive=(0, 1))),
        (UNMASK, lambda t: t.ask(0, UNMASK, **t.ballot(0, (0, 1)))),
    ):
        table = Circled(tmp_path / phase, least=least).until(phase)
        if fine:
            call(table)
            continue
        with pytest.raises(Unsafe, match=r"1 other sites .* policy is 2 at least \(least_partners\)"):
            call(table)


def _offer(names: Any = "abc", **recipe: Any) -> Offer:
    names = list(names) if isinstance(names, str) else names
    return Offer.of(Recipe(**{"method": "fedavg", "rounds": 5, **recipe}), Terms(names=names))


def test_policies_of_partners():
    with pytest.raises(Refused, match="no secure sums in the channel"):
        Policy(least_partners=1).check(_offer())
    with pytest.raises(Refused, match="no more than 1 other sites"):
        Policy(least_partners=2).check(_offer(channel=("secure",)))
    with pytest.raises(Refused, match="no more than 1 other sites"):
        Policy(least_partners=2).check(_offer({"a": 5, "b": 5}, channel=("secure",)))
    Policy(least_partners=2).check(_offer(channel=("secure:1.0",)))
    Policy(least_partners=3).check(_offer("abcdef", channel=("clip:1", "secure")))


def test_methods_that_read_single_replies_are_refused():
    for method in ("fedbuff", "dfedavgm"):
        with pytest.raises(NotSupported):
            setting(method).local()
        with pytest.raises(NotSupported):  # before anybody has joined
            _offer(method=method, channel=("secure",))
