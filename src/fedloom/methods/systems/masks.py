"""Which weights of a network may go, and which stay.

A mask is boolean `(d,)`, True where a weight stays. Biases, norms and statistics are never pruned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedloom.errors import NotSupported
from fedloom.model import Model
from fedloom.vector import Layout


def prunable(model: Model) -> Tensor:
    """Boolean `(d,)`, where the model is: the weights of linear and convolutional layers."""
    matrices = torch.zeros(model.layout.size, dtype=torch.bool)
    for name, shape in model.layout.shapes.items():
        matrices[model.layout.span(name)] = len(shape) > 1
    matrices &= model.where(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return matrices.to(next(model.module.parameters()).device)


def layers(layout: Layout, among: Tensor) -> list[str]:
    """Names of the tensors that hold any of the entries `among`."""
    return [name for name in layout.shapes if bool(among[layout.span(name)].any())]


def largest(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """The mask that keeps the `count` entries of largest score `among` some, and everything else; of equals the first.

    With `|w|` as scores and all prunable weights it is global magnitude pruning.
    """
    inside = among.nonzero().flatten()
    mask = ~among
    mask[inside[scores[inside].argsort(descending=True, stable=True)[:count]]] = True
    return mask


def largest_per_layer(scores: Tensor, among: Tensor, layout: Layout, density: Mapping[str, float]) -> Tensor:
    """The mask that keeps the share `density[name]` of each tensor's prunable entries, those of largest score."""
    mask = ~among
    for name in layers(layout, among):
        at = layout.span(name)
        mask[at] = largest(scores[at], among[at], round(density[name] * int(among[at].sum())))
    return mask


def erk(layout: Layout, among: Tensor, density: float) -> dict[str, float]:
    """Erdos-Renyi-kernel densities (Evci et al. 2020): a layer's is proportional to the sum of its sizes over their
    product, at most 1, and together they keep the share `density` of all entries `among`.

    Raises:
        NotSupported: there are none.
    """
    if not bool(among.any()):
        raise NotSupported("weights of linear and convolutional layers are pruned, and this network trains none")
    size = {name: math.prod(layout.shapes[name]) for name in layers(layout, among)}
    share = {name: sum(layout.shapes[name]) / size[name] for name in size}
    full: list[str] = []
    while True:
        some = [name for name in size if name not in full]
        left = density * sum(size.values()) - sum(size[name] for name in full)
        scale = left / sum(share[name] * size[name] for name in some)
        densest = max(some, key=lambda name: share[name])
        if scale * share[densest] <= 1 + 1e-9:
            return {name: 1.0 if name in full else min(1.0, scale * share[name]) for name in size}
        full.append(densest)


def best_ratio(gain: Tensor, cost: Tensor, fixed: float, sure: Tensor) -> Tensor:
    """The mask that contains `sure` and maximises `sum gain / (fixed + sum cost)` over what it keeps.

    Args:
        gain: `(d,)`, >= 0; cost: `(d,)`, > 0; fixed: > 0.
    """
    maybe = (~sure).nonzero().flatten()
    order = maybe[(gain[maybe] / cost[maybe]).argsort(descending=True, stable=True)]
    gains = torch.cat([gain[sure].sum().view(1), gain[order]]).double().cumsum(0)
    costs = torch.cat([cost[sure].sum().view(1) + fixed, cost[order]]).double().cumsum(0)
    mask = sure.clone()
    mask[order[: int((gains / costs).argmax())]] = True  # the ratio rises, and then falls
    return mask


def knapsack(value: Tensor, size: Tensor, capacity: Tensor | float) -> Tensor:
    """Boolean `(n,)`: items in order of value per size, each that still fits (greedy; works under `torch.vmap`)."""
    order = (value / size).argsort(descending=True, stable=True)
    left, taken = value.new_zeros(()) + capacity, torch.zeros_like(value, dtype=torch.bool)
    for k in range(len(order)):
        item = torch.arange(len(order), device=value.device) == order[k]
        fits = (size * item).sum() <= left
        left = left - (size * item).sum() * fits
        taken = taken | (item & fits)
    return taken
