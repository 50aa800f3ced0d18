"""FedAvgM (Hsu, Qi, Brown 2019): the server keeps a momentum of mean updates.

    Delta = sum_i (n_i / n) (y_i - x)
    m <- momentum * m + Delta;    x <- x + server_lr * m

A steady Delta is amplified to Delta / (1 - momentum), so a good server_lr shrinks as momentum grows. Running statistics
are averaged, without momentum.
Sent: x down, y_i - x up. Kept at clients: nothing; at the server m.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver

from .weights import Weight, weight_of


@dataclass(frozen=True)
class FedAvgMState(State):
    """params: the global model `(d,)`; m: the momentum of mean updates `(d,)`."""

    params: Tensor
    m: Tensor


@register
@dataclass(frozen=True)
class FedAvgM(Method):
    """Server momentum.

    Args:
        momentum: beta in [0, 1) (paper: 0.7 to 0.997); 0 is FedAvg.
        server_lr: step along the momentum, 1 in the paper.
        weight: "samples" or "uniform".
    """

    card = Card(
        id="fedavgm",
        title="FedAvgM",
        paper="Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
        authors="T.-M. H. Hsu, H. Qi, M. Brown",
        venue="arXiv",
        year=2019,
        url="https://arxiv.org/abs/1909.06335",
        family="optimisation",
        summary="server momentum on the mean update",
        reduces=(("momentum = 0, server_lr = 1", "fedavg"),),
        deviations=("heavy-ball momentum; the Nesterov form of some implementations is left out",),
        claim="server momentum beats FedAvg where labels are very skewed",
    )

    cohort: int | float = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    server_lr: float = 1.0
    momentum: float = 0.9
    weight: Weight = "samples"

    def __post_init__(self) -> None:
        weight_of(self.weight)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"FedAvgM(momentum={self.momentum}) cannot be: 0 <= momentum < 1")

    def start(self, clients: Clients, before: FedAvgMState | None = None) -> FedAvgMState:
        params = before.params if before else clients.model.initial()
        return FedAvgMState(params=params, m=torch.zeros_like(params))

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedAvgMState, clients: Clients) -> FedAvgMState:
        cohort = clients.sample(self.cohort)
        got = clients.mean(self.local, cohort, weight=weight_of(self.weight), params=state.params)
        if got.count == 0:
            return state
        m = self.momentum * state.m + got.delta
        params, mean = state.params + self.server_lr * m, state.params + got.delta
        return FedAvgMState(params=clients.model.layout.keep_statistics(params, mean), m=m)
