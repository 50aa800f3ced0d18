"""Compressors: pure functions of a tensor.

    top_k(v, 0.05)          the largest 5 % by magnitude           biased, contracts
    rand_k(v, 0.05, rng)    a random 5 %, scaled by 1 / 0.05       unbiased; positions travel as a seed
    quantize(v, 8, rng)     8-bit codes, stochastic rounding       unbiased; without rng: nearest
    sign(v)                 signs and the mean magnitude           biased, contracts

They act on the whole tensor: a model vector is compressed as one, not layer by layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedloom.errors import ConfigError

from .packed import Plain, Quantized, Signs, Sparse, bucketed, drawn, exact_dtype, pack


def identity(v: Tensor) -> Plain:
    """Everything, uncompressed: the neutral element."""
    return Plain(v)


def top_k(v: Tensor, share: float) -> Sparse:
    """The `ceil(share * d)` entries of largest magnitude of the whole tensor.

    Biased; contracts: `|v - C(v)|^2 <= (1 - share) |v|^2`. Bytes: `k` values and the cheaper of `4k` and `ceil(d/8)`.

    Args:
        v: any shape, floating.
        share: part of the entries kept, in (0, 1].

    Raises:
        ConfigError: share out of range, or v not floating.
    """
    flat = _floating(v, "top_k").reshape(-1)
    k = _count(share, len(flat))
    index = flat.abs().topk(k, sorted=False).indices.sort().values
    return Sparse(flat[index], _placed(index, len(flat)), tuple(v.shape))


def rand_k(v: Tensor, share: float, rng: torch.Generator, unbiased: bool = True) -> Sparse:
    """`ceil(share * d)` random entries; the receiver draws their positions from an 8-byte seed.

    Unbiased with variance `(d/k - 1) |v|^2`, the entries being scaled by `d / k`; `unbiased=False` sends them as they
    are, which contracts (`|v - C(v)|^2 = (1 - k/d) |v|^2` in expectation) and is what error feedback needs. One
    entry of v that is not finite, drawn or not, makes all of them NaN: such a reply must not pass for a good one.

    Args:
        v: any shape, floating.
        share: part of the entries kept, in (0, 1].
        rng: a CPU generator.

    Raises:
        ConfigError: share out of range, or v not floating.
    """
    flat = _floating(v, "rand_k").reshape(-1)
    d, k = len(flat), _count(share, len(flat))
    if k == d:
        return Sparse(flat.clone(), _placed(torch.arange(d), d), tuple(v.shape))
    seed = int(torch.randint(2**62, (), generator=rng))
    values = flat[drawn(seed, d, k).to(v.device)].where(flat.isfinite().all(), math.nan)
    return Sparse(values * (d / k) if unbiased else values, seed, tuple(v.shape))


def quantize(v: Tensor, bits: int, rng: torch.Generator | None = None, bucket: int | None = None) -> Quantized:
    """Uniform quantisation to `bits` bits between -max|v| and +max|v|, of the whole tensor or of each bucket.

    With `rng` a value is rounded up with a chance equal to its fraction: unbiased (QSGD, Alistarh et al. 2017, with
    the maximum norm). Without, to the nearest level: biased, the error is at most half a level `max|v| / (2**bits-2)`.
    Bytes: `ceil(d * bits / 8)` and one scale for each bucket.

    Args:
        v: any shape, floating.
        bits: 2 to 32.
        rng: a CPU generator for stochastic rounding.
        bucket: at most so many neighbours share a scale; None: all.

    Raises:
        ConfigError: bits or bucket out of range, or v not floating.
    """
    if not 2 <= bits <= 32:
        raise ConfigError(f"quantize takes 2 to 32 bits; given {bits}. One bit is sign(v)")
    if bucket is not None and bucket < 1:
        raise ConfigError(f"quantize takes a bucket of at least 1 value, or None for one scale; given {bucket}")
    flat, top = _floating(v, "quantize").reshape(-1), 2 ** (bits - 1) - 1
    n = len(flat)
    rows = bucketed(flat, math.ceil(n / min(bucket or n, n)) if n else 0)
    scales = rows.abs().amax(1) if n else flat.new_zeros(0)
    exact = exact_dtype(v.dtype, bits)
    safe = torch.where(scales > 0, scales, torch.ones_like(scales)).to(exact).unsqueeze(1)
    # the ratio first: it is at most 1, and value * top could overflow
    at = (rows.to(exact) / safe * top).flatten()[:n]
    if rng is None:
        level = at.round()
    else:
        level = at.floor()
        level += torch.rand(n, generator=rng, dtype=exact).to(v.device) < at - level
    codes = level.nan_to_num(0.0).to(torch.int64).clamp_(-top, top) + top  # NaN shows in the scale
    return Quantized(pack(codes, bits), scales, bits, tuple(v.shape))


def sign(v: Tensor) -> Signs:
    """Signs, scaled by the mean magnitude `|v|_1 / d` (a zero counts as positive).

    Biased; contracts: `|v - C(v)|^2 = |v|^2 - |v|_1^2 / d`. Bytes: `ceil(d / 8)` and one scale.

    Raises:
        ConfigError: v is not floating.
    """
    flat = _floating(v, "sign").reshape(-1)
    scale = flat.abs().mean().reshape(1) if len(flat) else flat.new_zeros(1)
    return Signs(pack((flat >= 0).to(torch.int64), 1), scale, tuple(v.shape))


def _floating(v: Tensor, what: str) -> Tensor:
    if not v.is_floating_point():
        raise ConfigError(f"{what} compresses floating tensors; given {v.dtype}. Convert it, or leave it as it is")
    return v


def _count(share: float, d: int) -> int:
    if not 0 < share <= 1:
        raise ConfigError(f"the share of entries kept is in (0, 1]; given {share}")
    return math.ceil(share * d * (1 - 1e-12))  # 0.1 * 30 is a hair more than 3


def _placed(index: Tensor, d: int) -> Tensor:
    """Ascending positions, in the smaller of two codings; nothing when all are there."""
    k = len(index)
    if k == d:
        return torch.empty(0, dtype=torch.int32)
    wide = torch.int32 if d < 2**31 else torch.int64
    if k * wide.itemsize <= math.ceil(d / 8):
        return index.to(wide)
    return pack(torch.zeros(d, dtype=torch.int64, device=index.device).index_fill_(0, index, 1), 1)
