"""FedOpt (Reddi et al., ICLR 2021): the mean update is a pseudo-gradient for an adaptive server optimiser.

    Delta = sum_i (n_i / n) (y_i - x)
    m <- b1 m + (1 - b1) Delta
    FedAdagrad  v <- v + Delta^2
    FedAdam     v <- b2 v + (1 - b2) Delta^2
    FedYogi     v <- v - (1 - b2) Delta^2 sign(v - Delta^2)
    x <- x + server_lr * m / (sqrt(v) + tau)                elementwise, no bias correction, v_0 = tau^2

Running statistics are averaged, without moments. Sent: x down, y_i - x up. Kept at clients: nothing; at the server m
and v.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

from .weights import Weight, weight_of


@dataclass(frozen=True)
class FedOptState(State):
    """params: the global model `(d,)`; m: first moment `(d,)`; v: second moment `(d,)`."""

    params: Tensor
    m: Tensor
    v: Tensor


@dataclass(frozen=True)
class FedOpt(Method):
    """What the three have in common: local SGD, and an adaptive server step on the mean update."""

    cohort: int | float = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    server_lr: float = 0.03
    b1: float = 0.9
    tau: float = 1e-3
    v0: Literal["tau", "zero"] = "tau"
    weight: Weight = "samples"

    def __post_init__(self) -> None:
        weight_of(self.weight)
        if self.v0 not in ("tau", "zero"):
            raise unknown("v0", self.v0, ("tau", "zero"))
        b2 = getattr(self, "b2", 0.0)
        if not (0 <= self.b1 < 1 and 0 <= b2 < 1 and self.tau > 0):
            raise ConfigError(
                f"{type(self).__name__}(b1={self.b1}, b2={b2}, tau={self.tau}) cannot be: 0 <= b1, b2 < 1, tau > 0"
            )

    def start(self, clients: Clients, before: FedOptState | None = None) -> FedOptState:
        params = before.params if before else clients.model.initial()
        v = torch.full_like(params, self.tau**2 if self.v0 == "tau" else 0.0)
        return FedOptState(params=params, m=torch.zeros_like(params), v=v)

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedOptState, clients: Clients) -> FedOptState:
        cohort = clients.sample(self.cohort)
        got = clients.mean(self.local, cohort, weight=weight_of(self.weight), params=state.params)
        if got.count == 0:
            return state
        m = self.b1 * state.m + (1 - self.b1) * got.delta
        v = self.second(state.v, got.delta.square())
        params, mean = state.params + self.server_lr * m / (v.sqrt() + self.tau), state.params + got.delta
        return FedOptState(params=clients.model.layout.keep_statistics(params, mean), m=m, v=v)

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The second moment, from its old value and the squared update."""
        raise NotImplementedError


_CARD = Card(
    id="fedopt",
    title="FedOpt",
    paper="Adaptive Federated Optimization",
    authors="S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan",
    venue="ICLR",
    year=2021,
    url="https://arxiv.org/abs/2003.00295",
    family="optimisation",
    summary="the mean update is a pseudo-gradient for an adaptive server optimiser",
    claim="on sparse features an adaptive server step beats FedAvg, both tuned on one grid",
)


@register
@dataclass(frozen=True)
class FedAdagrad(FedOpt):
    """Server Adagrad: v grows by Delta^2.

    Args:
        server_lr: eta of the server; b1: decay of the first moment in [0, 1), 0 in the paper; tau: adaptivity, > 0.
        v0: start of the second moment, "tau" for tau^2 (the paper) or "zero" (some libraries).
        weight: "samples" or "uniform".
    """

    card = replace(_CARD, id="fedadagrad", title="FedAdagrad", summary="server Adagrad on the mean update")

    b1: float = 0.0

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@register
@dataclass(frozen=True)
class FedAdam(FedOpt):
    """Server Adam without bias correction.

    Args:
        server_lr: eta of the server; b1, b2: decays of the moments in [0, 1); tau: adaptivity, > 0.
        v0, weight: as in FedAdagrad.
    """

    card = replace(_CARD, id="fedadam", title="FedAdam", summary="server Adam on the mean update")

    b2: float = 0.99

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.b2 * v + (1 - self.b2) * square


@register
@dataclass(frozen=True)
class FedYogi(FedOpt):
    """Server Yogi: v moves by at most (1 - b2) Delta^2, in either direction.

    Args:
        server_lr: eta of the server; b1, b2: decays of the moments in [0, 1); tau: adaptivity, > 0.
        v0, weight: as in FedAdagrad.
    """

    card = replace(_CARD, id="fedyogi", title="FedYogi", summary="server Yogi on the mean update")

    b2: float = 0.99

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.b2) * square * (v - square).sign()
