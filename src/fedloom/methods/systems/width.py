"""Narrower copies of a network: which units stay, and a scale that makes up for those that are gone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def first_units(rate: float) -> Callable[[str, int], Tensor]:
    """The first `ceil(rate * n)` of n units."""
    return lambda group, n: torch.arange(math.ceil(rate * n))


class Scaler(nn.Module):
    """Divides activations by the share of units that are there, while training: the next layer sees the same scale."""

    def __init__(self, units: int, axis: int) -> None:
        super().__init__()
        self.units, self.axis = units, axis

    def forward(self, x: Tensor) -> Tensor:
        there = x.shape[self.axis]
        return x * (self.units / there) if self.training and there != self.units else x


def with_scalers(net: nn.Module) -> nn.Module:
    """A copy of a network with a scaler behind every hidden layer that makes units."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear | nn.Conv1d | nn.Conv2d) and name != "head":
                axis = -1 if isinstance(child, nn.Linear) else 1
                setattr(module, name, nn.Sequential(child, Scaler(child.weight.shape[0], axis)))
    return net
