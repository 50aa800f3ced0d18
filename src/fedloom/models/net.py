"""The shape all reference networks share: features, then a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedloom.errors import ConfigError

N = TypeVar("N", int, float)


class Net(nn.Module):
    """`head(features(x))`. The two names are what personalised and prototype methods select by.

    features: a module from a batch (n, *input_shape) to (n, dim); for answers per token to (n, tokens, dim).
    head: a module from (..., dim) to (..., classes), logits; for regression the values.
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def with_head(layers: Sequence[nn.Module], input_shape: tuple[int, ...], classes: int, dim: int | None = None) -> Net:
    """A Net of these feature layers and a linear head.

    dim: the size of the features; None takes what the last layer gives, a number adds a dense layer with a
        ReLU, so that networks of different architecture can be asked for features of one size.
    """
    features = nn.Sequential(*layers)
    given = _width(features, input_shape)
    if dim is not None:
        features.extend([nn.Linear(given, positive("dim", dim)), nn.ReLU()])
    return Net(features, nn.Linear(dim or given, classes))


def _width(features: nn.Sequential, input_shape: tuple[int, ...]) -> int:
    """The length of the vector these layers give for one sample of this shape."""
    try:
        with torch.no_grad():
            was, _ = features.training, features.eval()
            out = features(torch.zeros(1, *input_shape))
            features.train(was)
    except RuntimeError as error:
        raise ConfigError(f"an input of shape {input_shape} is too small for this network: {error}") from None
    return out.shape[1]


def scaled(channels: int, width: float) -> int:
    """A number of channels times a width, rounded up, at least 1."""
    return max(1, math.ceil(positive("width", width) * channels))


def positive(name: str, value: N) -> N:
    """`value` when it is above zero and finite; ConfigError otherwise."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} must be above 0 and finite, not {value!r}")
    return value


def expect(model: str, input_shape: tuple[int, ...], axes: str) -> None:
    """Refuse samples with another number of axes than the network reads; `axes` names them."""
    images, n = axes.startswith("channels, height"), len(axes.split(","))
    if len(input_shape) != n:
        grey = "; one channel of grey is x[:, None]" if images and len(input_shape) == n - 1 else ""
        raise ConfigError(f"model {model!r} reads samples of shape ({axes}), not {input_shape}{grey}")
    if images and input_shape[0] == input_shape[1] > 4 >= input_shape[2]:
        last = (
            "the channels come last here: give x.transpose(0, 3, 1, 2) of an array, x.permute(0, 3, 1, 2) of a tensor"
        )
        raise ConfigError(f"model {model!r} reads samples of shape ({axes}), not {input_shape}; {last}")
