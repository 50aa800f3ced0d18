"""SCAFFOLD (Karimireddy et al., ICML 2020): control variates c and c_i correct the drift of local steps.

    y_i  <- y_i - lr (grad f_i(y_i) - c_i + c)                       K steps from x
    c_i+ <- c_i - c + (x - y_i) / (K lr)      option II;             c_i+ <- grad f_i(x)      option I
    x <- x + server_lr mean(y_i - x);    c <- c + |S| / N mean(c_i+ - c_i)

Sent: x and c down, y_i - x and c_i+ - c_i up. Kept at a client: c_i (zero before its first job).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, unknown
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver
from fedloom.training.hooks import controlled
from fedloom.vector import zeros


@dataclass(frozen=True)
class ScaffoldState(State):
    """params: the global model `(d,)`; control: c, the mean of all clients' variates `(d,)`."""

    params: Tensor
    control: Tensor


@register
@dataclass(frozen=True)
class Scaffold(Method):
    """Stochastic controlled averaging.

    Args:
        cohort: |S|; server_lr: eta_g, 1 in the paper's experiments.
        solver: local SGD; for option II without momentum, weight decay or clipping.
        option: "II" (free: the mean of the local gradients) or "I" (the full gradient at x: one more pass).
    """

    card = Card(
        id="scaffold",
        title="SCAFFOLD",
        paper="SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
        authors="S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh",
        venue="ICML",
        year=2020,
        url="https://arxiv.org/abs/1910.06378",
        family="optimisation",
        summary="control variates at server and clients correct client drift",
        down="8*d",
        up="8*d",
        keeps="its control variate c_i, 4d bytes",
        needs=frozenset({"memory"}),
        claim="reaches a given accuracy in fewer rounds than FedAvg when clients' data differ",
    )

    cohort: int | float = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    server_lr: float = 1.0
    option: Literal["I", "II"] = "II"

    def __post_init__(self) -> None:
        if self.option not in ("I", "II"):
            raise unknown("option", self.option, ("I", "II"))
        plain = isinstance(self.solver, SGD) and not (
            self.solver.momentum or self.solver.weight_decay or self.solver.clip
        )
        if self.option == "II" and not plain:
            raise ConfigError(
                f"SCAFFOLD's option II reads the mean gradient off the way the model moved, so its local solver is SGD "
                f"without momentum, weight decay or clipping; given {self.solver}. Use SGD(lr=..., epochs=...), or "
                f"option='I'"
            )

    def start(self, clients: Clients, before: ScaffoldState | None = None) -> ScaffoldState:
        params = before.params if before else clients.model.initial()
        return ScaffoldState(params=params, control=torch.zeros_like(params))

    async def local(self, client: Client, params: Tensor, control: Tensor) -> Message:
        own = client.memory.get("control", zeros(params))
        out = await client.train(params, solver=self.solver, step=controlled, extras={"control": control, "own": own})
        delta = out.vector - params
        if self.option == "I":
            change = await client.gradient(params) - own
        else:
            change = delta / (-out.steps * out.lr) - control if out.steps else zeros(params)
        client.memory["control"] = own + change
        return Message(delta=delta, control=change)

    def round(self, state: ScaffoldState, clients: Clients) -> ScaffoldState:
        cohort = clients.sample(self.cohort)
        got = clients.mean(self.local, cohort, weight=1, params=state.params, control=state.control)
        if got.count == 0:
            return state
        params, mean = state.params + self.server_lr * got.delta, state.params + got.delta
        return ScaffoldState(
            params=clients.model.layout.keep_statistics(params, mean),
            control=state.control + got.count / len(clients.ids) * got.control,
        )
