"""FedNova (Wang et al., NeurIPS 2020): clients that do more steps do not count for more.

    d_i = (y_i - x) / |a_i|_1       |a_i|_1 = tau_i for plain SGD; for momentum r:
                                    (tau_i - r (1 - r^tau_i) / (1 - r)) / (1 - r)
    x <- x + (sum_i p_i |a_i|_1) * sum_i p_i d_i            p_i = n_i / n

Sent: x down, d_i and |a_i|_1 up. Kept at clients: nothing. With equal |a_i|_1 it is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD
from fedloom.training.hooks import proximal


@dataclass(frozen=True)
class FedNovaState(State):
    """params: the global model `(d,)`."""

    params: Tensor


@register
@dataclass(frozen=True)
class FedNova(Method):
    """Normalised averaging of unequal local work.

    Args:
        solver: local SGD; momentum r is accounted for.
        mu: proximal pull, accounted for (without momentum), >= 0.
        fastest: epochs of each job are drawn from solver.epochs .. fastest (0: all do solver.epochs), the paper's
            setting of clients that differ in speed.
    """

    card = Card(
        id="fednova",
        title="FedNova",
        paper="Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
        authors="J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2007.07481",
        family="optimisation",
        summary="updates are normalised by the local work behind them",
        up="4*d + 8",
        reduces=(("equal steps at all clients", "fedavg"),),
        claim="when clients do different numbers of local steps it ends nearer the optimum than FedAvg",
    )

    cohort: int = 10
    solver: SGD = SGD(lr=0.1, epochs=5, batch_size=32)
    mu: float = 0.0
    fastest: int = 0

    def __post_init__(self) -> None:
        if self.mu and self.solver.momentum:
            raise ConfigError(
                "FedNova accounts for momentum or for a proximal term, not for both: set one of them to 0"
            )

    def start(self, clients: Clients, before: FedNovaState | None = None) -> FedNovaState:
        return FedNovaState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        steps = None
        if self.fastest > self.solver.epochs:
            drawn = torch.randint(self.solver.epochs, self.fastest + 1, (), generator=client.rng("epochs"))
            steps = int(drawn) * self.solver.work(len(client.data)) // self.solver.epochs
        if self.mu:
            pull = {"mu": self.mu, "anchor": params}
            out = await client.train(params, solver=self.solver, steps=steps, step=proximal, extras=pull)
        else:
            out = await client.train(params, solver=self.solver, steps=steps)
        norm = self.work_norm(out.steps)
        return Message(direction=(out.vector - params) / max(norm, 1e-12), norm=norm)

    def work_norm(self, tau: int) -> float:
        """|a_i|_1 of tau local steps."""
        r, shrink = self.solver.momentum, self.solver.lr * self.mu
        if r:
            return (tau - r * (1 - r**tau) / (1 - r)) / (1 - r)
        return (1 - (1 - shrink) ** tau) / shrink if shrink else float(tau)

    def round(self, state: FedNovaState, clients: Clients) -> FedNovaState:
        got = clients.mean(self.local, clients.sample(self.cohort), params=state.params)
        return replace(state, params=state.params + got.norm * got.direction) if got.count else state
