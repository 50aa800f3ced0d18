"""Function-preserving transforms between chains of layers of different depth and width, and their union network.

    deeper   an identity layer behind the last layer of a stage; exact where a ReLU or nothing stands behind each layer
    wider    unit j of n becomes units j, j + n, j + 2n, ...: each a copy, what reads them divided by their number
    back     inserted layers go; of copies the first stays, and what reads them is added up

A stage is what lies between two poolings (or flattenings). The union network has, stage by stage, the most layers and
the most units of all. Both ways are linear in the weights: an entry of the union is `scale * w[index] + constant`.

    ways = union_of(models);  u = ways["small"].up(w);  ways["small"].down(u) == w
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.errors import NotSupported
from fedloom.model import Model

from .chains import Layer, chain_of


@dataclass(frozen=True)
class Way:
    """Between one network's vector `(d,)` and the union's `(D,)`.

    index, scale, constant: `(D,)`, what each entry of the union is made of; back: `(D,)`, the entries that count on
    the way back; size: d.
    """

    index: Tensor
    scale: Tensor
    constant: Tensor
    back: Tensor
    size: int

    def up(self, w: Tensor) -> Tensor:
        """The same function as a vector of the union network."""
        return self.scale.to(w) * w[self.index] + self.constant.to(w)

    def down(self, union: Tensor) -> Tensor:
        """What this network keeps of the union."""
        return union.new_zeros(self.size).index_add_(0, self.index[self.back].to(union.device), union[self.back])


def union_of(models: Mapping[str, Model]) -> dict[str, Way]:
    """The way of every network to the union of all and back.

    Raises:
        NotSupported: networks that differ in more than layers per stage and units per layer.
    """
    chains = {name: chain_of(model) for name, model in models.items()}
    first = next(iter(chains.values()))
    rows: dict[str, list[Layer | None]] = {name: [] for name in chains}  # None: a layer to be inserted
    for s in range(len(first.stages)):
        depths = {name: len(c.stages[s]) if s < len(c.stages) else -1 for name, c in chains.items()}
        if min(depths.values()) < 0 or (max(depths.values()) and not min(depths.values())):
            raise NotSupported(f"networks must have the same stages, each with a layer of its own; layers: {depths}")
        for name, c in chains.items():
            rows[name] += [*c.stages[s], *[None] * (max(depths.values()) - depths[name])]
    for name, c in chains.items():
        rows[name].append(c.head)
        if c.between != first.between or c.head.units != first.head.units:
            raise NotSupported(
                f"networks must pool and answer alike: {name} has {c.between} and {c.head.units} outputs"
            )
    columns = list(zip(*rows.values()))
    patterns = [next(layer for layer in column if layer is not None) for column in columns]
    for like, column in zip(patterns, columns):
        if any(layer and (layer.kernel, layer.bias) != (like.kernel, like.bias) for layer in column):
            raise NotSupported(f"layers at one place must have one kernel size, all or none a bias: {column}")
    units = {name: _units(row) for name, row in rows.items()}
    most = [max(column) for column in zip(*units.values())]
    return {name: _way(models[name], rows[name], units[name], most, patterns) for name in models}


def _units(row: list[Layer | None]) -> list[int]:
    """Units at every place; an inserted layer has those of the one before."""
    units: list[int] = []
    for layer in row:
        units.append(units[-1] if layer is None else layer.units)
    return units


def _way(model: Model, row: list[Layer | None], units: list[int], most: list[int], patterns: list[Layer]) -> Way:
    """Tensor by tensor of the union; `patterns` are layers some network has at each place."""
    pieces: list[Piece] = []
    read = torch.arange(patterns[0].inputs)  # which unit each unit of the union that a layer reads is a copy of
    for layer, pattern, n, n_union in zip(row, patterns, units, most):
        made = torch.arange(n_union) % n
        share = 1 / read.bincount().double()[read]  # of the weight with which a copy is read
        if layer is None:
            pieces += _inserted(pattern, made, read, share)
        else:
            pieces += _own(layer, model.layout.offsets, made, read, share)
        read = made
    return Way(*(torch.cat(parts) for parts in zip(*pieces)), size=model.layout.size)


Piece = tuple[Tensor, ...]
"""Index, scale, constant and back of one tensor's entries, flat."""


def _piece(index: Tensor, scale: Tensor, constant: Tensor, back: Tensor) -> Piece:
    return tuple(t.flatten() for t in torch.broadcast_tensors(index, scale, constant, back))


_ZERO, _NO = torch.tensor(0.0, dtype=torch.float64), torch.tensor(False)


def _inserted(pattern: Layer, made: Tensor, read: Tensor, share: Tensor) -> list[Piece]:
    """An identity: each unit is what the unit it copies was."""
    size = math.prod(pattern.kernel)
    middle = (torch.arange(size) == size // 2).double()
    same = (made[:, None] == read).double() * share
    weight = _piece(torch.tensor(0), _ZERO, same[:, :, None] * middle, _NO)
    bias = _piece(torch.zeros(len(made), dtype=torch.long), _ZERO, _ZERO, _NO)
    return [weight, bias] if pattern.bias else [weight]


def _own(layer: Layer, offsets: Mapping[str, int], made: Tensor, read: Tensor, share: Tensor) -> list[Piece]:
    """A layer of the network: rows of copied units copied, columns shared among copies of what they read."""
    size = math.prod(layer.kernel)
    positions = layer.inputs // (int(read.max()) + 1)  # inputs a unit gives, more than one where it was flattened
    column = (read[:, None] * positions + torch.arange(positions)).flatten()
    entry = (made[:, None] * layer.inputs + column)[:, :, None] * size + torch.arange(size)
    first = torch.arange(len(made)) == made  # not a copy
    scale = share.repeat_interleave(positions)[:, None]
    weight = _piece(offsets[f"{layer.name}.weight"] + entry, scale, _ZERO, first[:, None, None])
    if not layer.bias:
        return [weight]
    return [weight, _piece(offsets[f"{layer.name}.bias"] + made, _ZERO + 1, _ZERO, first)]
