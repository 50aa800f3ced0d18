"""Randomness as a function: every draw is keyed by (seed, purpose, ...), never by the order of calls."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable

import torch


def seed_of(*key: Hashable) -> int:
    """A 63-bit seed from any printable key; every part of the key matters, and so do their types."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
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
