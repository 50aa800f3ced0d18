"""Shares drawn from a Dirichlet distribution: of labels, of clusters of embeddings, of the number of samples."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedloom.data.fields import Data
from fedloom.errors import DataError

from .base import Partition, integer_key, not_negative, numbers, positive

Encoder: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Label skew: the samples of each label are split over the clients in shares drawn from Dirichlet(alpha).

    For every value v of the key: q_v ~ Dirichlet(alpha, ..., alpha) over clients, and client i gets the share
    q_v[i] of the samples with that value. Draws that leave a client below `least` are repeated up to ten
    times; then samples move, one by one, from the clients that hold most.

    Args:
        alpha: concentration, > 0; 0.1 is strong skew, 100 almost IID.
        least: the fewest samples of a client; 0 allows empty clients.
        by: "label", "group", "embedding" (k-means clusters), or the name of an integer field.
    """

    alpha: float
    least: int = 1
    by: str = "label"

    spec = "dirichlet"

    def __post_init__(self) -> None:
        positive("alpha of a Dirichlet partition", self.alpha)
        not_negative("least", self.least)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        key = _clusters(data, rng) if self.by == "embedding" else integer_key(data, self.by)
        return dirichlet_split(key, self.alpha, clients, self.least, rng)


@dataclass(frozen=True)
class Quantity(Partition):
    """Quantity skew: random samples, sizes in shares drawn from Dirichlet(alpha) over the clients."""

    alpha: float
    least: int = 1

    spec = "quantity"

    def __post_init__(self) -> None:
        positive("alpha of a quantity partition", self.alpha)
        not_negative("least", self.least)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        return dirichlet_split(np.zeros(len(data), dtype=np.int64), self.alpha, clients, self.least, rng)


@dataclass(frozen=True)
class EmbeddingDirichlet(Partition):
    """Dirichlet over clusters of embeddings: skew for tasks without classes (embedding-based heterogeneity,
    2025).

    The samples are embedded (by `encoder`, ideally a network trained for the same task; by default the
    flattened inputs), reduced by PCA, grouped by k-means, and the clusters take the place of labels in
    `Dirichlet`.

    Args:
        alpha: concentration, > 0.
        clusters: number of k-means clusters, >= 1; compare with label skew at `clusters` = number of classes.
        components: principal components kept before clustering; 0 keeps the embedding as it is.
        least: the fewest samples of a client; 0 allows empty clients.
        encoder: function of a batch `x (b, ...)` that returns embeddings `(b, ...)`; not expressible as text.
    """

    alpha: float
    clusters: int = 10
    components: int = 32
    least: int = 1
    encoder: Encoder | None = None

    spec = "embedding"

    def __post_init__(self) -> None:
        positive("alpha of a Dirichlet partition", self.alpha)
        positive("clusters", self.clusters)
        not_negative("components", self.components)
        not_negative("least", self.least)

    def fit(self, data: Data, rng: np.random.Generator | int = 0) -> Callable[[Data], Tensor]:
        """Clusters the samples; the function returned gives the cluster `(n,)` of any samples (test data is
        assigned to these centroids, never clustered again)."""
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA

        rng = rng if isinstance(rng, np.random.Generator) else numbers(int(rng), "partition")
        state = int(rng.spawn(1)[0].integers(2**31))  # a child stream: the split itself draws as `Dirichlet` does
        features = embed(data, self.encoder)
        if len(features) < self.clusters:
            raise DataError(f"{self} makes {self.clusters} clusters of {len(features)} samples; use fewer clusters")
        reduce: Callable[[np.ndarray], np.ndarray] = np.asarray
        if 0 < self.components < min(features.shape):
            reduce = PCA(self.components, random_state=state).fit(features).transform
        starts: Any = 4  # the best of several starts: k-means depends much on its seed
        means = KMeans(self.clusters, n_init=starts, random_state=state).fit(reduce(features))
        return lambda other: torch.as_tensor(means.predict(reduce(embed(other, self.encoder)))).long()

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        key = self.fit(data, rng)(data).numpy()
        return dirichlet_split(key, self.alpha, clients, self.least, rng)


def _clusters(data: Data, rng: np.random.Generator) -> np.ndarray:
    return EmbeddingDirichlet(alpha=1.0).fit(data, rng)(data).numpy()


def embed(data: Data, encoder: Encoder | None = None, batch: int = 512) -> np.ndarray:
    """Embeddings float32 `(n, d)` of the field `x`: of the encoder, or the flattened inputs."""
    if "x" not in data:
        raise DataError(f"embeddings are made of the field 'x'; these samples have {', '.join(data)}")
    with torch.no_grad():
        parts = [part if encoder is None else encoder(part) for part in data["x"].split(batch)]
    embedded = torch.cat([part.detach().cpu().float().reshape(len(part), -1) for part in parts])
    if not embedded.isfinite().all():
        raise DataError("embeddings are finite numbers; the encoder gave some that are NaN or infinite")
    return embedded.numpy()


def dirichlet_split(key: np.ndarray, alpha: float, clients: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """The samples `(n,)` of each key value split over clients in Dirichlet(alpha) shares; see `Dirichlet`."""
    rows_of = [np.flatnonzero(key == value) for value in np.unique(key)]
    alpha = min(float(alpha), 1e100)  # shares are equal long before; far above, they are no numbers any more
    owner, counts = np.empty(len(key), dtype=np.int64), np.zeros(0)
    for _ in range(10):
        for rows in rows_of:
            share = rng.dirichlet(np.full(clients, alpha))
            cuts = np.floor(np.cumsum(share)[:-1] * len(rows))
            owner[rng.permutation(rows)] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
        counts = np.bincount(owner, minlength=clients)
        if counts.min() >= least:
            return owner
    return _repair(owner, counts, least, rng)


def _repair(owner: np.ndarray, counts: np.ndarray, least: int, rng: np.random.Generator) -> np.ndarray:
    """Moves random samples from the clients that hold most until everyone has `least`."""
    owner, counts = owner.copy(), counts.copy()
    mixed = rng.permutation(len(owner))
    by_owner = mixed[np.argsort(owner[mixed], kind="stable")]
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    donors = [(-int(c), i) for i, c in enumerate(counts) if c > least]
    heapq.heapify(donors)
    for taker in np.flatnonzero(counts < least):
        while counts[taker] < least:
            held, donor = heapq.heappop(donors)
            owner[by_owner[first[donor] - held - 1]] = taker  # the donor's last sample
            counts[taker] += 1
            if -held - 1 > least:
                heapq.heappush(donors, (held + 1, donor))
    return owner
