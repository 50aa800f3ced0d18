"""Who averages with whom: mixing matrices for decentralised methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, unknown


class Topology:
    """A graph over clients with weights: `matrix(ids, rng)` is `(n, n)`, row i mixes into client `ids[i]`.

    Rows add up to 1; in the matrices here columns do, too, so the mean over clients stays what it is. A matrix may be
    sparse (COO, as those of graphs here) or dense.
    """

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Complete(Topology):
    """Everybody with everybody: one mixing step is the global mean. Dense: `n^2` numbers."""

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        n = len(ids)
        return torch.full((n, n), 1.0 / n, dtype=torch.float64)


@dataclass(frozen=True)
class Ring(Topology):
    """Each client with `reach` neighbours on either side, in the order of their numbers."""

    reach: int = 1

    def __post_init__(self) -> None:
        if not self.reach >= 1:
            raise ConfigError(f"Ring(reach={self.reach}) cannot be: one on either side or more, as in ring:2")

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        places = torch.arange(len(ids))
        steps = range(1, self.reach + 1)
        return metropolis(len(ids), [torch.stack([places, places.roll(-step)]) for step in steps])


@dataclass(frozen=True)
class RandomRegular(Topology):
    """A fresh random graph every time, each client with about `degree` neighbours."""

    degree: int = 4

    def __post_init__(self) -> None:
        if not self.degree >= 2:
            raise ConfigError(f"RandomRegular(degree={self.degree}) cannot be: two neighbours or more, as in random:4")

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        orders = [torch.randperm(len(ids), generator=rng) for _ in range(max(1, self.degree // 2))]
        return metropolis(len(ids), [torch.stack([order, order.roll(1)]) for order in orders])


@dataclass(frozen=True)
class Grid(Topology):
    """Rows as long as there are rows, the last one maybe shorter; on a torus every row and column is a ring."""

    torus: bool = False

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        n, places = len(ids), torch.arange(len(ids))
        width = math.isqrt(max(n - 1, 0)) + 1
        rows = [places[first : first + width] for first in range(0, n, width)]
        lines = rows + [places[column::width] for column in range(min(width, n))]
        links = [torch.stack([line, line.roll(-1)]) for line in lines]
        return metropolis(n, links if self.torus else [link[:, :-1] for link in links])


@dataclass(frozen=True)
class Exponential(Topology):
    """Each client with those 1, 2, 4, ... places on, in the order of their numbers: a step is mixed with all in about
    `log2(n)` steps, over about `2 log2(n)` neighbours."""

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        places = torch.arange(len(ids))
        return metropolis(len(ids), [torch.stack([places, places.roll(-hop)]) for hop in _hops(len(ids))])


@dataclass(frozen=True)
class OnePeer(Topology):
    """Each client takes half from the one 1, 2, 4, ... places on: which power it is, is drawn for every step. Directed;
    columns add up to 1 as well (Ying et al., NeurIPS 2021, who take the powers in turn)."""

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        n, hops = len(ids), _hops(len(ids))
        hop = hops[int(torch.randint(len(hops), (), generator=rng))] if hops else 0
        here = torch.arange(n)
        index = torch.stack([here.repeat(2), torch.cat([here, here.roll(-hop)])])
        return _sparse(index, torch.full((2 * n,), 0.5, dtype=torch.float64), n)


@dataclass(frozen=True)
class Star(Topology):
    """The first client with each of the others."""

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        spokes = torch.arange(1, len(ids))
        return metropolis(len(ids), [torch.stack([torch.zeros_like(spokes), spokes])])


@dataclass(frozen=True)
class ErdosRenyi(Topology):
    """A fresh random graph every time, in which each pair is linked with this chance."""

    chance: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise ConfigError(f"ErdosRenyi(chance={self.chance}) cannot be: a chance in [0, 1], as in erdos:0.3")

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        pairs = torch.triu_indices(len(ids), len(ids), 1)
        return metropolis(len(ids), [pairs[:, torch.rand(pairs.shape[1], generator=rng) < self.chance]])


@dataclass(frozen=True)
class Components(Topology):
    """Graphs with no edge between them: client i belongs to component `i % count`, a ring (or `inside`) of its own."""

    count: int = 4
    inside: Topology = Ring()

    def __post_init__(self) -> None:
        if not self.count >= 1:
            raise ConfigError(f"Components(count={self.count}) cannot be: one component or more, as in components:4")

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        whole = torch.zeros(len(ids), len(ids), dtype=torch.float64)
        for component in range(self.count):
            mine = [k for k, i in enumerate(ids) if i % self.count == component]
            if mine:
                places = torch.tensor(mine)
                whole[places[:, None], places] = self.inside.matrix([ids[k] for k in mine], rng).to_dense()
        return whole.to_sparse()


@dataclass(frozen=True)
class Graph(Topology):
    """Your own graph: pairs of client numbers, or anything with `.edges` (a networkx graph)."""

    edges: Any = ()

    def matrix(self, ids: Sequence[int], rng: torch.Generator) -> Tensor:
        place = {i: k for k, i in enumerate(ids)}
        pairs = [(place[a], place[b]) for a, b in getattr(self.edges, "edges", self.edges) if a in place and b in place]
        return metropolis(len(ids), [torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T])


def spectral_gap(matrix: Tensor) -> float:
    """`1 - ||W - 11^T/n||`, in [0, 1]: a mixing step shrinks the clients' distance from their mean to 1 minus this, or
    less. 0: some never hear of each other; 1: all are alike at once."""
    away = matrix.to_dense() - 1.0 / len(matrix)
    return 1.0 - float(torch.linalg.svdvals(away)[0])  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def _hops(n: int) -> list[int]:
    """1, 2, 4, ... below n."""
    return [2**p for p in range((n - 1).bit_length())] if n > 1 else []


def metropolis(n: int, edges: Sequence[Tensor]) -> Tensor:
    """Metropolis-Hastings weights of an undirected graph of `n`: symmetric, rows add up to 1 (Xiao, Boyd 2004).

    Args:
        edges: pairs of places, `(2, m)` each, in either direction; repeated ones count once, loops not at all.

    Returns:
        sparse `(n, n)`: as many numbers as there are clients and directed edges.
    """
    pairs = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *edges], 1)
    pairs = torch.cat([pairs, pairs.flip(0)], 1)
    pairs = pairs[:, pairs[0] != pairs[1]]
    a, b = _sparse(pairs, torch.ones(pairs.shape[1]), n).indices()
    degree = torch.bincount(a, minlength=n).double()
    w = 1.0 / (1.0 + torch.maximum(degree[a], degree[b]))
    own = 1.0 - torch.zeros(n, dtype=torch.float64).index_add_(0, a, w)
    here = torch.arange(n)
    return _sparse(torch.stack([torch.cat([a, here]), torch.cat([b, here])]), torch.cat([w, own]), n)


def _sparse(index: Tensor, values: Tensor, n: int) -> Tensor:
    """`(n, n)` with these values at these places `(2, m)`; what comes twice is added up."""
    return torch.sparse_coo_tensor(  # pyright: ignore[reportUnknownMemberType]
        index, values, (n, n), check_invariants=False
    ).coalesce()


_KINDS: dict[str, tuple[Callable[..., Topology], type[int] | type[float] | None]] = {
    "ring": (Ring, int),
    "grid": (Grid, None),
    "torus": (partial(Grid, torus=True), None),
    "exponential": (Exponential, None),
    "one-peer": (OnePeer, None),
    "star": (Star, None),
    "complete": (Complete, None),
    "random": (RandomRegular, int),
    "erdos": (ErdosRenyi, float),
    "components": (Components, int),
}
"""Name -> what makes it, and what its number is."""


def topology_named(name: str) -> Topology:
    """A topology by name: ring, ring:2, grid, torus, exponential, one-peer, star, complete, random:4, erdos:0.3,
    components:4 (rings apart from each other)."""
    kind, _, number = name.partition(":")
    if kind not in _KINDS:
        raise unknown("topology", name, _KINDS)
    make, read = _KINDS[kind]
    try:
        if number and read is None:
            raise ValueError(f"{kind} takes no number")
        return make(read(number)) if number and read else make()
    except ConfigError:
        raise
    except (TypeError, ValueError):
        raise ConfigError(
            f"topology {name!r} cannot be read: ring, ring:2, grid, torus, exponential, one-peer, star, complete, "
            f"random:4, erdos:0.3, components:4"
        ) from None
