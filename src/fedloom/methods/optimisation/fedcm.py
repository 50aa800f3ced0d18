"""FedCM (Xu et al. 2021): every local step follows the direction the whole cohort took in the last round.

    y_i <- y_i - lr (alpha grad f_i(y_i) + (1 - alpha) g)       K_i steps from x
    g   <- sum_i (x - y_i) / sum_i lr K_i                       the mean direction of all local steps
    x   <- x + server_lr mean(y_i - x)

Sent: x and g down, y_i - x and lr K_i up. Kept at clients: nothing; at the server g (zero before round 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.clients import Clients
from fedloom.method import State, register

from .clientmomentum import ClientMomentum, mean_direction


@dataclass(frozen=True)
class FedCMState(State):
    """params: the global model `(d,)`; direction: g, what the last cohort moved along per unit of step size `(d,)`."""

    params: Tensor
    direction: Tensor


@register
@dataclass(frozen=True)
class FedCM(ClientMomentum):
    """Client-level momentum."""

    card = Card(
        id="fedcm",
        title="FedCM",
        paper="FedCM: Federated Learning with Client-level Momentum",
        authors="J. Xu, S. Wang, L. Wang, A. C.-C. Yao",
        venue="arXiv",
        year=2021,
        url="https://arxiv.org/abs/2106.10874",
        family="optimisation",
        summary="local steps mix their gradient with the last round's direction",
        down="8*d",
        up="4*d + 8",
        reduces=(("alpha = 1", "fedavg (weight = uniform)"),),
        deviations=("where clients do unequal numbers of steps, g is the mean over all steps, not over clients",),
        claim="with few of many unlike clients a round, it ends at a higher accuracy than FedAvg",
    )

    def start(self, clients: Clients, before: FedCMState | None = None) -> FedCMState:
        params = before.params if before else clients.model.initial()
        return FedCMState(params=params, direction=torch.zeros_like(params))

    def round(self, state: FedCMState, clients: Clients) -> FedCMState:
        cohort = clients.sample(self.cohort)
        got = clients.mean(self.local, cohort, weight=1, params=state.params, direction=state.direction)
        if got.count == 0:
            return state
        params, mean = state.params + self.server_lr * got.delta, state.params + got.delta
        return FedCMState(
            params=clients.model.layout.keep_statistics(params, mean),
            direction=mean_direction(got, state.direction),
        )
