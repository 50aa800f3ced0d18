"""FedAvg (McMahan et al., AISTATS 2017): clients train the global model for a few local epochs; the server averages.

    y_i <- x;  y_i <- y_i - lr * grad f_i(y_i; batch)   for E epochs        (client.train)
    x   <- x + server_lr * sum_i (n_i / n) (y_i - x)                        (clients.mean)

Sent: x down, y_i - x up. Kept at clients: nothing. With server_lr = 1 this is the paper's average of models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver

from .weights import Weight, weight_of


@dataclass(frozen=True)
class FedAvgState(State):
    """params: the global model `(d,)`."""

    params: Tensor


@register
@dataclass(frozen=True)
class FedAvg(Method):
    """Weighted averaging of locally trained models.

    Args:
        cohort: clients a round (C * K in the paper); a float draws each client with that chance (Poisson).
        solver: local work: E epochs of batches of B at step size eta.
        server_lr: step along the mean update; 1 is the paper.
        weight: "samples" (n_i / n, the paper) or "uniform" (for sums whose sensitivity must be bounded).
    """

    card = Card(
        id="fedavg",
        title="FedAvg",
        paper="Communication-Efficient Learning of Deep Networks from Decentralized Data",
        authors="H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas",
        venue="AISTATS",
        year=2017,
        url="https://arxiv.org/abs/1602.05629",
        family="optimisation",
        summary="the average of locally trained models",
        claim="several local epochs reach a given accuracy in far fewer rounds than one gradient step a round (FedSGD)",
    )

    cohort: int | float = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    server_lr: float = 1.0
    weight: Weight = "samples"

    def __post_init__(self) -> None:
        weight_of(self.weight)

    def start(self, clients: Clients, before: FedAvgState | None = None) -> FedAvgState:
        return FedAvgState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedAvgState, clients: Clients) -> FedAvgState:
        cohort = clients.sample(self.cohort)
        got = clients.mean(self.local, cohort, weight=weight_of(self.weight), params=state.params)
        if got.count == 0:
            return state
        return replace(state, params=state.params + self.server_lr * got.delta)
