"""Randomness as a function: every draw is keyed by (seed, purpose, ...), never by the order of calls."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable

import numpy as np
import torch

from .checked import as_python


def seed_of(*key: Hashable) -> int:
    """A 63-bit seed from any printable key; every part of the key matters, and so do their types: only a number of
    NumPy is the Python number of its value."""
    digest = hashlib.blake2b(repr(tuple(map(as_python, key))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: Hashable) -> torch.Generator:
    """A fresh CPU generator for this key. `generator(seed, "order", client, round)`."""
    return torch.Generator().manual_seed(seed_of(*key))


def uniform(*key: Hashable) -> float:
    """One number in [0, 1) for this key, without building a generator."""
    return seed_of(*key) / float(1 << 63)


def choose(n: int, k: int, *key: Hashable) -> list[int]:
    """`k` of `range(n)` without replacement, in O(k) whatever `n` is."""
    return random.Random(seed_of(*key)).sample(range(n), k)


def scattered(ids: np.ndarray, *key: Hashable) -> np.ndarray:
    """One number in [0, 1) for each id `(n,)` under this key, all at once: SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed_of(*key))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
