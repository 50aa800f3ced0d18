"""The steps from samples to clients: hold out, put in client order, find the train rows, name the clients."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import ConfigError, DataError

from .convert import as_data
from .fields import Data
from .partitions import numbers
from .population import split_sizes


def check_fractions(**given: float) -> None:
    for name, value in given.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{name} is a fraction from 0 to below 1; given {value}")
    if sum(given.values()) >= 1:
        raise ConfigError(f"nothing is left to train on: {', '.join(f'{k}={v}' for k, v in given.items())}")


def hold_out(
    whole: Data,
    shared: dict[str, Any],
    group: Tensor | None,
    names: tuple[str, ...],
    seed: int,
    ordered: bool,
) -> tuple[np.ndarray, dict[str, Data | None]]:
    """The rows left for the clients, and the data of the server."""
    check_fractions(**{key: float(v) for key, v in shared.items() if isinstance(v, Real)})
    left, held = np.arange(len(whole)), dict[str, Data | None]()
    for key, given in shared.items():
        if given is None or (isinstance(given, Real) and given == 0):
            held[key] = None
        elif isinstance(given, Real):
            count = round(float(given) * len(whole))
            if count >= len(left):
                raise DataError(
                    f"{key}={given!r} of {len(whole)} samples is {count}, which leaves no client any: {len(left)} are "
                    f"not held out yet. Give a smaller fraction, or {key}=(x, y)"
                )
            # an equal share of every group: its last samples, or random ones
            queue = left if ordered else numbers(seed, "hold out", key).permutation(left)
            g = np.zeros(len(queue)) if group is None else group.numpy()[queue]
            taken = queue[np.argsort(_rank(g) / _size_of(g), kind="stable")[len(queue) - count :]]
            held[key] = whole.rows(torch.from_numpy(np.sort(taken)))
            left = np.setdiff1d(left, taken)
        elif isinstance(given, str):
            if key != "test" or given not in names:
                known = ", ".join(names) or "none: give groups=..."
                raise ConfigError(f"{key}={given!r} names no group; groups: {known}")
            assert group is not None
            away = (group == names.index(given)).numpy()
            held[key], left = whole.rows(torch.from_numpy(np.flatnonzero(away))), left[~away[left]]
        else:
            held[key] = data = as_data(given, key)
            if not len(data):
                raise DataError(f"{key}: no samples")
            if key != "public":
                same_shape(whole, data, key)
        part = held[key]
        if part is not None and not len(part):
            raise DataError(f"{key}={given!r} of {len(whole)} samples is no sample at all")
    return left, held


def _rank(group: np.ndarray) -> np.ndarray:
    """The position of each sample within its group."""
    order = np.argsort(group, kind="stable")
    _, start, counts = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(start, counts)
    return rank


def _size_of(group: np.ndarray) -> np.ndarray:
    """The size of each sample's group."""
    _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    return counts[index]


def by_client(owner: np.ndarray, clients: int, rng: np.random.Generator | None) -> tuple[Tensor, np.ndarray]:
    """The order that puts samples by client (shuffled within, unless rng is None), and the offsets."""
    mixed = np.arange(len(owner)) if rng is None else rng.permutation(len(owner))
    index = mixed[np.argsort(owner[mixed], kind="stable")]
    counts = np.bincount(owner, minlength=clients)
    return torch.from_numpy(index), np.concatenate([[0], np.cumsum(counts)])


def train_mask(offsets: np.ndarray, val: float, test: float) -> Tensor:
    """Which rows of the table are train samples."""
    counts = np.diff(offsets)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    return torch.from_numpy(place < np.repeat(split_sizes(counts, val, test)[0], counts))


def client_names(group: np.ndarray, names: tuple[str, ...], offsets: np.ndarray) -> tuple[str, ...] | None:
    """Each client's group name, if every client is one group and no two share one; None for large
    populations."""
    counts = np.diff(offsets)
    if len(counts) > 10_000 or (counts == 0).any():
        return None
    low, high = np.minimum.reduceat(group, offsets[:-1]), np.maximum.reduceat(group, offsets[:-1])
    if (low != high).any():
        return None
    seen: dict[int, int] = {}
    shared = np.bincount(low).max() > 1
    found = []
    for g in low.tolist():
        seen[g] = seen.get(g, 0) + 1
        found.append(f"{names[g]} {seen[g]}" if shared else names[g])
    return tuple(found)


def same_shape(first: Data, other: Data, where: str) -> None:
    shapes = [{name: tuple(t.shape[1:]) for name, t in d.items()} for d in (first, other)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{where}: samples have {shapes[1]}, the others {shapes[0]}; one federation has one set of "
            f"fields and shapes (clients that differ: Federation.generated(n, size, make))"
        )
    kinds = [{name: str(t.dtype)[6:] for name, t in d.items()} for d in (first, other)]
    if kinds[0] != kinds[1]:
        name = next(name for name in kinds[0] if kinds[0][name] != kinds[1][name])
        raise DataError(
            f"{where}: the field {name!r} is {kinds[1][name]}, and {kinds[0][name]} elsewhere; one federation has one "
            f"type for each field: give it as {name}.to(torch.{kinds[0][name]})"
        )


def kinds(table: Data) -> dict[str, str]:
    """Type and shape of each field in words."""
    return {k: f"{str(t.dtype)[6:]} {tuple(t.shape[1:])}" for k, t in table.items()}


def contents(table: Data, offsets: np.ndarray) -> dict[str, Any]:
    """What a federation's `info` says of its samples."""
    return {
        "samples": len(table),
        "fields": kinds(table),
        "empty_clients": int((np.diff(offsets) == 0).sum()),
    }
