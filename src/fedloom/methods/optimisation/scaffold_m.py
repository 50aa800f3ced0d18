"""SCAFFOLD-M (Cheng et al., ICLR 2024): SCAFFOLD whose local steps also follow the last round's direction.

    y_i  <- y_i - lr (alpha (grad f_i(y_i) - c_i + c) + (1 - alpha) g)       K_i steps from x
    y_i  <- y_i - lr (grad f_i(y_i) + alpha (c - c_i) + (1 - alpha) (g - grad f_i(x_previous)))
                                                                             reduced = True: SCAFFOLD-M-VR
    c_i+ <- the mean of grad f_i(y_i) over these steps
    g    <- sum_i (x - y_i) / sum_i lr K_i;    x_previous <- x;    x <- x + server_lr mean(y_i - x)
    c    <- c + |S| / N mean(c_i+ - c_i)

alpha is the paper's beta; the second form takes both gradients on the same batch. Sent: x, g and c (and x_previous)
down; y_i - x, lr K_i and c_i+ - c_i up. Kept at a client: c_i (zero before its first job); at the server g and c (and
x_previous).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import register
from fedloom.vector import zeros

from .clientmomentum import Reducible, mean_direction
from .fedavg_m import FedAvgMomentumState
from .fedcm import FedCMState


@dataclass(frozen=True)
class ScaffoldMState(FedAvgMomentumState):
    """And control: c, the mean of all clients' variates `(d,)`."""

    control: Tensor


def corrected(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """alpha (grad f(w) + shift) + (1 - alpha) direction"""
    alpha = extras["alpha"]
    return alpha * (f.grad(w) + extras["shift"]) + (1 - alpha) * extras["direction"], carry


def reduced(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) + alpha shift + (1 - alpha) (direction - grad f(previous)); the carry adds up grad f(w)"""
    alpha, own = extras["alpha"], f.grad(w)
    followed = extras["direction"] - f.grad(extras["previous"])
    return own + alpha * extras["shift"] + (1 - alpha) * followed, carry + own


@register
@dataclass(frozen=True)
class ScaffoldM(Reducible):
    """Control variates and momentum in local steps; SCAFFOLD-M-VR where it is `reduced`."""

    card = Card(
        id="scaffold-m",
        title="SCAFFOLD-M",
        paper="Momentum Benefits Non-IID Federated Learning Simply and Provably",
        authors="Z. Cheng, X. Huang, P. Wu, K. Yuan",
        venue="ICLR",
        year=2024,
        url="https://arxiv.org/abs/2306.16504",
        family="optimisation",
        summary="SCAFFOLD's local steps, mixed with the last round's direction; a variance-reduced form",
        down="12*d + 4*d*reduced",
        up="8*d + 8",
        keeps="its control variate c_i, 4d bytes",
        needs=frozenset({"memory"}),
        reduces=(("alpha=1", "scaffold"),),
        deviations=(
            "g and x_previous begin as 0 and x, without a pass over all data",
            "without variance reduction c_i+ is read off the way the model moved, as in SCAFFOLD's option II: the same "
            "mean gradient, for free",
            "where clients do unequal numbers of steps, g is the mean over all steps, not over clients",
        ),
        claim="with few of many unlike clients a round, it ends at least as high as SCAFFOLD at an equal local step",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reduced and (self.solver.weight_decay or self.solver.clip):
            raise ConfigError(
                f"SCAFFOLD-M reads the mean gradient off the way the model moved, so its local solver is plain SGD; "
                f"given {self.solver}. Use SGD(lr=..., epochs=...)"
            )

    def start(self, clients: Clients, before: FedCMState | None = None) -> ScaffoldMState:
        params = before.params if before else clients.model.initial()
        zero = torch.zeros_like(params)
        return ScaffoldMState(params, direction=zero, previous=params, control=zero)

    async def local_corrected(self, client: Client, params: Tensor, direction: Tensor, control: Tensor) -> Message:
        own = client.memory.get("control", zeros(params))
        extras = {"alpha": self.alpha, "direction": direction, "shift": control - own}
        out = await client.train(params, solver=self.solver, step=corrected, extras=extras)
        delta, work = out.vector - params, out.steps * out.lr
        change = zeros(params)
        if work:
            change = (delta / -work - (1 - self.alpha) * direction) / self.alpha - control
        client.memory["control"] = own + change
        return Message(delta=delta, work=work, control=change)

    async def local_reduced(
        self, client: Client, params: Tensor, direction: Tensor, control: Tensor, previous: Tensor
    ) -> Message:
        own = client.memory.get("control", zeros(params))
        extras = {"alpha": self.alpha, "direction": direction, "shift": control - own, "previous": previous}
        out = await client.train(params, solver=self.solver, step=reduced, carry=zeros(params), extras=extras)
        gradient = out.carry / out.steps if out.steps else own
        client.memory["control"] = gradient
        return Message(delta=out.vector - params, work=out.steps * out.lr, control=gradient - own)

    def round(self, state: ScaffoldMState, clients: Clients) -> ScaffoldMState:
        sent = {"params": state.params, "direction": state.direction, "control": state.control}
        got = self.asked(clients, self.local_corrected, self.local_reduced, state.previous, **sent)
        if got.count == 0:
            return state
        params, mean = state.params + self.server_lr * got.delta, state.params + got.delta
        return ScaffoldMState(
            params=clients.model.layout.keep_statistics(params, mean),
            direction=mean_direction(got, state.direction),
            previous=state.params,
            control=state.control + got.count / len(clients.ids) * got.control,
        )
