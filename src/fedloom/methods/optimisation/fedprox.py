"""FedProx (Li et al., MLSys 2020): a proximal pull to the round's model, and partial work is kept.

    y_i ~ argmin_y f_i(y) + mu/2 ||y - x||^2        a straggler does fewer epochs, drawn from 1..E
    x   <- sum_i n_i y_i / sum_i n_i                over all that came back (drop = False)

Sent: x down, y_i - x up. Kept at clients: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import Declined
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver
from fedloom.training.hooks import proximal


@dataclass(frozen=True)
class FedProxState(State):
    """params: the global model `(d,)`."""

    params: Tensor


@register
@dataclass(frozen=True)
class FedProx(Method):
    """FedAvg with a proximal term and variable local work.

    Args:
        mu: strength of the pull, >= 0 (paper: 0.001 to 1).
        stragglers: share of jobs that can only do a random number of their epochs, in [0, 1].
        drop: leave stragglers out, as FedAvg does, instead of keeping what they did.
        weight: "samples" is the paper's scheme A, "uniform" its scheme B's mean.
    """

    card = Card(
        id="fedprox",
        title="FedProx",
        paper="Federated Optimization in Heterogeneous Networks",
        authors="T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith",
        venue="MLSys",
        year=2020,
        url="https://arxiv.org/abs/1812.06127",
        family="optimisation",
        summary="a proximal pull to the global model; partial work of slow clients is kept",
        reduces=(("mu = 0, stragglers = 0", "fedavg"),),
        deviations=("scheme B's sampling proportional to n_i is left to a sampling policy",),
        claim="with 90 % stragglers, keeping partial work beats dropping it, and mu > 0 steadies convergence",
    )

    cohort: int = 10
    mu: float = 0.1
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    stragglers: float = 0.0
    drop: bool = False
    weight: Literal["samples", "uniform"] = "samples"

    def start(self, clients: Clients, before: FedProxState | None = None) -> FedProxState:
        return FedProxState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        pull = {"mu": self.mu, "anchor": params}
        out = await client.train(params, solver=self.solver, steps=self.work(client), step=proximal, extras=pull)
        return Message(delta=out.vector - params)

    def work(self, client: Client) -> int | None:
        """Steps this client can do now: all (None), or those of a random number of epochs."""
        rng = client.rng("straggler")
        if torch.rand((), generator=rng) >= self.stragglers:
            return None
        if self.drop:
            raise Declined("a straggler, dropped")
        full = self.solver.work(len(client.data))
        epochs = int(torch.randint(1, self.solver.epochs + 1, (), generator=rng))
        return max(1, full * epochs // self.solver.epochs)

    def round(self, state: FedProxState, clients: Clients) -> FedProxState:
        weight = 1.0 if self.weight == "uniform" else None
        got = clients.mean(self.local, clients.sample(self.cohort), weight=weight, params=state.params)
        return replace(state, params=state.params + got.delta) if got.count else state
