"""HeteroFL (Diao, Ding, Tarokh, ICLR 2021): every client trains the slice of the network its device can carry.

    rate r_i:  the first ceil(r_i K) units of every hidden layer;    w_i = w[those entries]
    client:    CE with the scores of classes it has not seen set to 0, activations divided by r_i while training
    server:    each entry becomes the mean over the clients that hold it; entries nobody holds stay as they are;
               rows of the last layer count only for classes a client has

Sent: the slice both ways (about r^2 d), and which classes up. The index set follows from these, so it is never sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, NotSupported
from fedloom.message import At, Message
from fedloom.method import Method, State, register
from fedloom.model import Model, Part
from fedloom.replies import Evaluation
from fedloom.training import SGD, Solver

from .width import first_units, with_scalers


def own_classes(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The task's loss with the scores of classes this client never sees set to 0."""
    return model.task.losses(model(w, *model.task.inputs(batch)) * extras["seen"], batch)


@dataclass(frozen=True)
class HeteroFLState(State):
    """params: the full network `(d,)`."""

    params: Tensor


@register
@dataclass(frozen=True)
class HeteroFL(Method):
    """Width-sliced networks for devices of different size.

    Args:
        rates: client i has rate `rates[i % len(rates)]`, each in (0, 1] (paper: 1 down to 1/16).
        scale, mask: the paper's scaler, and its masked scores (for networks whose last layer is called `head`).
    """

    card = Card(
        id="heterofl",
        title="HeteroFL",
        paper="HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients",
        authors="E. Diao, J. Ding, V. Tarokh",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2010.01264",
        family="systems",
        summary="every client trains the slice of the network its device can carry",
        down=None,
        up=None,
        why_bytes="4 per entry of the client's slice, about r^2 d; up C more, and no rows of classes a client lacks",
        reduces=(("rates = (1,), mask = False", "fedavg (weight = uniform)"),),
        deviations=(
            "rates are fixed by client number, the paper's `fix` mode",
            "the scaler divides by the share of units that is there, ceil(r K) / K, not by r",
            "batch norm follows the task's buffers rule (`batch` is static batch norm without the final query)",
        ),
        claim="a mixed fleet beats training with the full-size clients only, and its small slices work as they are",
    )

    cohort: int = 10
    rates: tuple[float, ...] = (1.0, 0.25)
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    scale: bool = True
    mask: bool = True

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < r <= 1 for r in self.rates):
            raise ConfigError(f"HeteroFL(rates={self.rates}) cannot be: one rate or more, each in (0, 1]")

    def module(self, net: nn.Module) -> nn.Module:
        return with_scalers(net) if self.scale else net

    def start(self, clients: Clients, before: HeteroFLState | None = None) -> HeteroFLState:
        return HeteroFLState(params=before.params if before else clients.model.initial())

    def part(self, model: Model, id: int) -> Part:
        """The slice of client `id`."""
        return model.part(first_units(self.rates[id % len(self.rates)]))

    async def local(self, client: Client, params: Tensor) -> Message:
        part, size = self.part(client.model, client.id), client.model.layout.size
        if not self.mask:
            out = await client.train(params, solver=self.solver, model=part.model)
            return Message(params=At(part.index, out.vector, size, known=True))
        seen = params.new_zeros(rows_of_head(part.model))
        seen[client.data.y.unique()] = 1.0
        out = await client.train(params, solver=self.solver, model=part.model, loss=own_classes, extras={"seen": seen})
        keep = held(part.model, seen)
        return Message(params=At(part.index[keep], out.vector[keep], size, known=True), classes=seen.bool())

    def round(self, state: HeteroFLState, clients: Clients) -> HeteroFLState:
        cohort = clients.sample(self.cohort)
        slices = [state.params[clients.model.part(first_units(r)).index] for r in self.rates]
        each = {i: {"params": slices[i % len(slices)]} for i in cohort}
        got = clients.mean(self.local, cohort, weight=1, each=each)
        return replace(state, params=got.params.over(state.params)) if got.count else state

    async def personalise(self, client: Client, params: Tensor) -> Callable[..., Tensor]:
        """The client's slice of the full network, as it is."""
        part = self.part(client.model, client.id)
        return lambda *x: part.model(params[part.index], *x)

    def evaluate(self, state: HeteroFLState, clients: Clients) -> dict[str, Evaluation]:
        """The full network, and every slice as it is."""
        views = {"global": clients.evaluate(state.params)}
        for r in sorted(set(self.rates) - {1.0}):
            part = clients.model.part(first_units(r))
            w = state.params[part.index]
            views[f"rate{r:g}"] = clients.evaluate(lambda *x, part=part, w=w: part.model(w, *x))
        return views


def rows_of_head(model: Model) -> int:
    """Rows of the layer `head`, one per class."""
    shapes = [s for name, s in model.layout.shapes.items() if name.startswith("head.")]
    if not shapes:
        raise NotSupported("HeteroFL masks the rows of a last layer called `head`; this network has none: mask=False")
    return shapes[0][0]


def held(model: Model, seen: Tensor) -> Tensor:
    """Boolean over the slice: all but the head's rows of classes never seen."""
    keep = torch.ones(model.layout.size, dtype=torch.bool)
    for name, shape in model.layout.shapes.items():
        if name.startswith("head."):
            keep[model.layout.span(name)] = seen.bool().repeat_interleave(math.prod(shape[1:]))
    return keep
