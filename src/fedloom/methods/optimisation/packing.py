"""What methods have in common that are compressors themselves: a codec, its exact bytes, and a job's mean gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from fedloom.channel.compression import Quantize, RandK, Sign, TopK, identity
from fedloom.clients import Clients
from fedloom.errors import ConfigError, Declined
from fedloom.message import Message, Packed
from fedloom.method import Method
from fedloom.training import SGD
from fedloom.training.request import Trained
from fedloom.vector import Layout

Codec: TypeAlias = TopK | RandK | Quantize | Sign | None
"""How a vector travels, as one piece; None: in full."""


@dataclass(frozen=True)
class Packing(Method):
    """Clients whose replies are compressed vectors.

    Only weights are compressed, `(t,)` of the vector's d numbers; its running statistics, where it has any, travel as
    they are and are averaged: a part of a variance's way, or one of another round, would make it negative.

    Args:
        codec: topk, randk, quantize, sign or none, on all weights. Its `feedback` is set by the method, which
            keeps what was left out in its own way; randk is scaled where the method's compressors are unbiased.
        solver: plain local SGD, since the mean gradient is read off the way the model moved.
    """

    unbiased: ClassVar[bool] = False
    """Whether the method is made for unbiased compressors, and not for contracting ones."""

    cohort: int | float = 10
    solver: SGD = SGD(lr=0.1, epochs=5, batch_size=32)
    server_lr: float = 1.0
    codec: Codec = TopK(0.05)

    def __post_init__(self) -> None:
        if self.solver.momentum or self.solver.weight_decay or self.solver.clip:
            raise ConfigError(
                f"{self.card.title} reads the mean gradient off the way the model moved, so its local solver is plain "
                f"SGD; given {self.solver}. Use SGD(lr=..., epochs=...)"
            )

    def sizes(self, clients: Clients) -> dict[str, float]:
        layout = clients.model.layout
        weights = self.packed(torch.zeros(layout.trainable), torch.Generator())
        return {"packed": weights.nbytes + 4 * (layout.size - layout.trainable)}

    def packed(self, v: Tensor, rng: torch.Generator) -> Packed:
        """A vector `(t,)` as it travels."""
        return replace(self.codec, feedback=not self.unbiased).compress(v, rng) if self.codec else identity(v)


def weights(vector: Tensor, layout: Layout) -> Tensor:
    """The weights `(t,)` of a vector `(d,)`."""
    return vector[: layout.trainable]


def statistics(change: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The field of a reply that holds how running statistics changed, of a model that keeps any."""
    return {"statistics": change[layout.trainable :]} if layout.trainable < layout.size else {}


def moved(params: Tensor, way: Tensor, got: Message) -> Tensor:
    """The model `(d,)` with its weights moved by `way` `(t,)`, and its statistics by the mean change of them."""
    if "statistics" not in got:
        return params + way
    return torch.cat([params[: len(way)] + way, params[len(way) :] + got.statistics])


def mean_gradient(params: Tensor, out: Trained) -> Tensor:
    """What a job's steps moved along, per unit of step size `(d,)`: the mean gradient, where nothing was added to it.

    Raises:
        Declined: there were no steps; the job leaves no trace.
    """
    if not out.steps:
        raise Declined("it did no step, so it has no gradient to send")
    return (params - out.vector) / (out.steps * out.lr)
