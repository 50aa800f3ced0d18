"""Equal shares: at random, or of samples sorted by label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedloom.data.fields import Data
from fedloom.errors import DataError

from .base import Partition, integer_key, positive


@dataclass(frozen=True)
class IID(Partition):
    """Every client gets a random share of equal size (sizes differ by one at most)."""

    spec = "iid"

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(np.arange(len(data)) % clients)


@dataclass(frozen=True)
class Shards(Partition):
    """Pathological label skew (FedAvg paper): sort by label, cut into equal shards, deal `per_client` to each
    client."""

    per_client: int = 2
    by: str = "label"

    spec = "shards"

    def __post_init__(self) -> None:
        positive("shards per client", self.per_client)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        key = integer_key(data, self.by)
        shards = clients * self.per_client
        if len(key) < shards:
            raise DataError(f"{self} cuts {shards} shards for {clients} clients out of {len(key)} samples")
        mixed = rng.permutation(len(key))
        by_label = mixed[np.argsort(key[mixed], kind="stable")]
        holder = rng.permutation(np.arange(shards) % clients)
        owner = np.empty(len(key), dtype=np.int64)
        owner[by_label] = np.repeat(holder, _even(len(key), shards))
        return owner


def _even(n: int, parts: int) -> np.ndarray:
    """Sizes of `parts` parts of n that differ by one at most."""
    return np.full(parts, n // parts) + (np.arange(parts) < n % parts)
