"""HeteroFL (Diao, Ding, Tarokh, ICLR 2021): every client trains the slice of the network its device can carry.

    rate r_i:  the first ceil(r_i K) units of every hidden layer;    w_i = w[those entries]
    client:    CE with the scores of classes it has not seen set to 0, activations divided by r_i while training
    server:    each entry becomes the mean over the clients that hold it; entries nobody holds stay as they are;
               rows of the last layer count only for classes a client has

Sent: the slice both ways (about r^2 d). The index set follows from the rate, so it is never sent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import At, Message
from fedloom.method import Method, State, register
from fedloom.model import Part
from fedloom.replies import Evaluation
from fedloom.training import SGD, Solver


def first_units(rate: float) -> Callable[[str, int], Tensor]:
    """The first `ceil(rate * n)` of n units."""
    return lambda group, n: torch.arange(max(1, math.ceil(rate * n)))


class Scaler(nn.Module):
    """Divides activations by the share of units that are there, while training: the next layer sees the same scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.width / x.shape[1]) if self.training and x.shape[1] != self.width else x


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
    """Width-sliced networks for devices of different size; for networks whose last layer is called `head`.

    Args:
        rates: client i has rate `rates[i % len(rates)]`, each in (0, 1] (paper: 1 down to 1/16).
        scale, mask: the paper's scaler and masked scores.
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
        why_bytes="4 times the entries of the client's slice, about r^2 d; fewer up where classes are missing",
        reduces=(("rates = (1,), mask = False", "fedavg (weight = uniform)"),),
        deviations=(
            "rates are fixed by client number, the paper's `fix` mode",
            "batch norm follows the task's buffers rule (`batch` is static batch norm without the final query)",
        ),
        claim="a mixed fleet beats training with the full-size clients only, and its small slices work as they are",
    )

    cohort: int = 10
    rates: tuple[float, ...] = (1.0, 0.25)
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    scale: bool = True
    mask: bool = True

    def module(self, net: nn.Module) -> nn.Module:
        return with_scalers(net) if self.scale else net

    def rate(self, id: int) -> float:
        return self.rates[id % len(self.rates)]

    def start(self, clients: Clients, before: HeteroFLState | None = None) -> HeteroFLState:
        return HeteroFLState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        part = client.model.part(first_units(self.rate(client.id)))
        if not self.mask:
            out = await client.train(params, solver=self.solver, model=part.model)
            return Message(params=At(part.index, out.vector, client.model.layout.size, known=True))
        rows = part.model.layout.shapes["head.bias"][0]
        seen = torch.zeros(rows, dtype=params.dtype)
        seen[client.data.y.unique()] = 1.0
        out = await client.train(params, solver=self.solver, model=part.model, loss=own_classes, extras={"seen": seen})
        keep = held(part, seen)
        return Message(
            params=At(part.index[keep], out.vector[keep], client.model.layout.size, known=True), classes=seen.bool()
        )

    def round(self, state: HeteroFLState, clients: Clients) -> HeteroFLState:
        cohort = clients.sample(self.cohort)
        index = {r: clients.model.part(first_units(r)).index for r in set(map(self.rate, cohort))}
        each = {i: {"params": state.params[index[self.rate(i)]]} for i in cohort}
        got = clients.mean(self.local, cohort, weight=1, each=each)
        return replace(state, params=got.params.over(state.params)) if got.count else state

    def down(self, state: HeteroFLState, id: int) -> dict[str, Any]:
        return {"params": state.params}

    def evaluate(self, state: HeteroFLState, clients: Clients) -> dict[str, Evaluation]:
        """The full network, and every slice as it is."""
        views = {"global": clients.evaluate(state.params)}
        for r in sorted(set(self.rates) - {1.0}):
            part = clients.model.part(first_units(r))
            w = state.params[part.index]
            views[f"rate{r:g}"] = clients.evaluate(lambda *x, part=part, w=w: part.model(w, *x))
        return views


def held(part: Part, seen: Tensor) -> Tensor:
    """Boolean over the slice: all but the last layer's rows of classes never seen."""
    layout = part.model.layout
    keep = torch.ones(layout.size, dtype=torch.bool)
    for name in ("head.weight", "head.bias"):
        rows = seen.bool().view(-1, *[1] * (len(layout.shapes[name]) - 1))
        keep[layout.span(name)] = rows.expand(layout.shapes[name]).flatten()
    return keep


def with_scalers(net: nn.Module) -> nn.Module:
    """A copy of a network with a scaler behind every hidden layer that makes units."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear | nn.Conv1d | nn.Conv2d) and name != "head":
                setattr(module, name, nn.Sequential(child, Scaler(child.weight.shape[0])))
    return net
