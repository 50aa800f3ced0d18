"""Narrower copies of a network: which units stay, what makes up for those that are gone, which classes count."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.errors import NotSupported
from fedloom.keyed import generator
from fedloom.model import Model
from fedloom.units.probe import role_of

Choose = Callable[[str, int], Tensor]
"""A group of tied units and how many there are -> numbers of those that stay."""


def kept(rate: float, n: int) -> int:
    """ceil(rate * n), unharmed by rounding: 0.55 of 100 units are 55."""
    return max(1, math.ceil(round(rate * n, 9)))


def first_units(rate: float) -> Choose:
    """The first `ceil(rate * n)` of n units."""
    return lambda group, n: torch.arange(kept(rate, n))


def rolling_units(rate: float, shift: int) -> Choose:
    """A window of `ceil(rate * n)` units that begins at unit `shift` and goes around."""
    return lambda group, n: (shift + torch.arange(kept(rate, n))) % n


def tiled_units(rate: float, place: int) -> Choose:
    """The window that comes at this place when windows of `ceil(rate * n)` units lie end to end, going around."""
    return lambda group, n: (place * kept(rate, n) + torch.arange(kept(rate, n))) % n


def random_units(rate: float, draw: int) -> Choose:
    """`ceil(rate * n)` units of each group by chance; equal for equal `draw`."""
    return lambda group, n: torch.randperm(n, generator=generator("units", draw, group))[: kept(rate, n)]


def strongest_units(model: Model, params: Tensor, rate: float) -> Choose:
    """Of n units the `ceil(rate * n)` whose incoming weights have the largest L1 norm (Li et al., ICLR 2017)."""
    norms = unit_norms(model, params)
    return lambda group, n: norms[group].topk(kept(rate, n)).indices


def unit_norms(model: Model, params: Tensor) -> dict[str, Tensor]:
    """Group -> sum of the absolute values of the weights that make each of its units `(n,)`."""
    units = model.units
    norms = params.new_zeros(sum(units.sizes.values()) + 1)  # the last is for positions that always stay
    for name, w in model.layout.tree(params.abs()).items():
        layer, _, leaf = name.rpartition(".")
        role = role_of(model.module.get_submodule(layer))
        sides = role.tensors.get(leaf, {}) if role else {}
        for axis, made in units.axes[name].items():
            if w.dim() > 1 and sides.get(axis) == "made":
                norms.index_add_(0, made.to(norms.device), w.movedim(axis, 0).flatten(1).sum(1))
    return dict(zip(units.sizes, norms[:-1].split(list(units.sizes.values()))))


# ---------------------------------------------------------------- the scaler
class Scaler(nn.Module):
    """Divides activations by the share of units that are there, while training: the next layer sees the same scale."""

    def __init__(self, units: int, axis: int) -> None:
        super().__init__()
        self.units, self.axis = units, axis

    def forward(self, x: Tensor) -> Tensor:
        there = x.shape[self.axis]
        return x * (self.units / there) if self.training and there != self.units else x


class Scaled(nn.Sequential):
    """A layer and its scaler, for a network that may read the layer's weights or sizes, as attention does."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("0"), name)


def with_scalers(net: nn.Module) -> nn.Module:
    """A copy of a network with a scaler behind every hidden layer that makes units."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear | nn.Conv1d | nn.Conv2d) and name != "head":
                axis = -1 if isinstance(child, nn.Linear) else 1
                setattr(module, name, Scaled(child, Scaler(child.weight.shape[0], axis)))
    return net


# ---------------------------------------------------------------- masked scores
def own_classes(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The task's loss with the scores of classes this client never sees set to 0."""
    return model.task.losses(model(w, *model.task.inputs(batch)) * extras["seen"], batch)


def seen_classes(model: Model, y: Tensor, like: Tensor) -> Tensor:
    """1 for classes among the labels `y`, 0 for the others `(rows of the head,)`, in the type of `like`.

    Raises:
        NotSupported: the labels are no classes, or the network has no last layer called `head`.
    """
    if y.is_floating_point():
        raise NotSupported("masked scores are those of classes a client has, and these targets are numbers: mask=False")
    shapes = [s for name, s in model.layout.shapes.items() if name.startswith("head.")]
    if not shapes:
        raise NotSupported("masked scores need a last layer called `head`, and this network has none: mask=False")
    return like.new_zeros(shapes[0][0]).index_fill(0, y.unique(), 1.0)


def without_rows(model: Model, seen: Tensor) -> Tensor:
    """Boolean over the vector: all but the head's rows of classes never seen."""
    keep = torch.ones(model.layout.size, dtype=torch.bool)
    for name, shape in model.layout.shapes.items():
        if name.startswith("head."):
            keep[model.layout.span(name)] = seen.bool().repeat_interleave(math.prod(shape[1:]))
    return keep
