"""FedAvg-M (Cheng et al., ICLR 2024): FedAvg whose local steps mix their gradient with the last round's direction.

    y_i <- y_i - lr (alpha grad f_i(y_i) + (1 - alpha) g)                            K_i steps from x
    y_i <- y_i - lr (grad f_i(y_i) + (1 - alpha) (g - grad f_i(x_previous)))         reduced = True: FedAvg-M-VR
    g   <- sum_i (x - y_i) / sum_i lr K_i;    x_previous <- x;    x <- x + server_lr mean(y_i - x)

alpha is the paper's beta. The first form is FedCM's; the second takes both gradients on the same batch.
Sent: x and g (and x_previous) down, y_i - x and lr K_i up. Kept at clients: nothing; at the server g (and x_previous).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import Message
from fedloom.method import register

from .clientmomentum import Reducible, mean_direction
from .fedcm import FedCMState


@dataclass(frozen=True)
class FedAvgMomentumState(FedCMState):
    """And previous: the global model of the round before `(d,)`."""

    previous: Tensor


def reduced(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) + (1 - alpha) (direction - grad f(previous)), both on this batch"""
    return f.grad(w) + (1 - extras["alpha"]) * (extras["direction"] - f.grad(extras["previous"])), carry


@register
@dataclass(frozen=True)
class FedAvgMomentum(Reducible):
    """Momentum in local steps; FedAvg-M-VR where it is `reduced`."""

    card = Card(
        id="fedavg-m",
        title="FedAvg-M",
        paper="Momentum Benefits Non-IID Federated Learning Simply and Provably",
        authors="Z. Cheng, X. Huang, P. Wu, K. Yuan",
        venue="ICLR",
        year=2024,
        url="https://arxiv.org/abs/2306.16504",
        family="optimisation",
        summary="local steps mix their gradient with the last round's direction; a variance-reduced form",
        down="8*d + 4*d*reduced",
        up="4*d + 8",
        reduces=(("alpha = 1", "fedavg (weight = uniform)"), ("reduced=False", "fedcm")),
        deviations=(
            "g and x_previous begin as 0 and x, without a pass over all data",
            "where clients do unequal numbers of steps, g is the mean over all steps, not over clients",
        ),
        claim="with everybody in the cohort and unlike data, it ends at least as high as FedAvg at an equal local step",
    )

    def start(self, clients: Clients, before: FedCMState | None = None) -> FedAvgMomentumState:
        params = before.params if before else clients.model.initial()
        return FedAvgMomentumState(params=params, direction=torch.zeros_like(params), previous=params)

    async def local_reduced(self, client: Client, params: Tensor, direction: Tensor, previous: Tensor) -> Message:
        extras = {"alpha": self.alpha, "direction": direction, "previous": previous}
        out = await client.train(params, solver=self.solver, step=reduced, extras=extras)
        return Message(delta=out.vector - params, work=out.steps * out.lr)

    def round(self, state: FedAvgMomentumState, clients: Clients) -> FedAvgMomentumState:
        sent = {"params": state.params, "direction": state.direction}
        got = self.asked(clients, self.local, self.local_reduced, state.previous, **sent)
        if got.count == 0:
            return state
        params, mean = state.params + self.server_lr * got.delta, state.params + got.delta
        return FedAvgMomentumState(
            params=clients.model.layout.keep_statistics(params, mean),
            direction=mean_direction(got, state.direction),
            previous=state.params,
        )
