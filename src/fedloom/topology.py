"""Who averages with whom: mixing matrices for decentralised methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, unknown


class Topology:
    """A graph over clients with weights: `matrix(ids, rng)` is `(n, n)`, row i mixes into client `ids[i]`.

    Rows add up to 1; the matrices here are symmetric, so the mean over clients stays what it is.
    """

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Complete(Topology):
    """Everybody with everybody: one mixing step is the global mean."""

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        n = len(ids)
        return torch.full((n, n), 1.0 / n, dtype=torch.float64)


@dataclass(frozen=True)
class Ring(Topology):
    """Each client with `reach` neighbours on either side, in the order of their numbers."""

    reach: int = 1

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        n = len(ids)
        adjacent = torch.zeros(n, n, dtype=torch.bool)
        for i in range(n):
            for step in range(1, self.reach + 1):
                adjacent[i, (i + step) % n] = adjacent[i, (i - step) % n] = True
        return metropolis(adjacent)


@dataclass(frozen=True)
class RandomRegular(Topology):
    """A fresh random graph every time, each client with about `degree` neighbours."""

    degree: int = 4

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        n = len(ids)
        adjacent = torch.zeros(n, n, dtype=torch.bool)
        for _ in range(max(1, self.degree // 2)):
            order = torch.randperm(n, generator=rng)
            adjacent[order, order.roll(1)] = adjacent[order.roll(1), order] = True
        return metropolis(adjacent)


@dataclass(frozen=True)
class Graph(Topology):
    """Your own graph: pairs of client numbers, or anything with `.edges` (a networkx graph)."""

    edges: Any = ()

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        place = {i: k for k, i in enumerate(ids)}
        adjacent = torch.zeros(len(ids), len(ids), dtype=torch.bool)
        for a, b in getattr(self.edges, "edges", self.edges):
            if a in place and b in place:
                adjacent[place[a], place[b]] = adjacent[place[b], place[a]] = True
        return metropolis(adjacent)


def metropolis(adjacent: Tensor) -> Tensor:
    """Metropolis-Hastings weights of an undirected graph `(n, n)`: symmetric, rows add up to 1 (Xiao, Boyd 2004)."""
    adjacent = adjacent.clone().fill_diagonal_(False)
    degree = adjacent.sum(1).double()
    w = torch.where(adjacent, 1.0 / (1.0 + torch.maximum(degree[:, None], degree[None, :])), 0.0).double()
    return w + torch.diag(1.0 - w.sum(1))


def topology_named(name: str) -> Topology:
    """A topology by name: ring, ring:2, complete, random:4."""
    kind, _, number = name.partition(":")
    kinds: dict[str, Any] = {"ring": Ring, "complete": Complete, "random": RandomRegular}
    if kind not in kinds:
        raise unknown("topology", name, kinds)
    try:
        return kinds[kind](int(number)) if number else kinds[kind]()
    except (TypeError, ValueError):
        raise ConfigError(f"topology {name!r} cannot be read: ring, ring:2, complete, random:4") from None
