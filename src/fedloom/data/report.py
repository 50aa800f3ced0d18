"""How different the clients are: label, feature and quantity skew of a bounded number of clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedloom.errors import ConfigError, DataError
from fedloom.keyed import choose

from .federation import Federation
from .fields import Data
from .partitions import numbers


def heterogeneity(fed: Federation, clients: int = 200, samples: int = 200, seed: int = 0) -> dict[str, Any]:
    """Skew of the clients' TRAIN samples, as plain numbers.

    Args:
        fed: the federation.
        clients: how many clients to look at, chosen at random where there are more.
        samples: how many samples of each to take the features of.
        seed: of both choices.

    Returns:
        - `clients`, `measured`: how many there are, and how many were looked at.
        - `quantity`: samples per client (`mean`, `min`, `median`, `max`), `empty` clients, `gini` (0 equal, 1 one has
          all) and `cv`, standard deviation over mean.
        - `labels` (where there are any; bytes for text): `jensen_shannon` and `total_variation`, the mean over clients
          of the distance of their label distribution to the pooled one, both in 0..1; `jensen_shannon_iid`, what the
          first would be had clients of these sizes drawn from the pooled distribution; `classes_per_client`.
        - `features` (where `x` are floats): `shift`, the mean over clients of the distance between their mean input and
          the pooled mean, in units of the pooled standard deviation; `shift_iid`, about what sampling alone would give;
          `pairwise`, the mean distance between two clients' mean inputs in the same units; `spread`, the mean
          absolute log2 of a client's own standard deviation over the typical one (noise shows here, not in `shift`);
          `largest`, the inputs that shift most.
    """
    if clients < 1 or samples < 1:
        raise ConfigError(f"1 or more clients and samples are looked at; given clients={clients}, samples={samples}")
    ids = _chosen(fed, clients, seed)
    sizes = fed.sizes(ids)
    found: dict[str, Any] = {"clients": len(fed), "measured": len(ids), "quantity": _quantity(sizes)}
    held = [int(i) for i, n in zip(ids, sizes) if n > 0]
    if not held:
        raise DataError(f"{fed.name}: none of the {len(ids)} clients looked at has a train sample")
    if (histograms := _histograms(fed, held)) is not None:
        found["labels"] = _label_skew(histograms, seed)
    if (means := _means(fed, held, samples, seed)) is not None:
        found["features"] = _feature_skew(fed, means)
    return found


def _chosen(fed: Federation, clients: int, seed: int) -> np.ndarray:
    if len(fed) <= clients:
        return np.arange(len(fed))
    return np.sort(np.array(choose(len(fed), clients, seed, "heterogeneity")))


# -------------------------------------------------------------------------------------------------- measures


def gini(sizes: np.ndarray) -> float:
    """Gini coefficient: 0 where all are equal, (n - 1) / n where one of n has everything."""
    n, total = len(sizes), sizes.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(sizes) / (n * total)) if total else 0.0


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence to base 2 (0..1) between distributions along the last axis."""
    middle = (p + q) / 2
    return (_relative(p, middle) + _relative(q, middle)) / 2


def _relative(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    ratio = np.divide(p, q, out=np.ones_like(q), where=(p > 0) & (q > 0))
    return (p * np.log2(ratio)).sum(-1)


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the L1 distance (0..1) between distributions along the last axis."""
    return np.abs(p - q).sum(-1) / 2


def _quantity(sizes: np.ndarray) -> dict[str, float]:
    mean = float(sizes.mean())
    return {
        "mean": mean,
        "min": int(sizes.min()),
        "median": float(np.median(sizes)),
        "max": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
        "gini": gini(sizes),
        "cv": float(sizes.std() / mean) if mean else 0.0,
    }


def _histograms(fed: Federation, ids: Sequence[int]) -> np.ndarray | None:
    """Label counts `(clients, classes)`; None without integer labels."""
    first = fed.local(ids[0])
    if "y" not in first or first["y"].is_floating_point():
        return None
    labels = [y[y >= 0] for y in (fed.local(i)["y"].flatten().cpu() for i in ids)]
    if not any(map(len, labels)):
        return None
    classes = fed.classes or max(int(y.max()) + 1 for y in labels if len(y))
    return np.stack([torch.bincount(y, minlength=classes).numpy() for y in labels])


def _label_skew(counts: np.ndarray, seed: int) -> dict[str, float]:
    total = counts.sum(1)
    counts, total = counts[total > 0], total[total > 0]
    pooled = counts.sum(0) / counts.sum()
    shares = counts / total[:, None]
    drawn = numbers(seed, "as if iid").multinomial(total, pooled) / total[:, None]
    return {
        "jensen_shannon": float(jensen_shannon(shares, pooled[None].repeat(len(shares), 0)).mean()),
        "jensen_shannon_iid": float(jensen_shannon(drawn, pooled[None].repeat(len(shares), 0)).mean()),
        "total_variation": float(total_variation(shares, pooled).mean()),
        "classes_per_client": float((counts > 0).sum(1).mean()),
    }


@dataclass(frozen=True)
class _Means:
    mean: np.ndarray  # (clients, d) mean input, less that of one sample
    counts: np.ndarray  # (clients,) samples it was taken of
    std: np.ndarray  # (d,) pooled standard deviation
    own: np.ndarray  # (clients,) size of the client's own deviation from its mean


def _means(fed: Federation, ids: Sequence[int], samples: int, seed: int) -> _Means | None:
    """Moments of each client's inputs; None where inputs are no floats or clients differ in shape."""
    first = fed.local(ids[0])
    if "x" not in first or not first["x"].is_floating_point():
        return None
    # seen from one of the samples, inputs that never vary are 0, and large ones keep their small differences
    origin = first["x"][:1].flatten(1).double().cpu()
    means, squares, counts = [], [], []
    for i in ids:
        x = _some(fed.local(i), samples, seed, i)
        if x.shape[1:] != first["x"].shape[1:]:
            return None
        flat = x.flatten(1).double().cpu() - origin
        means.append(flat.mean(0).numpy())
        squares.append(flat.square().mean(0).numpy())
        counts.append(len(flat))
    mean, square, n = np.stack(means), np.stack(squares), np.array(counts)
    weight = n[:, None] / n.sum()
    variance = (weight * square).sum(0) - (weight * mean).sum(0) ** 2
    own = np.sqrt(np.maximum(square - mean**2, 0).sum(1) * n / np.maximum(n - 1, 1))
    return _Means(mean, n, np.sqrt(np.maximum(variance, 0)), own)


def _some(local: Data, samples: int, seed: int, id: int) -> torch.Tensor:
    if len(local) <= samples:
        return local["x"]
    return local["x"][torch.tensor(choose(len(local), samples, seed, "features", id))]


def _feature_skew(fed: Federation, means: _Means) -> dict[str, Any]:
    mean, n, std = means.mean, means.counts, means.std
    live = std > 1e-12 * max(float(std.max()), 1e-300)
    if not live.any():
        return {"shift": 0.0, "shift_iid": 0.0, "pairwise": 0.0, "spread": 0.0, "largest": []}
    pooled = (n[:, None] * mean).sum(0) / n.sum()
    apart = (mean - pooled)[:, live] / std[live]
    per_input = np.zeros(len(std))
    per_input[live] = np.sqrt((apart**2).mean(0))
    pairs, count = _pairs(apart), len(apart)
    own = means.own[(n > 1) & (means.own > 0)]
    columns = fed.info.get("columns", [])
    top = np.argsort(-per_input, kind="stable")[:5]
    return {
        "shift": float(np.sqrt((apart**2).mean(1)).mean()),
        "shift_iid": float(np.sqrt(np.maximum(1 / n - 1 / n.sum(), 0)).mean()),
        "pairwise": float(pairs.sum() / (count * (count - 1))) if count > 1 else 0.0,
        "spread": float(np.abs(np.log2(own / np.median(own))).mean()) if len(own) else 0.0,
        "largest": [
            {"input": columns[i] if i < len(columns) else int(i), "shift": float(per_input[i])} for i in top.tolist()
        ],
    }


def _pairs(apart: np.ndarray) -> np.ndarray:
    """Root mean squared differences between all rows, without an array of clients x clients x inputs."""
    norms = (apart**2).mean(1)
    return np.sqrt(np.maximum(norms[:, None] + norms[None] - 2 * apart @ apart.T / apart.shape[1], 0))
