"""Clipping bounds, noise on the sum, what is refused, and epsilon against formulas computed here."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln, logsumexp

import fedloom.channel.privacy as privacy
from fedloom.channel import (
    DP,
    Channel,
    Clip,
    Exchange,
    GaussianNoise,
    Quantize,
    RandK,
    Sender,
    Sign,
    Stage,
    TopK,
    adjacency,
    epsilon,
    noise_for,
    norm_of,
    top_k,
)  # fmt: skip
from fedloom.engines.fold import divided, fold_chunk, tree
from fedloom.errors import ConfigError, FedloomWarning, MessageError, MissingExtra, NotSupported
from fedloom.keyed import generator
from fedloom.message import At, Message, leaves, once, opened
from fedloom.written import dumps, loads

pytest.importorskip("dp_accounting")


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("test", seed))


def sender() -> Sender:
    return Sender(0, {}, lambda purpose: generator(purpose))


def plan(*needs: str, trainable: int = 3, size: int = 3) -> Any:
    card = SimpleNamespace(needs=frozenset(needs), title="Method")
    model = SimpleNamespace(layout=SimpleNamespace(size=size, trainable=trainable))
    return SimpleNamespace(method=SimpleNamespace(card=card), models={"net": model})


def exchange(count: int, expected: float, *, law: str = "poisson", q: float | None = 0.1, key: int = 0, **more: Any):
    return Exchange(
        count=count, expected=expected, weight=more.pop("weight", float(count)), population=100, probability=q,
        rng=lambda purpose: generator(purpose, key), law=law, **more,
    )  # fmt: skip


def mean_of(messages: list[Message], stages: Any, ex: Exchange) -> Message:
    """What the host does with a cohort's replies."""
    channel = Channel.of(stages)
    sent = [opened(channel.decode(channel.encode(m, sender()))) for m in messages]
    total, left_out = tree([fold_chunk([(k, m, 1.0) for k, m in enumerate(sent)])])
    assert not left_out
    settled = channel.settle(total.message(), ex)
    return Message({k: divided(v, ex.weight) for k, v in settled.items()})


# ---------------------------------------------------------------- clipping


def test_clip_is_numpys_over_all_tensors() -> None:
    message = Message(delta=normal(50), control=[normal(4, 5, seed=1)], n=7)
    flat = np.concatenate([message.delta.numpy(), message.control[0].numpy().ravel()])
    s = sender()
    out = Clip(2.0).encode(message, s)
    factor = 2.0 / np.linalg.norm(flat)
    np.testing.assert_allclose(out.delta.numpy(), message.delta.numpy() * factor, rtol=1e-6)
    np.testing.assert_allclose(out.control[0].numpy(), message.control[0].numpy() * factor, rtol=1e-6)
    assert out.n == 7
    assert s.notes == {"norm": pytest.approx(np.linalg.norm(flat), rel=1e-6), "clipped": 1.0}


@given(st.integers(0, 40), st.floats(1e-3, 1e3), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@settings(deadline=None)
def test_clip_never_exceeds_its_bound(d: int, bound: float, dtype: torch.dtype) -> None:
    message = Message(delta=(normal(d) * 100).to(dtype), scalar=torch.tensor(3.0, dtype=dtype))
    out = Clip(bound).encode(message, sender())
    assert norm_of(out) <= bound
    if norm_of(message) > bound:
        assert norm_of(out) >= bound * (1 - 4 * torch.finfo(dtype).eps)
        assert out.delta.dtype == dtype
    else:
        assert out is message


@pytest.mark.parametrize("share", [0.5, 0.1, 0.005, 1e-6])
def test_clip_holds_where_entries_are_the_smallest_of_their_type(share: float) -> None:
    """float16 ends at 6e-8: what is scaled to 1e-7 is rounded to 1.2e-7, and 10,000 such entries to a fifth more."""
    message = Message(delta=torch.full((10_000,), 2e-5, dtype=torch.float16))
    bound = share * norm_of(message)
    out = Clip(bound).encode(message, sender())
    assert norm_of(out) <= bound
    assert out.delta.dtype == torch.float16


def test_clip_reaches_into_messages_and_named_tuples() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    sent = Clip(1.0).encode(Message(m=Message(a=torch.full((2,), 3.0)), t=rows.max(0)), sender())
    norm = math.sqrt(2 * 9 + 9 + 16)
    assert sent.m.a.tolist() == pytest.approx([3 / norm] * 2)
    assert sent.t.values.tolist() == pytest.approx([3 / norm, 4 / norm])


def test_clip_keeps_compression() -> None:
    v = normal(1000)
    channel = Channel.of([TopK(0.05), Quantize(8), Clip(0.5)])
    channel.check(plan())
    sent = channel.encode(Message(delta=v, rows=At(torch.tensor([1]), normal(1, 20), 3)), sender())
    assert sent.nbytes == (125 + 50 + 4) + (3 + 1 + 4 + 1)  # bitmap, codes, scale; of the row too, and its place
    assert norm_of(sent) <= 0.5
    direct = top_k(v, 0.05).dense()
    cosine = torch.nn.functional.cosine_similarity(opened(sent).delta, direct, dim=0)
    assert cosine > 0.999


def test_an_entry_whose_square_is_no_number_any_more_is_clipped_too() -> None:
    out = Clip(2.0).encode(Message(delta=torch.tensor([-1e200], dtype=torch.float64)), sender())
    assert out.delta.tolist() == pytest.approx([-2.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_message_that_is_not_finite_stays_so(bad: float) -> None:
    out = Clip(1.0).encode(Message(delta=torch.tensor([1.0, bad])), sender())
    assert not torch.isfinite(out.delta).all()


def test_clipping_within_the_bound_changes_nothing() -> None:
    message = Message(delta=normal(5))
    assert Clip(100.0).encode(message, sender()) is message
    assert Clip(math.inf).encode(message, sender()) is message


# ---------------------------------------------------------------- noise


def test_no_noise_no_bound_and_everybody_is_the_plain_mean() -> None:
    messages = [Message(delta=normal(6, seed=k)) for k in range(4)]
    got = mean_of(messages, [Clip(math.inf), GaussianNoise(0.0)], exchange(4, 4.0, law="all", q=1.0))
    torch.testing.assert_close(got.delta, torch.stack([m.delta for m in messages]).mean(0))


def test_one_client_moves_the_sum_by_at_most_the_bound() -> None:
    messages = [Message(delta=10 * normal(30, seed=k), b=normal(3, seed=k)) for k in range(6)]
    stages = [Clip(0.7), GaussianNoise(1.0)]
    with_all = mean_of(messages, stages, exchange(6, 5.0))
    without = mean_of(messages[:-1], stages, exchange(5, 5.0))
    moved = Message({k: 5.0 * (with_all[k] - without[k]) for k in with_all})  # equal noise, equal divisor
    assert 0.69 < norm_of(moved) <= 0.7 * (1 + 1e-4)


def test_noise_has_the_stated_deviation_once_whatever_the_cohort() -> None:
    for count in (1, 30):
        ex = exchange(count, 20.0)
        zero = [Message(delta=torch.zeros(100_000), b=torch.zeros(())) for _ in range(count)]
        got = mean_of(zero, DP(clip=0.5, noise=1.3), ex)
        assert float(got.delta.std()) == pytest.approx(1.3 * 0.5 / 20.0, rel=0.02)
        assert float(got.delta.mean()) == pytest.approx(0.0, abs=4 * 1.3 * 0.5 / 20 / math.sqrt(1e5))
        assert float(got.b) != 0
        assert ex.count == ex.weight == 20.0  # the server program never hears who really came


def test_equal_weights_other_than_one_scale_the_noise_too() -> None:
    ex = exchange(10, 10.0, weight=30.0)
    got = GaussianNoise(1.0).settle(Message(delta=torch.zeros(100_000)), _with(ex, Clip(0.5)))
    assert float(got.delta.std()) == pytest.approx(3 * 0.5, rel=0.02)
    assert ex.weight == 30.0


def _with(ex: Exchange, *stages: Stage) -> Exchange:
    ex.stages = stages
    return ex


def test_noise_is_keyed_and_differs_between_fields() -> None:
    zero = [Message(a=torch.zeros(9), b=torch.zeros(9))]
    one, two, three = (mean_of(zero, DP(1.0, 1.0), exchange(1, 1.0, key=k)) for k in (0, 0, 1))
    assert torch.equal(one.a, two.a)
    assert not torch.equal(one.a, three.a)
    assert not torch.equal(one.a, one.b)


def test_noise_reaches_into_dicts_lists_and_named_tuples() -> None:
    zero = torch.zeros(1)
    message = Message(d={"a": zero}, l=[zero, zero], t=Pair(zero, zero))
    noisy = list(map(float, torch.cat(list(leaves(dict(mean_of([message], DP(1.0, 1.0), exchange(1, 1.0))))))))
    assert len(set(noisy)) == len(noisy)


def test_numbers_declared_public_travel_as_they_are() -> None:
    stages = [Clip(1.0), GaussianNoise(1.0, public=("steps",))]
    got = mean_of([Message(delta=torch.zeros(3), steps=5)] * 4, stages, exchange(4, 4.0))
    assert got.steps == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss", 0.3),
        ("n", 3),
        ("name", "x"),
        ("counts", torch.arange(3)),
        ("rows", At(torch.tensor([0]), torch.ones(1), 3)),
        ("tree", {"a": [torch.ones(2), 1.0]}),
    ],
)
def test_what_would_leave_without_noise_is_refused(field: str, value: Any) -> None:
    channel = Channel.of(DP(1.0, 1.0))
    with pytest.raises(NotSupported, match=f"'{field}'.*public="):
        channel.encode(Message(delta=torch.ones(2), **{field: value}), sender())


def test_a_once_value_cannot_be_clipped() -> None:
    with pytest.raises(NotSupported, match="once"):
        Clip(1.0).encode(Message(delta=torch.ones(2), base=once(torch.ones(3))), sender())


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([GaussianNoise(1.0)], "needs a Clip before it"),
        ([GaussianNoise(1.0), Clip(1.0)], "needs a Clip before it"),
        ([Clip(1.0), Clip(2.0), GaussianNoise(1.0)], "Clip twice"),
        ([*DP(1.0, 1.0), GaussianNoise(1.0)], "GaussianNoise twice"),
        ([Clip(math.inf), GaussianNoise(1.0)], "finite"),
        ([Clip(1.0), Quantize(8), GaussianNoise(1.0)], "longer after Clip"),
        ([*DP(1.0, 1.0), Quantize(8)], "longer after Clip"),
        ([Clip(1.0), RandK(0.5), GaussianNoise(1.0)], "longer after Clip"),
        ([Clip(1.0), TopK(0.5), GaussianNoise(1.0)], "longer after Clip"),  # what is fed back was not clipped
        ([Clip(1.0), Sign(), GaussianNoise(1.0)], "longer after Clip"),
    ],
)
def test_unsound_orders_are_refused(stages: list[Stage], words: str) -> None:
    with pytest.raises(NotSupported, match=words):
        Channel.of(stages).check(plan())


def test_sound_orders_are_not() -> None:
    for before, between in [
        ([], []), ([TopK(0.1)], []), ([Quantize(8)], []), ([RandK(0.1), Quantize(8)], []),
        ([], [TopK(0.1, feedback=False)]), ([], [Sign(feedback=False)]),
    ]:  # fmt: skip
        Channel.of([*before, Clip(1.0), *between, GaussianNoise(1.0)]).check(plan("memory", "public"))


@pytest.mark.parametrize("need", ["replies", "peers", "clock"])
def test_methods_that_are_not_sums_are_refused(need: str) -> None:
    with pytest.raises(NotSupported, match="Method"):
        Channel.of(DP(1.0, 1.0)).check(plan(need))


def test_running_statistics_are_mentioned() -> None:
    with pytest.warns(FedloomWarning, match="GroupNorm"):
        Channel.of(DP(1.0, 1.0)).check(plan(size=5))


def test_a_delta_that_protects_nobody_is_mentioned() -> None:
    with pytest.warns(FedloomWarning, match="1/100"):
        mean_of([Message(delta=torch.zeros(2))], DP(1.0, 1.0, delta=0.01), exchange(1, 1.0))


def test_a_sum_that_is_not_finite_is_not_released() -> None:
    with pytest.raises(MessageError, match="NaN"):
        GaussianNoise(1.0).settle(Message(delta=torch.tensor([math.nan])), _with(exchange(1, 1.0), Clip(1.0)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: Clip(0.0),
        lambda: Clip(-1.0),
        lambda: Clip(math.nan),
        lambda: GaussianNoise(-1.0),
        lambda: GaussianNoise(math.inf),
        lambda: GaussianNoise(1.0, delta=0.0),
        lambda: epsilon({}, delta=1.0),
        lambda: noise_for(0.0, 1e-5, 0.1, 10),
        lambda: noise_for(1.0, 1e-5, 0.0, 10),
        lambda: noise_for(1.0, 1e-5, 0.1, 0),
        lambda: noise_for(1.0, 1e-5, 0.1, 2.5),  # type: ignore[arg-type]
        lambda: noise_for(1.0, 1e-5, 0.1, math.inf),  # type: ignore[arg-type]
        lambda: noise_for(1e9, 1e-5, 1.0, 1),
    ],
)
def test_values_that_cannot_be(call: Any) -> None:
    with pytest.raises(ConfigError):
        call()


def test_without_the_library_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"fedloom\[privacy\]"):
        Channel.of(DP(1.0, 1.0)).check(plan())


# ---------------------------------------------------------------- accounting


def released(
    times: int, law: str, q: float | None, z: float = 1.0, uses: int = 1, ledger: dict[str, float] | None = None
) -> dict[str, float]:
    ledger = {} if ledger is None else ledger
    for _ in range(times):
        for use in range(1, uses + 1):
            ex = exchange(1, 1.0, law=law, q=q, ledger=ledger, use=use)
            mean_of([Message(delta=torch.zeros(1))], DP(1.0, z), ex)
    return ledger


def sampled_gaussian(q: float, z: float, alpha: int) -> float:
    """Renyi divergence of order alpha of the Poisson-sampled Gaussian (Mironov, Talwar, Zhang 2019), integer orders."""
    k = np.arange(alpha + 1)
    binomial = gammaln(alpha + 1) - gammaln(k + 1) - gammaln(alpha - k + 1)
    away = np.where(k < alpha, (alpha - k) * np.log1p(-min(q, 1 - 1e-16)), 0.0)
    return float(logsumexp(binomial + away + k * np.log(q) + (k * k - k) / (2 * z * z)) / (alpha - 1))


def fixed_size(q: float, z: float, alpha: int) -> float:
    """The bound of Wang, Balle, Kasiviswanathan (2019), theorem 9, for the Gaussian; z over the sensitivity."""

    def e(j: int) -> float:
        return j / (2 * z * z)

    def binomial(j: int) -> float:
        return float(gammaln(alpha + 1) - gammaln(j + 1) - gammaln(alpha - j + 1))

    terms = [0.0, 2 * math.log(q) + binomial(2) + min(math.log(4) + math.log(math.expm1(e(2))), e(2) + math.log(2))]
    terms += [j * math.log(q) + binomial(j) + (j - 1) * e(j) + math.log(2) for j in range(3, alpha + 1)]
    return float(logsumexp(terms) / (alpha - 1))


def to_epsilon(rdp: Any, delta: float) -> float:
    orders = range(2, 200)
    return min(
        rdp(a) + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in orders
    )  # Canonne, Kamath, Steinke (2020), proposition 12


@pytest.mark.parametrize(
    ("q", "z", "rounds", "delta", "stated"),
    [
        (1.0, 1.0, 1, 1e-5, 4.728),
        (0.01, 1.0, 1000, 1e-5, 2.108),
        (256 / 60000, 1.3, 3516, 1e-5, 0.955),
        (0.1, 1.1, 30, 1e-3, 2.650),
    ],
)
def test_epsilon_of_poisson_draws(q: float, z: float, rounds: int, delta: float, stated: float) -> None:
    ledger = {f"gaussian poisson q={q!r} z={z!r} use=1": float(rounds)}
    ours = to_epsilon(lambda a: rounds * sampled_gaussian(q, z, a), delta)
    assert ours == pytest.approx(stated, rel=0.01)
    got = epsilon(ledger, delta)
    assert got <= ours * (1 + 1e-9)  # the library looks at orders between ours too
    assert got == pytest.approx(ours, rel=0.02)
    assert adjacency(ledger) == "add or remove one client"


def test_what_exchanges_book_is_what_is_accounted() -> None:
    ledger = released(30, "poisson", 0.1, 1.1)
    assert ledger == {"gaussian poisson q=0.1 z=1.1 use=1": 30.0}
    assert epsilon(ledger, 1e-3) == pytest.approx(2.650, abs=2e-2)
    assert GaussianNoise(1.1, delta=1e-3).report(ledger) == {
        "epsilon": epsilon(ledger, 1e-3),
        "delta": 1e-3,
        "neighbours": "add or remove one client",
    }
    assert epsilon(loads(dumps(ledger)), 1e-3) == epsilon(ledger, 1e-3)
    more = released(1, "poisson", 0.1, 1.1, ledger=dict(ledger))
    assert epsilon(more, 1e-3) > epsilon(ledger, 1e-3)


def test_no_draw_no_amplification() -> None:
    everybody = to_epsilon(lambda a: 5 * a / (2 * 2.0**2), 1e-5)
    for law, q in [("all", 1.0), ("poisson", 1.0), ("fixed", 1.0), ("poisson", None)]:
        assert epsilon(released(5, law, q, 2.0)) == pytest.approx(everybody, rel=0.02)
    assert epsilon(released(5, "poisson", 0.1, 2.0)) < everybody / 3


@pytest.mark.parametrize("q", [0.1, 1.0, None])
def test_a_client_that_a_rule_chooses_takes_the_place_of_another(q: float | None) -> None:
    """Of the k of highest loss one more pushes one out: the sum moves by two norms."""
    ledger = released(5, "by loss", q, 2.0)
    assert epsilon(ledger) == pytest.approx(to_epsilon(lambda a: 5 * a / (2 * 1.0**2), 1e-5), rel=0.02)
    assert adjacency(ledger) == "replace one client"


def test_fixed_size_draws_are_about_replacing_a_client() -> None:
    q, z, rounds = 0.02, 4.0, 50
    ledger = released(rounds, "fixed", q, z)
    bound = to_epsilon(lambda a: rounds * fixed_size(q, z / 2, a), 1e-5)  # replacing moves the sum by two norms
    got = epsilon(ledger)
    assert got <= bound * (1 + 1e-9)
    assert got > 0.8 * bound  # the library's constants are better in higher terms (theorem 27)
    assert got > 1.3 * to_epsilon(lambda a: rounds * fixed_size(q, z, a), 1e-5)
    assert got > epsilon(released(rounds, "poisson", q, z))
    assert adjacency(ledger) == "replace one client"


def test_exchanges_without_a_draw_count_for_replacement_too() -> None:
    ledger = {"gaussian fixed q=0.02 z=4.0 use=1": 1.0, "gaussian all q=1.0 z=4.0 use=1": 6.0}
    alone = to_epsilon(lambda a: 6 * a / (2 * 2.0**2), 1e-5)
    assert epsilon(ledger) == pytest.approx(alone, rel=0.03)
    assert epsilon(ledger) > alone * 0.99


def test_using_a_draw_twice_is_not_drawing_twice() -> None:
    """Two sums over one draw are one Gaussian at z / sqrt(2) inside the sampling."""
    twice = epsilon(released(20, "poisson", 0.05, 1.0, uses=2))
    merged = to_epsilon(lambda a: 20 * sampled_gaussian(0.05, 1.0 / math.sqrt(2), a), 1e-5)
    assert twice == pytest.approx(merged, rel=0.05)
    assert twice == pytest.approx(epsilon(released(20, "poisson", 0.05, 1.0 / math.sqrt(2))), rel=1e-9)
    assert twice > epsilon(released(40, "poisson", 0.05, 1.0)) * 1.2
    mixed = privacy.releases(released(3, "poisson", 0.05, 1.0, ledger=released(20, "poisson", 0.05, 1.0, uses=2)))
    assert {(r.uses, r.count) for r in mixed} == {(1, 3), (2, 20)}


def test_poisson_and_fixed_draws_do_not_add_up() -> None:
    with pytest.raises(NotSupported, match="different neighbours"):
        epsilon(released(1, "fixed", 0.1, ledger=released(1, "poisson", 0.1)))


def test_nothing_released_and_nothing_hidden() -> None:
    assert epsilon({}) == 0.0
    assert epsilon({"bytes": 3.0}) == 0.0
    assert epsilon(released(1, "poisson", 0.1, 0.0)) == math.inf


def test_noise_for_a_target() -> None:
    z = noise_for(2.0, 1e-5, 0.05, 100)
    assert epsilon({f"gaussian poisson q=0.05 z={z!r} use=1": 100.0}) == pytest.approx(2.0, rel=1e-3)
    assert epsilon({f"gaussian poisson q=0.05 z={z!r} use=1": 100.0}) <= 2.0 + 1e-9
