"""FedProx (Li et al., MLSys 2020): a proximal pull to the round's model, and partial work is kept.

    y_i ~ argmin_y f_i(y) + mu/2 ||y - x||^2        a straggler does fewer epochs, drawn from 1..E
    x   <- sum_i n_i y_i / sum_i n_i                over all that came back (drop = False)

Sent: x down, y_i - x up. Kept at clients: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, Declined
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver
from fedloom.training.hooks import proximal

from .weights import Weight, weight_of


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
        stragglers: chance, in [0, 1], that a job can only do a part of its work: a number of epochs drawn evenly from
            1 .. all (of steps, where the solver counts steps). The draw does not depend on `mu` or `drop`.
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
        deviations=(
            "every job is a straggler with the same chance; in the paper a fixed share of each cohort is",
            "scheme B's sampling proportional to n_i is left to a sampling policy",
            "mu is constant; the paper's heuristic that adapts it to the training loss is left out",
        ),
        claim="with 90 % stragglers, keeping partial work beats dropping it, and mu > 0 steadies convergence",
    )

    cohort: int | float = 10
    mu: float = 0.1
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    stragglers: float = 0.0
    drop: bool = False
    weight: Weight = "samples"

    def __post_init__(self) -> None:
        weight_of(self.weight)
        if self.mu < 0 or not 0 <= self.stragglers <= 1:
            raise ConfigError(
                f"FedProx(mu={self.mu}, stragglers={self.stragglers}) cannot be: mu >= 0, 0 <= stragglers <= 1"
            )

    def start(self, clients: Clients, before: FedProxState | None = None) -> FedProxState:
        return FedProxState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        pull = {"mu": self.mu, "anchor": params}
        out = await client.train(params, solver=self.solver, steps=self.work(client), step=proximal, extras=pull)
        return Message(delta=out.vector - params)

    def work(self, client: Client) -> int | None:
        """Steps this client can do now: all (None), or the drawn part of them."""
        rng = client.rng("straggler")
        if torch.rand((), generator=rng) >= self.stragglers:
            return None
        if self.drop:
            raise Declined("a straggler, dropped")
        every = self.solver.work(len(client.data))
        parts = self.solver.epochs if self.solver.steps is None else max(every, 1)
        return every // parts * int(torch.randint(1, parts + 1, (), generator=rng))

    def round(self, state: FedProxState, clients: Clients) -> FedProxState:
        cohort = clients.sample(self.cohort)
        got = clients.mean(self.local, cohort, weight=weight_of(self.weight), params=state.params)
        return replace(state, params=state.params + got.delta) if got.count else state
