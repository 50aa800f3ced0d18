"""FedOpt (Reddi et al., ICLR 2021): the mean update is a pseudo-gradient for a server optimiser.

    Delta = sum_i (n_i / n) (y_i - x)
    m <- b1 m + (1 - b1) Delta
    FedAdagrad  v <- v + Delta^2
    FedAdam     v <- b2 v + (1 - b2) Delta^2
    FedYogi     v <- v - (1 - b2) Delta^2 sign(v - Delta^2)
    x <- x + server_lr * m / (sqrt(v) + tau)                elementwise, no bias correction, v_0 = tau^2

FedAvgM (Hsu, Qi, Brown 2019) is the member m <- b m + Delta, x <- x + server_lr m.
Sent: x down, y_i - x up. Kept at clients: nothing; at the server m and v.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver

_PAPER = Card(
    id="fedopt",
    title="FedOpt",
    paper="Adaptive Federated Optimization",
    authors="S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan",
    venue="ICLR",
    year=2021,
    url="https://arxiv.org/abs/2003.00295",
    family="optimisation",
    summary="the mean update is a pseudo-gradient for a server optimiser",
    claim="an adaptive server optimiser is at least as good as FedAvg and easier to tune on sparse gradients",
)


@dataclass(frozen=True)
class FedOptState(State):
    """params: the global model `(d,)`; m: first moment `(d,)`; v: second moment `(d,)`."""

    params: Tensor
    m: Tensor
    v: Tensor


@dataclass(frozen=True)
class FedOpt(Method):
    """What the four have in common: local SGD, and a server optimiser on the mean update.

    Args:
        server_lr: eta of the server; tau: adaptivity, > 0; b1, b2: moment decays in [0, 1).
        v0: start of the second moment, "tau" for tau^2 (the paper's analysis) or "zero" (some libraries).
        weight: "samples" or "uniform".
    """

    cohort: int = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    server_lr: float = 0.03
    b1: float = 0.9
    b2: float = 0.99
    tau: float = 1e-3
    v0: Literal["tau", "zero"] = "tau"
    weight: Literal["samples", "uniform"] = "samples"

    def start(self, clients: Clients, before: FedOptState | None = None) -> FedOptState:
        params = before.params if before else clients.model.initial()
        v = torch.full_like(params, self.tau**2 if self.v0 == "tau" else 0.0)
        return FedOptState(params=params, m=torch.zeros_like(params), v=v)

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedOptState, clients: Clients) -> FedOptState:
        weight = 1.0 if self.weight == "uniform" else None
        got = clients.mean(self.local, clients.sample(self.cohort), weight=weight, params=state.params)
        return self.step(state, got.delta) if got.count else state

    def step(self, state: FedOptState, delta: Tensor) -> FedOptState:
        """The server optimiser: a new state from the mean update `(d,)`."""
        m = self.b1 * state.m + (1 - self.b1) * delta
        v = self.second(state.v, delta.square())
        return replace(state, params=state.params + self.server_lr * m / (v.sqrt() + self.tau), m=m, v=v)

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The second moment, from its old value and the squared update."""
        raise NotImplementedError


@register
@dataclass(frozen=True)
class FedAdagrad(FedOpt):
    """Server Adagrad: v grows by Delta^2 (b1 = 0 is the paper's)."""

    card = replace(_PAPER, id="fedadagrad", title="FedAdagrad", summary="server Adagrad on the mean update")

    b1: float = 0.0

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@register
@dataclass(frozen=True)
class FedAdam(FedOpt):
    """Server Adam without bias correction."""

    card = replace(_PAPER, id="fedadam", title="FedAdam", summary="server Adam on the mean update")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.b2 * v + (1 - self.b2) * square


@register
@dataclass(frozen=True)
class FedYogi(FedOpt):
    """Server Yogi: v moves by at most (1 - b2) Delta^2."""

    card = replace(_PAPER, id="fedyogi", title="FedYogi", summary="server Yogi on the mean update")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.b2) * square * (v - square).sign()


@register
@dataclass(frozen=True)
class FedAvgM(FedOpt):
    """Server momentum: m <- b1 m + Delta, x <- x + server_lr m; b1 = 0 is FedAvg."""

    card = replace(
        _PAPER,
        id="fedavgm",
        title="FedAvgM",
        paper="Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
        authors="T.-M. H. Hsu, H. Qi, M. Brown",
        venue="arXiv",
        year=2019,
        url="https://arxiv.org/abs/1909.06335",
        summary="server momentum on the mean update",
        reduces=(("b1 = 0, server_lr = 1", "fedavg"),),
        claim="server momentum helps most where labels are most skewed",
    )

    server_lr: float = 1.0

    def step(self, state: FedOptState, delta: Tensor) -> FedOptState:
        m = self.b1 * state.m + delta
        return replace(state, params=state.params + self.server_lr * m, m=m)
