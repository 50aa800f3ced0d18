"""Secure sums: exact in their ring, hidden under masks, and there whoever drops out, up to a number."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")
pytest.importorskip("Crypto")

from test_runs import params, run, uniform

import fedloom as fl
from fedloom.channel import Channel, Secure, parse_stage
from fedloom.channel.compression import top_k
from fedloom.channel.secure import masks
from fedloom.channel.secure.protocol import PHASES, Circle, Gone, Keys, NoSum, Party, TooFew, secure_sum, unmasked
from fedloom.channel.secure.ring import NUMBER, Form, Masked, read, vector_of
from fedloom.channel.secure.shamir import combine, split
from fedloom.channel.stage import Sender
from fedloom.engines.fold import Fold, as_sent, divided
from fedloom.engines.secured import plainly, secured
from fedloom.errors import ConfigError, MessageError, NotSupported
from fedloom.keyed import generator
from fedloom.message import At, Covered, Message, leaves, once, opened
from fedloom.method import catalogue
from fedloom.testing.trial import Trial


def secret(k: int) -> bytes:
    return bytes([k]) * 32


def sender(k: int = 0) -> Sender:
    return Sender(k, {}, lambda purpose: generator(purpose, k))


def on_grid(stage: Secure, message: Message, k: int = 0) -> Message:
    return opened(stage.encode(message, sender(k)))


def draw(k: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=generator("test", k))


# ---------------------------------------------------------------- shares


@settings(max_examples=10, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.integers(2, 4), st.integers(0, 2))
def test_any_threshold_of_shares_give_the_secret_and_one_fewer_do_not(text, threshold, more):
    shares = dict(enumerate(split(text, threshold, threshold + more), 1))
    for held in itertools.combinations(shares, threshold):
        assert combine({k: shares[k] for k in held}, threshold) == text
    assert combine(shares, threshold) == text  # more than are needed
    for held in itertools.combinations(shares, threshold - 1):
        few = {k: shares[k] for k in held}
        with pytest.raises(MessageError, match="shares of a secret"):
            combine(few, threshold)
        assert combine(few, threshold - 1) != text
        # every secret is as likely: there is a last share for each
        other = {**few, threshold + more + 1: bytes(16)}
        assert combine(other, threshold) != text


# ---------------------------------------------------------------- the ring

REPLY = st.fixed_dictionaries(
    {
        "x": st.lists(st.floats(-15.9, 15.9), min_size=3, max_size=3),
        "n": st.integers(-(2**30), 2**30),
        "v": st.floats(-1e6, 1e6),
        "count": st.lists(st.integers(-1000, 1000), min_size=2, max_size=2),
        "at": st.sets(st.integers(0, 4)),
    }
)


def message(given: dict[str, Any]) -> Message:
    where = torch.tensor(sorted(given["at"]), dtype=torch.int64)
    return Message(
        x=torch.tensor(given["x"]),
        inner={"n": given["n"], "two": [given["v"], None]},
        count=torch.tensor(given["count"]),
        at=At(where, torch.ones(len(where), 2) * 0.5, 5),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(REPLY, st.integers(0, 10**6)), min_size=1, max_size=5), st.sampled_from((40, 48, 64)))
def test_a_sum_in_the_ring_is_that_of_the_rounded_replies_exactly(replies, ring):
    """Against fractions of whole numbers; and through bytes."""
    stage = Secure(bits=16, ring=ring, range=16.0)
    messages = [on_grid(stage, message(given)) for given, _ in replies]
    weights = [w for _, w in replies]
    if sum(weights) >= stage.room:
        return
    form, total = Form.of(messages[0]), np.uint64(0)
    for m, w in zip(messages, weights):
        sent = Masked.of(vector_of(m, w, stage.step), form, ring)
        assert sent.words.numel() == form.nbytes(ring)
        total = total + sent.vector(ring)
    values, weight = read(form, total, stage.step, ring, 1.0)
    assert weight == sum(weights)

    def exact(get: Any) -> float:
        return float(sum((Fraction(get(m)) * w for m, w in zip(messages, weights)), Fraction(0)))

    for k in range(3):
        want = torch.tensor(exact(lambda m: m.x[k].item()), dtype=torch.float64).float()  # noqa: B023
        assert values["x"][k] == want
    for k in range(2):
        assert values["count"][k] == exact(lambda m: m.count[k].item())  # noqa: B023
    assert values["inner"]["n"] == exact(lambda m: m.inner["n"])
    assert values["inner"]["two"] == [exact(lambda m: m.inner["two"][0]), None]
    held = torch.tensor([float(sum(w for m, w in zip(messages, weights) if k in m.at.index)) for k in range(5)])
    assert isinstance(values["at"], Covered)
    assert torch.equal(values["at"].held, held)
    assert torch.equal(values["at"].total, 0.5 * held.view(-1, 1).expand(5, 2))


@pytest.mark.parametrize("rounding", ["nearest", "zero", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding(rounding, dtype):
    stage = Secure(range=4.0, bits=10, rounding=rounding)
    x = draw(1, 5000).to(dtype)
    got = on_grid(stage, Message(x=x)).x
    assert got.dtype == dtype
    assert torch.equal((got.double() / stage.step).frac(), torch.zeros(5000, dtype=torch.float64))
    error = (got.double() - x.double()) / stage.step
    assert error.abs().max() <= (0.5 if rounding == "nearest" and dtype != torch.bfloat16 else 1.0)
    if rounding == "zero":
        assert (got.abs() <= x.abs()).all()
    if rounding == "stochastic" and dtype != torch.bfloat16:
        assert abs(error.mean()) < 4 * 0.5 / math.sqrt(5000)
        assert not torch.equal(got, on_grid(stage, Message(x=x), 1).x)


def test_what_a_reply_may_hold():
    stage = Secure()
    packed = on_grid(stage, Message(x=top_k(draw(0, 10), 0.3), y=once(draw(1, 2)), flag=True))
    assert packed.x.count_nonzero() == 3
    assert isinstance(packed.y, torch.Tensor)
    for odd, why in (
        (Message(x=torch.tensor([16.1])), r"field 'x' holds entries beyond 16.*secure:range"),
        (Message(n=2.0**31), "field 'n' is a number beyond.*Divide it$"),
        (Message(k=torch.tensor([2**24])), "whole numbers beyond 8,388,608.*more bits"),
        (Message(a=At(torch.tensor([1, 1]), torch.ones(2), 3)), "a position twice.*as one$"),
        (Message(name="a"), r"'name' \(str, 1 bytes\) cannot be added up"),
        (Message(t={"z": torch.ones(2) * 1j}), r"'t.z' \(complex64, 16 bytes\) cannot be added up"),
        (Message(c=torch.ones(2).to(torch.float8_e5m2)), r"'c' \(float8_e5m2, 2 bytes\) cannot be added up"),
    ):
        with pytest.raises((MessageError, NotSupported), match=why):
            stage.encode(odd, sender())
    nan = on_grid(stage, Message(x=torch.tensor([float("nan")]), y=float("inf")))  # the engine excludes it
    assert nan.x.isnan().all()
    assert nan.y == math.inf


def test_bytes_are_those_of_the_ring():
    sent = Secure(ring=40).encode(Message(x=draw(0, 7), n=1.0, a=At(torch.tensor([1]), torch.ones(1, 3), 4)), sender())
    assert sent.nbytes == 7 * 5 + NUMBER + (4 + 12) * 5


@pytest.mark.parametrize("given", [Message(loss=0.5, hits=3), Message(x=torch.zeros(0))])
def test_a_reply_without_entries_travels_as_well(given):
    stage = Secure()
    reply = on_grid(stage, given)
    form, vector = Form.of(reply), vector_of(reply, 4, stage.step)
    assert Masked.of(vector, form, stage.ring).vector(stage.ring).tolist() == vector.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '["tensor","float32",[2]]',
        '["dict",[["x",["tensor","float33",[2]]]]]',
        '["dict",[["x",["tensor","float32",[-1]]]]]',
        '["dict",[["x",["at",3,[4],"float32"]]]]',
        '["dict",[["x",["at",3.0,[3],"float32"]]]]',
        '["dict",[["x",["dict",[[0.5,["none"]]]]]]]',
        '["dict",[[1,["none"]]]]',
        '["dict",[["x",["?"]]]]',
    ],
)
def test_forms_from_anywhere(text):
    with pytest.raises(MessageError, match="not the form"):
        Form(text).words  # noqa: B018
    with pytest.raises(MessageError):
        Masked(torch.zeros(8, dtype=torch.uint8), text).vector(48)


@pytest.mark.parametrize(
    "words", [torch.zeros(8), torch.zeros(8, 1, dtype=torch.uint8), torch.zeros(7, dtype=torch.uint8), "no"]
)
def test_masked_replies_from_anywhere(words):
    with pytest.raises(MessageError, match="a masked reply is bytes"):
        Masked(words, "")
    with pytest.raises(MessageError, match="9 bytes, and its form takes 8"):
        Masked(torch.zeros(9, dtype=torch.uint8), Form.of(Message()).text).vector(48)


# ---------------------------------------------------------------- the phases


def vectors(n: int, words: int = 6) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(n)
    return {10 * u + 3: rng.integers(0, 2**64, words, np.uint64) for u in range(n)}


def summed(given: dict[int, np.ndarray], who: Any) -> np.ndarray:
    return np.sum([given[u] for u in who], axis=0, dtype=np.uint64)


def secrets_of(given: dict[int, Any]) -> dict[int, bytes]:
    return {u: secret(u % 250) for u in given}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_up_to_n_minus_t_may_be_lost_in_any_phase(phase, lost):
    x = vectors(5)
    gone = list(x)[1 : 1 + lost]
    total, course = secure_sum(x, secrets_of(x), "s", 3, Gone({phase: gone}))
    in_sum = [u for u in x if u not in gone or phase == "unmask"]
    assert list(course.survivors) == in_sum
    assert np.array_equal(total, summed(x, in_sum))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([*PHASES, ""]), min_size=5, max_size=5))
def test_whoever_is_lost_wherever_the_sum_is_that_of_the_rest_or_there_is_none(fates):
    x = vectors(5)
    gone = {p: [u for u, fate in zip(x, fates) if fate == p] for p in PHASES}
    if sum(f != "" for f in fates) > 2:
        with pytest.raises(TooFew, match=r"of 5 clients came through the phase '.*', and it takes 3"):
            secure_sum(x, secrets_of(x), "s", 3, Gone(gone))
        return
    total, _ = secure_sum(x, secrets_of(x), "s", 3, Gone(gone))
    assert np.array_equal(total, summed(x, [u for u, fate in zip(x, fates) if fate in ("", "unmask")]))


class Table:
    """Five parties after the phase `shares`, threshold 3."""

    def __init__(self) -> None:
        self.x = vectors(5)
        self.parties = {u: Party(u, s, "s") for u, s in secrets_of(self.x).items()}
        self.circle = Circle("s", 3, {u: p.keys() for u, p in self.parties.items()})
        self.alive = list(self.x)
        self.sealed = {u: p.shares(self.circle) for u, p in self.parties.items()}

    def shown(self, who: Any, survivors: Any) -> dict[int, dict[int, str]]:
        return {
            u: self.parties[u].unmask(self.circle, {v: self.sealed[v][u] for v in self.alive}, self.alive, survivors)
            for u in who
        }

    def masked(self, u: int, circle: Circle | None = None) -> np.ndarray:
        return self.parties[u].masked(self.x[u], circle or self.circle, self.alive)


def test_a_masked_reply_is_noise_and_masks_cancel():
    table = Table()
    table.x = {u: np.zeros(20000, np.uint64) for u in table.x}
    one, total = table.masked(table.alive[0]), np.zeros(20000, np.uint64)
    counts = np.bincount((one >> np.uint64(8)).astype(np.int64) & 15, minlength=16)
    assert ((counts - 1250) ** 2 / 1250).sum() < 50  # chi-square of 15 degrees: once in 10^5
    for u in table.alive:
        total += table.masked(u)
    assert total.any()  # the self-masks are still there
    shown = table.shown(table.alive[:3], table.alive)
    assert not unmasked(total, table.circle, table.alive, table.alive, shown).any()


def test_nobody_shows_both_shares_of_a_party_and_too_few_open_nothing():
    table = Table()
    survivors = table.alive[:4]
    for u, by in table.shown(survivors, survivors).items():
        party, holders = table.parties[u], table.circle.places
        for v in table.alive:
            whole = masks.unsealed(
                party._sealing(table.circle, v, outward=False), bytes.fromhex(table.sealed[v][u]),
                table.circle.about.encode(),
            )  # fmt: skip
            assert bytes.fromhex(by[v]) == (whole[16:] if v in survivors else whole[:16])
        assert set(by) == set(holders)
    with pytest.raises(NoSum, match="2 shares of the secret of party"):
        unmasked(
            summed(table.x, survivors), table.circle, table.alive, survivors, table.shown(survivors[:2], survivors)
        )


def test_shares_that_were_changed_are_noticed():
    table = Table()
    shown = table.shown(table.alive[:3], table.alive)
    first = table.alive[0]
    shown[first][first] = "00" * 16
    with pytest.raises(NoSum, match="do not give what it committed to"):
        unmasked(table.x[first].copy(), table.circle, table.alive, table.alive, shown)
    shown[first][first] = "not hexadecimal"
    with pytest.raises(NoSum, match="2 shares"):
        unmasked(table.x[first].copy(), table.circle, table.alive, table.alive, shown)


def test_sealed_shares_are_for_one_holder_in_one_circle():
    table = Table()
    a, b = table.alive[:2]
    other = replace(table.circle, name="another")
    assert table.parties[b].unmask(table.circle, {a: table.sealed[a][b]}, [a], [a])
    assert not table.parties[b].unmask(other, {a: table.sealed[a][b]}, [a], [a])
    assert not table.parties[table.alive[2]].unmask(table.circle, {a: table.sealed[a][b]}, [a], [a])


def test_a_server_that_shows_two_rosters_gets_nothing():
    """A party told of other keys than the rest: its masks do not cancel, so the sum is noise."""
    table = Table()
    forged = Party(table.alive[4], secret(77), "s").keys()
    lied = replace(table.circle, roster={**table.circle.roster, table.alive[4]: forged})
    total = summed({u: table.masked(u, lied if u == table.alive[0] else None) for u in table.alive}, table.alive)
    got = unmasked(total, table.circle, table.alive, table.alive, table.shown(table.alive, table.alive))
    assert (got != summed(table.x, table.alive)).all()


def test_keys_that_are_none():
    for odd in (
        {},
        {"seal": "00", "mask": "00", "commitment": "00"},
        {"seal": "zz" * 32, "mask": "", "commitment": ""},
    ):
        with pytest.raises(MessageError, match="not the keys"):
            Keys.read(odd)
    there = asdict(Party(1, secret(1), "s").keys())
    assert Keys.read(there) == Keys(**there)
    for field in ("seal", "mask"):  # who took these would fail, and with it the sum of all
        with pytest.raises(MessageError, match="not the keys"):
            Keys.read({**there, field: "00" * 32})
    with pytest.raises(MessageError, match="not a public key"):
        masks.agreed(masks.key_of(secret(1)), bytes(32), "x")


# ---------------------------------------------------------------- sums of messages


def entries(stage: Secure, n: int) -> list[tuple[int, Message, int]]:
    made = [Message(delta=draw(k, 30), w=0.3 + k, loss=0.1 * k) for k in range(n)]
    return [(k + 1, on_grid(stage, m, k), 3 * k + 1) for k, m in enumerate(made)]


@pytest.mark.parametrize("weight", [None, 1.0, 0.25, "w"])
@pytest.mark.parametrize("lost", [0, 2])
def test_secure_and_plain_sums_are_the_same_bits(weight, lost):
    stage, fold = Secure(threshold=0.6), Fold(weight)
    there = entries(stage, 6)[: 6 - lost]
    safe = secured(stage, fold, there, range(1, 7))
    plain = plainly(stage, fold, there[::-1], 6)
    assert safe.total.weight == plain.total.weight
    assert torch.equal(safe.total.values["delta"], plain.total.values["delta"])
    assert safe.total.values["loss"] == plain.total.values["loss"]
    assert safe.total.jobs == [k for k, _, _ in there]
    # and it is the sum that was asked for
    weights = [fold.of(m, n) for _, m, n in there]
    want = sum(w * m.delta.double() for w, (_, m, _) in zip(weights, there))
    assert (safe.total.values["delta"].double() - want).abs().max() < 1e-3
    assert safe.total.weight == pytest.approx(sum(weights), abs=1e-4)


def test_too_few_replies_make_no_sum():
    stage = Secure(threshold=0.6)
    done = secured(stage, Fold(None), entries(stage, 6)[:3], range(1, 7))
    assert not done.total.jobs
    assert set(done.left_out) == {1, 2, 3}
    assert "3 of 6 clients came through the phase 'input', and it takes 4" in done.left_out[1]


def test_replies_unlike_most_others_are_left_out():
    stage = Secure(threshold=0.6)
    odd = on_grid(stage, Message(delta=draw(0, 29)))
    done = secured(stage, Fold(1.0), [(1, odd, 1), *entries(stage, 6)[1:]], range(1, 7))
    assert done.left_out == {1: "its fields differ from most others'"}
    assert done.total.jobs == [2, 3, 4, 5, 6]


def test_fields_in_another_order_are_the_same_fields():
    stage = Secure()
    one, other = Message(a=1.0, t={"x": 4.0, "y": torch.ones(2)}), Message(t={"y": torch.ones(2), "x": 2.0}, a=2.0)
    done = secured(stage, Fold(1.0), [(0, on_grid(stage, one), 1), (1, on_grid(stage, other), 1)], [0, 1])
    assert done.left_out == {}
    assert (done.total.values["a"], done.total.values["t"]["x"]) == (3.0, 6.0)
    assert done.total.values["t"]["y"].tolist() == [2.0, 2.0]


def test_dicts_by_whole_numbers():
    stage = Secure()
    replies = [Message(models={5: torch.ones(2), 10: {"n": 1.0}}), Message(models={10: {"n": 3}, 5: torch.zeros(2)})]
    done = secured(stage, Fold(1.0), [(k, on_grid(stage, m), 1) for k, m in enumerate(replies)], [0, 1])
    assert (done.total.values["models"][5].tolist(), done.total.values["models"][10]) == ([1.0, 1.0], {"n": 4.0})
    with pytest.raises(MessageError, match=r"by text or whole numbers; given the key \(0, 1\)"):
        Form.of(Message(models={(0, 1): 1.0}))


def test_numbers_fit_beside_the_largest_weights():
    """A ring of 64 bits has room for entries with weights of 2^40 in all; the halves of a number have not."""
    stage, w = Secure(ring=64), 30000 / 4
    there = [(k, on_grid(stage, Message(loss=-0.3, large=2.0**30, w=w)), 1) for k in range(4)]
    total = secured(stage, Fold("w"), there, range(4)).total
    assert divided(total.values, total.weight) == pytest.approx({"loss": -0.3, "large": 2.0**30, "w": w}, rel=1e-9)
    beyond = [(k, on_grid(stage, Message(loss=-0.3, w=40000.0)), 1) for k in range(4)]
    assert "less than 8192 in this ring" in secured(stage, Fold("w"), beyond, range(4)).left_out[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits_are_divided_in_32(dtype):
    """A bfloat16 holds no whole number between 256 and 258, and a float16 none beyond 65504."""
    stage, some = Secure(), At(torch.tensor([1]), torch.tensor([10.0], dtype=dtype), 2)
    reply = Message(v=torch.full((2,), 10.0, dtype=dtype), t=[{"w": torch.ones(1, dtype=dtype)}], at=some)
    total = secured(stage, Fold(), [(k, on_grid(stage, reply), 2001) for k in range(5)], list(range(5))).total
    means = as_sent(divided(total.values, total.weight), total.structure)
    assert (means["v"].dtype, means["v"].tolist()) == (dtype, [10.0, 10.0])
    assert (means["t"][0]["w"].dtype, means["t"][0]["w"].tolist()) == (dtype, [1.0])
    assert (means["at"].held.tolist(), means["at"].over(torch.ones(2, dtype=dtype)).tolist()) == (
        [0.0, 10005.0],
        [1.0, 10.0],
    )


def test_a_weight_that_might_not_fit_is_left_out():
    stage = Secure(threshold=0.6, bits=24, ring=48)
    there = [*entries(stage, 3), (4, on_grid(stage, Message(delta=draw(0, 30), w=70.0, loss=0.0)), 1)]
    done = secured(stage, Fold("w"), there, range(1, 5))
    assert "'w' is too large for a secure sum of 4: less than 64 in this ring" in done.left_out[4]
    assert done.total.jobs == [1, 2, 3]


# ---------------------------------------------------------------- the stage


def test_recipes_write_it():
    assert parse_stage("secure") == (Secure(),)
    assert parse_stage("secure:0.8,range=4,bits=16,ring=32,rounding=zero")[0] == Secure(0.8, 4.0, 16, 32, "zero")
    assert parse_stage(str(Secure(0.8, bits=20)))[0] == Secure(0.8, bits=20)


@pytest.mark.parametrize(
    "odd",
    [{"threshold": 0.5}, {"threshold": 1.1}, {"range": 3.0}, {"range": 0.0}, {"bits": 48}, {"ring": 44}, {"ring": 72},
     {"rounding": "up"}],
)  # fmt: skip
def test_what_cannot_be(odd):
    with pytest.raises(ConfigError):
        Secure(**odd)


@pytest.mark.parametrize(("asked", "least"), [(2, 2), (3, 2), (4, 3), (5, 4), (6, 4), (10, 7), (100, 66)])
def test_how_many_it_takes(asked, least):
    assert Secure().least(asked) == least
    assert 2 * Secure(threshold=0.51).least(asked) > asked


@pytest.mark.parametrize(
    ("method", "channel", "why"),
    [
        (fl.FedBuff(), "secure", r"FedBuff reads single replies.*Use a method without"),
        (fl.DFedAvgM(), "secure", "Use a method that calls clients.mean"),
        (fl.FedAvg(), ["topk:0.1", "secure"], "saves nothing.*Drop it"),
        (fl.FedAvg(), ["secure", "clip:1"], "the order is clip, secure, noise"),
        (fl.FedAvg(), ["secure", "secure"], "twice"),
        (
            fl.FedAvg(),
            "secure:bits=26,ring=32",
            r"96 samples.*exceed a ring of 2\^32.*ring=48, or the entries at most 25",
        ),
    ],
)
def test_refused_at_the_door(method, channel, why):
    with pytest.raises(NotSupported, match=why):
        run(method, channel)


def test_questions_that_say_something_are_refused():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Asks(fl.FedAvg):  # type: ignore[misc,name-defined]
        def known(self, state, mine=0.0):
            return Message(yes=1.0)

        async def local(self, client, params):
            await client.ask(self.known, mine=1.0)
            return await super().local(client, params)

    with pytest.raises(NotSupported, match="a question in mid-job tells"):
        run(Asks(cohort=3), Secure())


# ---------------------------------------------------------------- runs


class Plain(Channel):
    """A channel whose sums are plain ones of the same rounded replies."""

    secure = None  # type: ignore[assignment]


SLOW = pytest.mark.skipif("FEDLOOM_SLOW" not in os.environ, reason="half a minute: FEDLOOM_SLOW=1")
FEW = ("fedavg", "scaffold", "heterofl", "fednova", "fedavgm", "qffl", "feddyn", "fedbuff", "dfedavgm", "feddf")


@pytest.mark.parametrize(
    "method",
    [
        id if id in FEW else pytest.param(id, marks=SLOW)
        for id, cls in catalogue().items()
        if cls.__module__.startswith("fedloom.")
    ],
)
def test_every_method_sums_or_is_refused(method):
    """The same numbers as without masks, to the precision of weights that are numbers in the replies."""
    trial, stage = Trial(catalogue()[method]), Secure(range=64.0, bits=40, ring=64)
    if {"replies", "peers", "clock"} & trial.method.card.needs:
        with pytest.raises(NotSupported):
            trial.run(channel=stage)
        return
    safe, plain = trial.run(channel=stage), trial.run(channel=Plain((stage,)))
    excluded = {why for row in safe.rows for why in row.get("exclusions", ())}
    if any("of one client it would be its reply" in why for why in excluded):  # its sums are of one client each
        return
    for x, y in zip(leaves(safe.state), leaves(plain.state), strict=True):
        if isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel():
            assert (x - y).abs().max() < 1e-5
    assert not excluded or any("exclusions" in row for row in plain.rows)


@pytest.mark.parametrize("weight", ["samples", "uniform"])
def test_a_run_is_the_one_of_rounded_replies(weight):
    """The plain engine adds the rounded replies up in float64: exact as well, as all are multiples of one step."""
    method = fl.FedAvg(cohort=6, weight=weight, solver=fl.SGD(lr=0.1, batch_size=5))
    stage, options = Secure(bits=20), {"dtype": torch.float64, "rounds": 4}
    safe = run(method, stage, **options)
    assert torch.equal(params(safe), params(run(method, Plain((stage,)), **options)))
    assert (params(safe) - params(run(method, None, **options))).abs().max() < 4 * stage.step


@pytest.mark.parametrize("engine", ["stacked", "pool", "debug"])
def test_every_engine_and_stochastic_rounding(engine):
    method, stage = fl.Scaffold(cohort=6, solver=fl.SGD(lr=0.1, batch_size=5)), Secure(rounding="stochastic")
    one, other = run(method, stage), run(method, stage, engine=engine)
    assert (params(one) - params(other)).abs().max() <= (0 if engine != "stacked" else 1e-5)
    assert one.summary["bytes_up"] == other.summary["bytes_up"]


def test_weights_that_are_numbers_in_the_reply():
    method = fl.AdaFed(cohort=6, solver=fl.SGD(lr=0.1, batch_size=5))
    safe, plain = run(method, Secure()), run(method, None)
    assert (params(safe) - params(plain)).abs().max() < 1e-4


def test_clipped_summed_securely_then_noised():
    pytest.importorskip("dp_accounting")
    channel = ["clip:1", "secure:rounding=zero", "noise:1.1,delta=0.001"]
    done = run(uniform(), channel)
    assert done.summary["privacy"]
    with pytest.raises(NotSupported, match="can make a message longer"):
        run(uniform(), ["clip:1", "secure", "noise:1.1,delta=0.001"])


async def fails(client: Any, honest: Any, **payload: Any) -> Any:
    raise RuntimeError("no power")


@pytest.mark.parametrize("lost", [2, 5])
def test_a_simulation_with_drop_outs(lost):
    """Of 12 asked 8 are needed."""
    method = fl.FedAvg(cohort=12, solver=fl.SGD(lr=0.1, batch_size=5))
    options = {"behave": dict.fromkeys(range(lost), fails), "on_failure": "exclude", "dtype": torch.float64}
    safe = run(method, Secure(), rounds=1, **options)
    if lost == 2:
        plain = run(method, Plain((Secure(),)), rounds=1, **options)
        assert torch.equal(params(safe), params(plain))
        assert safe.rows[0]["excluded"] == 2
        return
    assert torch.equal(params(safe), params(run(method, None, rounds=0, **options)))  # no sum, no step
    assert safe.rows[0]["excluded"] == 12
    assert any("no secure sum: 7 of 12" in why for why in safe.rows[0]["exclusions"])


def test_a_simulation_in_time():
    """Late replies are drop-outs; what the phases send is counted."""
    method, stage = fl.FedAvg(cohort=12, solver=fl.SGD(lr=0.1, batch_size=5)), Secure(threshold=0.51)
    options = {"world": fl.World(step_seconds=1.0, spread=0.5, deadline=3.0), "dtype": torch.float64}
    safe, plain = run(method, stage, **options), run(method, Plain((stage,)), **options)
    assert torch.equal(params(safe), params(plain))
    assert 0 < safe.rows[0]["excluded"] <= 4
    assert safe.summary["bytes_up"] > plain.summary["bytes_up"]
    few = run(method, stage, **{**options, "world": fl.World(step_seconds=1.0, spread=0.5, deadline=2.0)})
    assert torch.equal(params(few), params(run(method, None, rounds=0, **options)))


def test_memories_of_what_is_in_no_sum_do_not_stick():
    method = fl.Scaffold(cohort=12, solver=fl.SGD(lr=0.1, batch_size=5))
    options = {"behave": dict.fromkeys(range(5), fails), "on_failure": "exclude"}
    assert not run(method, Secure(), rounds=1, **options).memories
