"""Compression: `functions` of a tensor, the `packed` records that travel, and the channel `stages` made of them."""

from __future__ import annotations

from .entries import entries, scaled
from .functions import identity, quantize, rand_k, sign, top_k
from .packed import PackedAt, Plain, Quantized, Signs, Sparse, pack, unpack
from .stages import Compressor, Quantize, RandK, Sign, TopK

__all__ = [
    "Compressor",
    "PackedAt",
    "Plain",
    "Quantize",
    "Quantized",
    "RandK",
    "Sign",
    "Signs",
    "Sparse",
    "TopK",
    "entries",
    "identity",
    "pack",
    "quantize",
    "rand_k",
    "scaled",
    "sign",
    "top_k",
    "unpack",
]
