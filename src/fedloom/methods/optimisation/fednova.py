"""FedNova (Wang et al., NeurIPS 2020): clients that do more steps do not count for more.

    y_i : tau_i local steps from x;   d_i = (y_i - x) / |a_i|
    x <- x + (sum_i p_i |a_i|) * sum_i p_i d_i                  p_i = n_i / n
    |a_i| = tau_i                                               plain SGD
            (tau_i - r (1 - r^tau_i) / (1 - r)) / (1 - r)       momentum r
            (1 - (1 - lr mu)^tau_i) / (lr mu)                   proximal pull mu

|a_i| is the weight all gradients of a job have together in y_i - x, in units of lr. With equal |a_i| it is FedAvg.
Running statistics are averaged as they are, not divided by |a_i|.
Sent: x down, d_i and |a_i| up. Kept at clients: nothing.
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
        solver: local SGD, plain or with momentum r.
        mu: proximal pull to x, >= 0, without momentum and with lr * mu < 1.
        fastest: epochs of each job are drawn evenly from solver.epochs .. fastest, the paper's setting of clients that
            differ in speed (2 .. 5 there); 0: all do solver.epochs.
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
        deviations=(
            "momentum and a proximal pull are not combined",
            "with mu > 0 the server moves by sum p_i |a_i| mean steps; the authors' code takes sum p_i tau_i",
            "no server momentum",
        ),
        claim="when clients do different numbers of local steps it ends nearer the optimum than FedAvg",
    )

    cohort: int | float = 10
    solver: SGD = SGD(lr=0.1, epochs=5, batch_size=32)
    mu: float = 0.0
    fastest: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.solver, SGD):
            raise ConfigError(f"FedNova knows the weight of SGD's local steps only; given {type(self.solver).__name__}")
        if self.mu and self.solver.momentum:
            raise ConfigError("FedNova accounts for momentum or for a proximal pull, not for both: set one to 0")
        if not 0 <= self.mu * self.solver.lr < 1:
            raise ConfigError(f"FedNova(mu={self.mu}, solver.lr={self.solver.lr}) cannot be: mu >= 0 and mu * lr < 1")
        if self.fastest and self.fastest < self.solver.epochs:
            raise ConfigError(
                f"FedNova(fastest={self.fastest}) cannot be: 0, or solver.epochs={self.solver.epochs} or more"
            )

    def start(self, clients: Clients, before: FedNovaState | None = None) -> FedNovaState:
        return FedNovaState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        steps, step, pull = self.steps(client), None, None
        if self.mu:
            step, pull = proximal, {"mu": self.mu, "anchor": params}
        out = await client.train(params, solver=self.solver, steps=steps, step=step, extras=pull)
        norm, delta = self.norm(out.steps), out.vector - params
        direction = client.model.layout.keep_statistics(delta / (norm or 1.0), delta)
        return Message(direction=direction, norm=norm)

    def steps(self, client: Client) -> int | None:
        """Steps of this job where its epochs are drawn; None: as the solver says."""
        if not self.fastest:
            return None
        epochs = torch.randint(self.solver.epochs, self.fastest + 1, (), generator=client.rng("epochs"))
        return self.solver.work(len(client.data)) // self.solver.epochs * int(epochs)

    def norm(self, tau: int) -> float:
        """|a_i| of tau local steps."""
        r, shrink = self.solver.momentum, self.solver.lr * self.mu
        if r:
            return (tau - r * (1 - r**tau) / (1 - r)) / (1 - r)
        return (1 - (1 - shrink) ** tau) / shrink if shrink else float(tau)

    def round(self, state: FedNovaState, clients: Clients) -> FedNovaState:
        got = clients.mean(self.local, clients.sample(self.cohort), params=state.params)
        if got.count == 0:
            return state
        step = clients.model.layout.keep_statistics(got.norm * got.direction, got.direction)
        return replace(state, params=state.params + step)
