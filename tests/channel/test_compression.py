"""Compressors and their stages against NumPy, their own algebra, and bytes counted another way."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.channel import (
    Channel,
    Quantize,
    RandK,
    Sender,
    Sign,
    Sparse,
    Stage,
    TopK,
    identity,
    quantize,
    rand_k,
    sign,
    top_k,
)
from fedloom.channel.compression import pack, unpack
from fedloom.errors import ConfigError, MessageError, NotSupported
from fedloom.keyed import generator
from fedloom.message import At, Message, leaves, nbytes, opened
from fedloom.written import dumps, loads

SHAPES = st.sampled_from([(0,), (1,), (2, 0), (7,), (8,), (9,), (3, 5), (2, 3, 4), (33,)])
DTYPES = st.sampled_from([torch.float32, torch.float64])
FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "identity": identity,
    "top_k": lambda v: top_k(v, 0.3),
    "top_k few": lambda v: top_k(v, 0.02),
    "rand_k": lambda v: rand_k(v, 0.3, generator("r")),
    "quantize 3": lambda v: quantize(v, 3),
    "quantize 8": lambda v: quantize(v, 8, generator("q")),
    "quantize 11": lambda v: quantize(v, 11, generator("q"), bucket=4),
    "quantize 32": lambda v: quantize(v, 32),
    "sign": sign,
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("test", seed), dtype=torch.float64).to(dtype)


def sender(memory: dict[str, Any] | None = None, key: int = 0, program: str = "local") -> Sender:
    return Sender(0, {} if memory is None else memory, lambda purpose: generator(purpose, key), program=program)


def encode(stages: Stage | tuple[Stage, ...], message: Message, s: Sender | None = None) -> Message:
    return Channel.of(stages).encode(message, s or sender())


def plan(needs: tuple[str, ...] = ()) -> Any:
    card = SimpleNamespace(needs=frozenset(needs), title="Method")
    return SimpleNamespace(method=SimpleNamespace(card=card), models={})


# ---------------------------------------------------------------- bits


@given(st.integers(1, 32), st.lists(st.integers(0, 2**32 - 1), max_size=40))
@settings(deadline=None)
def test_codes_are_packed_bit_by_bit(bits: int, values: list[int]) -> None:
    codes = torch.tensor(values, dtype=torch.int64) % 2**bits
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(len(codes) * bits / 8)
    assert torch.equal(unpack(packed, bits, len(codes)), codes)


def test_one_bit_codes_are_numpys_packbits() -> None:
    bits = (normal(19) > 0).to(torch.int64)
    assert pack(bits, 1).tolist() == np.packbits(bits.numpy().astype(np.uint8), bitorder="little").tolist()


# ---------------------------------------------------------------- every compressor


@pytest.mark.parametrize("name", FUNCTIONS)
@given(shape=SHAPES, dtype=DTYPES)
@settings(deadline=None, max_examples=20)
def test_shape_dtype_bytes_and_round_trip(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    v = normal(*shape, dtype=dtype)
    packed = FUNCTIONS[name](v)
    assert packed.dense().shape == v.shape
    assert packed.dense().dtype == dtype
    stored = [x for x in leaves(packed) if isinstance(x, torch.Tensor)]
    seed = 8 if name == "rand_k" and isinstance(packed.place, int) else 0
    assert packed.nbytes == nbytes(packed) == sum(t.numel() * t.element_size() for t in stored) + seed
    again = loads(dumps(packed))
    assert type(again) is type(packed)
    assert torch.equal(again.dense(), packed.dense())
    assert again.nbytes == packed.nbytes


@pytest.mark.parametrize("name", FUNCTIONS)
def test_zeros_stay_zeros_and_scaling_scales(name: str) -> None:
    assert FUNCTIONS[name](torch.zeros(9)).dense().abs().sum() == 0
    packed = FUNCTIONS[name](normal(40))
    torch.testing.assert_close(packed.scaled(0.25).dense(), 0.25 * packed.dense())
    assert packed.scaled(0.25).nbytes == packed.nbytes


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(name: str, bad: float) -> None:
    for place in range(6):
        v = torch.ones(6)
        v[place] = bad
        assert not torch.isfinite(FUNCTIONS[name](v).dense()).all()


KEPT = {
    (1, 0.01): 1,
    (9, 1e-12): 1,
    (30, 0.1): 3,
    (64, 1.0): 64,
    (100, 0.02): 2,
    (100, 0.05): 5,
    (1000, 0.5): 500,
}


@pytest.mark.parametrize(("d", "share"), KEPT)
def test_bytes_of_sparse_tensors_counted_by_hand(d: int, share: float) -> None:
    k = KEPT[d, share]
    place = 0 if k == d else min(4 * k, (d + 7) // 8)
    assert top_k(normal(d), share).nbytes == 4 * k + place
    assert rand_k(normal(d), share, generator(1)).nbytes == 4 * k + (0 if k == d else 8)
    assert top_k(normal(d, dtype=torch.float64), share).nbytes == 8 * k + place


@pytest.mark.parametrize(("d", "bits", "bucket", "size"), [(100, 8, None, 104), (100, 3, None, 42), (9, 4, None, 9)])
def test_bytes_of_quantised_tensors_counted_by_hand(d: int, bits: int, bucket: int | None, size: int) -> None:
    assert quantize(normal(d), bits, bucket=bucket).nbytes == size
    assert quantize(normal(d), bits, bucket=2).nbytes == math.ceil(d * bits / 8) + 4 * math.ceil(d / 2)
    assert sign(normal(d)).nbytes == (d + 7) // 8 + 4


@pytest.mark.parametrize("place", [[0, 9], [-1, 2]])
def test_positions_from_afar_are_checked(place: list[int]) -> None:
    with pytest.raises(MessageError, match="outside"):
        Sparse(torch.ones(2), torch.tensor(place, dtype=torch.int32), (9,)).dense()


# ---------------------------------------------------------------- against NumPy


def test_top_k_is_numpys() -> None:
    v = normal(5, 40)
    flat = v.numpy().ravel()
    keep = np.argsort(-np.abs(flat))[:20]
    expected = np.zeros_like(flat)
    expected[keep] = flat[keep]
    assert np.array_equal(top_k(v, 0.1).dense().numpy().ravel(), expected)


def test_nearest_quantisation_is_numpys() -> None:
    v = normal(50, dtype=torch.float64)
    x = v.numpy()
    top, scale = 7, np.abs(x).max()
    expected = np.rint(x / scale * top) / top * scale
    np.testing.assert_allclose(quantize(v, 4).dense().numpy(), expected, rtol=1e-12)
    assert np.abs(expected - x).max() <= scale / top / 2 + 1e-12


def test_stochastic_quantisation_rounds_to_a_neighbour() -> None:
    v = normal(500, dtype=torch.float64)
    x, scale = v.numpy(), float(v.abs().max())
    at = quantize(v, 4, generator("q")).dense().numpy() / scale * 7
    low, high = np.floor(x / scale * 7), np.ceil(x / scale * 7)
    assert ((np.abs(at - low) < 1e-9) | (np.abs(at - high) < 1e-9)).all()
    assert (np.abs(at - np.rint(x / scale * 7)) > 0.5).any()  # not all to the nearest


def test_buckets_have_scales_of_their_own() -> None:
    v = torch.cat([normal(8), 1000 * normal(8, seed=1)])
    whole, parts = quantize(v, 6).dense(), quantize(v, 6, bucket=8).dense()
    assert (parts[:8] - v[:8]).abs().max() < 0.1 < (whole[:8] - v[:8]).abs().max()
    assert torch.equal(parts, torch.cat([quantize(v[:8], 6).dense(), quantize(v[8:], 6).dense()]))


def test_sign_is_numpys() -> None:
    x = normal(33).numpy()
    expected = np.where(x >= 0, 1, -1) * np.abs(x).mean()
    np.testing.assert_allclose(sign(torch.from_numpy(x)).dense().numpy(), expected, rtol=1e-6)


def test_rand_k_keeps_scaled_entries() -> None:
    v = normal(60)
    out = rand_k(v, 0.25, generator("r")).dense()
    kept = out != 0
    assert int(kept.sum()) == 15
    torch.testing.assert_close(out[kept], 4 * v[kept])
    plain = rand_k(v, 0.25, generator("r"), unbiased=False).dense()
    assert torch.equal(plain[kept], v[kept])


@given(shape=SHAPES, dtype=DTYPES)
@settings(deadline=None, max_examples=20)
def test_nothing_left_out_is_the_identity(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    v = normal(*shape, dtype=dtype)
    assert torch.equal(top_k(v, 1.0).dense(), v)
    assert torch.equal(rand_k(v, 1.0, generator(1)).dense(), v)
    assert torch.equal(identity(v).dense(), v)
    scale = float(v.abs().max()) if v.numel() else 1.0
    torch.testing.assert_close(quantize(v, 32).dense(), v, rtol=1e-6, atol=scale * 2**-31)


@pytest.mark.parametrize("c", [lambda v: top_k(v, 0.1), sign], ids=["top_k", "sign"])
def test_contraction(c: Callable[[torch.Tensor], Any]) -> None:
    for seed in range(20):
        v = normal(50, seed=seed, dtype=torch.float64) ** 3
        left, all_ = float(((v - c(v).dense()) ** 2).sum()), float((v**2).sum())
        delta = 0.1 if c is not sign else float(v.abs().sum()) ** 2 / (50 * all_)
        assert left <= (1 - delta) * all_ * (1 + 1e-9)
        assert c(v).dense().norm() <= v.norm()


@pytest.mark.parametrize(
    ("c", "variance"),
    [
        (lambda v, rng: quantize(v, 2, rng), None),
        (lambda v, rng: quantize(v, 4, rng, bucket=5), None),
        (lambda v, rng: rand_k(v, 0.25, rng), 3.0),
    ],
    ids=["quantize", "quantize buckets", "rand_k"],
)
def test_unbiased(c: Callable[..., Any], variance: float | None) -> None:
    v, n = normal(20, dtype=torch.float64), 4000
    rng = generator("unbiased")
    draws = torch.stack([c(v, rng).dense() for _ in range(n)])
    error = (draws.mean(0) - v) / (draws.std(0) / math.sqrt(n)).clamp_min(1e-12)
    assert error.abs().max() < 4.5  # 20 normal variables: beyond 4.5 once in 7,000 experiments, and the seed is fixed
    if variance is not None:  # omega = d / k - 1
        spread = float(((draws - v) ** 2).sum(1).mean() / (v**2).sum())
        assert spread == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: top_k(torch.ones(3), 0.0), "in \\(0, 1\\]"),
        (lambda: top_k(torch.ones(3), 1.5), "in \\(0, 1\\]"),
        (lambda: top_k(torch.arange(3), 0.5), "floating"),
        (lambda: quantize(torch.ones(3), 1), "sign"),
        (lambda: quantize(torch.ones(3), 33), "2 to 32"),
        (lambda: quantize(torch.ones(3), 8, bucket=0), "at least 1"),
        (lambda: TopK(0.0), "TopK\\(share=0.0\\)"),
        (lambda: RandK(2.0), "RandK"),
        (lambda: Quantize(1), "2 to 32"),
        (lambda: Quantize(8, rounding="neares"), "nearest"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()


# ---------------------------------------------------------------- stages


def test_stages_act_on_floating_tensors_only() -> None:
    message = Message(
        delta=normal(40), rows=At(torch.tensor([2, 0]), normal(2, 5), 4), heads=[normal(8), {"a": normal(9)}],
        n=3, loss=0.5, scalar=torch.tensor(1.0), counts=torch.arange(4), name="x",
    )  # fmt: skip
    sent = encode(Quantize(4), message)
    assert sent.n == 3
    assert sent.loss == 0.5
    assert sent.name == "x"
    assert torch.equal(sent.scalar, torch.tensor(1.0))
    assert torch.equal(sent.counts, torch.arange(4))
    read = opened(Channel.of(Quantize(4)).decode(sent))
    assert read.delta.shape == (40,)
    assert not torch.equal(read.delta, message.delta)
    assert isinstance(read.rows, At)
    assert torch.equal(read.rows.index, message.rows.index)
    assert read.heads[1]["a"].shape == (9,)
    numbers, tensors = 8 + 8 + 4 + 32 + 1, (20 + 4) + (5 + 4 + 1) + (4 + 4) + (5 + 4)
    assert sent.nbytes == numbers + tensors
    assert dumps(sent) == dumps(loads(dumps(sent)))


def test_named_fields_only() -> None:
    message = Message(delta=normal(20), control=normal(20, seed=1))
    sent = encode(TopK(0.1, fields=("delta",)), message)
    assert torch.equal(sent.control, message.control)
    assert int((opened(sent).delta != 0).sum()) == 2
    with pytest.raises(ConfigError, match=r"'delt'.*delta"):
        encode(TopK(0.1, fields=("delt",)), message)


@pytest.mark.parametrize("stage", [TopK(0.1), Sign(), RandK(0.2, feedback=True), Quantize(3, feedback=True)], ids=str)
def test_error_feedback_telescopes(stage: Stage) -> None:
    """What was sent and what is still kept add up to what was put in."""
    channel, memory = Channel.of(stage), {}
    put, got = torch.zeros(30, dtype=torch.float64), torch.zeros(30, dtype=torch.float64)
    for t in range(12):
        v = normal(30, seed=t, dtype=torch.float64)
        put += v
        got += opened(channel.encode(Message(delta=v), sender(memory, t))).delta
    (left,) = memory.values()
    assert left.abs().sum() > 0
    torch.testing.assert_close(got + left, put, rtol=1e-12, atol=1e-12)


def test_random_entries_are_scaled_only_where_nothing_is_fed_back() -> None:
    v = normal(30)
    for feedback, scale in ((True, 1), (False, 5)):
        sent = opened(encode(RandK(0.2, feedback=feedback), Message(delta=v))).delta
        kept = sent != 0
        torch.testing.assert_close(sent[kept], scale * v[kept])


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_what_two_bits_leave_for_later_does_not_pile_up(rounding: Any) -> None:
    memory: dict[str, Any] = {}
    for t in range(60):
        encode(Quantize(2, rounding, feedback=True), Message(delta=normal(2000, seed=t)), sender(memory, t))
    (left,) = memory.values()
    assert left.norm() < 4 * 2000**0.5


def test_error_feedback_in_numpy() -> None:
    memory: dict[str, Any] = {}
    e = np.zeros(10, dtype=np.float32)
    for t in range(5):
        g = normal(10, seed=t)
        v = g.numpy() + e
        m = np.where(np.abs(v) >= np.sort(np.abs(v))[-2], v, 0)
        e = v - m
        sent = opened(encode(TopK(0.2), Message(delta=g), sender(memory, t)))
        assert np.array_equal(sent.delta.numpy(), m)


def test_feedback_of_parts_is_kept_for_the_whole() -> None:
    memory: dict[str, Any] = {}
    channel = Channel.of(TopK(0.5))
    first, second = torch.tensor([0, 1]), torch.tensor([1, 2])
    a = opened(channel.encode(Message(w=At(first, torch.tensor([3.0, 1.0]), 4)), sender(memory)))
    assert a.w.values.tolist() == [3.0, 0.0]
    b = opened(channel.encode(Message(w=At(second, torch.tensor([1.0, 1.5]), 4)), sender(memory)))
    assert b.w.values.tolist() == [2.0, 0.0]  # 1 now and 1 kept
    (left,) = memory.values()
    assert left.tolist() == [0.0, 0.0, 1.5, 0.0]


def test_two_programs_keep_their_errors_apart() -> None:
    memory: dict[str, Any] = {}
    encode(TopK(0.5), Message(delta=torch.tensor([2.0, 1.0])), sender(memory, program="warm"))
    out = opened(encode(TopK(0.5), Message(delta=torch.tensor([5.0, 4.5])), sender(memory, program="local")))
    assert out.delta.tolist() == [5.0, 0.0]
    assert len(memory) == 2


def test_a_field_that_changes_shape_needs_at() -> None:
    memory: dict[str, Any] = {}
    encode(TopK(0.5), Message(delta=torch.ones(4)), sender(memory))
    with pytest.raises(NotSupported, match=r"At\(index"):
        encode(TopK(0.5), Message(delta=torch.ones(3)), sender(memory))


def test_sparse_then_quantised() -> None:
    v = normal(1000)
    sent = encode((TopK(0.05), Quantize(4)), Message(delta=v))
    assert sent.nbytes == 125 + 25 + 4  # a bitmap of 1000 is cheaper than 50 positions; 50 codes of 4 bits; a scale
    out = opened(loads(dumps(sent))).delta
    assert torch.equal(out, opened(sent).delta)
    assert (out - top_k(v, 0.05).dense()).abs().max() <= v.abs().max() / 7
    rows = Message(w=At(torch.tensor([1, 3]), normal(2, 6), 5))
    read = opened(encode((RandK(0.5), Quantize(8)), rows)).w
    assert read.values.shape == (2, 6)
    assert int((read.values != 0).sum()) == 6


def test_draws_are_keyed() -> None:
    message = Message(delta=normal(50))
    same, other = (opened(encode(Quantize(2), message, sender(key=k))).delta for k in (0, 1))
    assert torch.equal(same, opened(encode(Quantize(2), message, sender(key=0))).delta)
    assert not torch.equal(same, other)


def test_a_method_that_compresses_is_not_compressed_again() -> None:
    message = Message(sent=top_k(normal(20), 0.1))
    for stage in (TopK(0.1), RandK(0.1)):
        with pytest.raises(MessageError, match="compressed already"):
            encode(stage, message)
    assert opened(encode(Quantize(8), message)).sent.shape == (20,)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((TopK(0.1), TopK(0.2)), "two sparsifiers"),
        ((TopK(0.1), RandK(0.2)), "two sparsifiers"),
        ((Quantize(8), Sign()), "two quantisers"),
        ((Quantize(8), TopK(0.1)), r"Write: topk:0.1 \| quantize:8"),
        ((TopK(0.1), Sign()), "feedback=False"),
    ],
)
def test_orders_that_do_not_work_are_refused(stages: tuple[Stage, ...], words: str) -> None:
    with pytest.raises(NotSupported, match=words):
        Channel.of(stages).check(plan())


def test_orders_that_work() -> None:
    for stages in [(TopK(), Quantize(8)), (TopK(), Sign(feedback=False)), (RandK(), Quantize(4)), (Quantize(8),)]:
        Channel.of(stages).check(plan(("replies", "memory", "clock")))


@pytest.mark.parametrize("stage", [TopK(), RandK(), Quantize(8), Sign()])
def test_models_between_clients_pass_no_stage_and_that_is_said(stage: Stage) -> None:
    with pytest.raises(NotSupported, match=rf"Method sends models from client to client, and {type(stage).__name__}"):
        Channel.of(stage).check(plan(("memory", "peers")))
