"""FedDyn (Acar et al., ICLR 2021): a dynamic regulariser makes the local optima agree with the global one.

    y_i ~ argmin_y f_i(y) - <g_i, y> + alpha/2 ||y - x||^2;     g_i <- g_i - alpha (y_i - x)
    h <- h - alpha / N sum_{i in S} (y_i - x);                  x <- mean_{i in S} y_i - h / alpha

N counts all clients. h = (1/N) sum_i g_i always; at a fixed point g_i = grad f_i(x) and h = 0, so x is optimal.
Running statistics are averaged, without h. Sent: x down, y_i - x up. Kept at a client: g_i (zero before its first job).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.replies import Evaluation
from fedloom.training import SGD, Solver
from fedloom.training.hooks import dynamic
from fedloom.vector import zeros


@dataclass(frozen=True)
class FedDynState(State):
    """params: the model sent to clients `(d,)`; h: the server's sum of drifts `(d,)`; mean: the cohort's mean model."""

    params: Tensor
    h: Tensor
    mean: Tensor


@register
@dataclass(frozen=True)
class FedDyn(Method):
    """Dynamic regularisation.

    Args:
        alpha: strength of the regulariser, > 0 (paper: 0.001 to 0.1).
        solver: local work; the authors' code clips gradients at norm 10.
    """

    card = Card(
        id="feddyn",
        title="FedDyn",
        paper="Federated Learning Based on Dynamic Regularization",
        authors="D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2111.04263",
        family="optimisation",
        summary="a dynamic regulariser aligns local optima with the global one",
        keeps="its linear term g_i, 4d bytes",
        needs=frozenset({"memory"}),
        deviations=(
            "the clip bounds the gradient of f_i alone; the authors' code clips it together with the linear terms",
            "alpha is the same for all clients; the authors' code divides it by the client's share of samples",
            "the mean of the cohort's models is judged too, as view `mean`: both are used in practice",
        ),
        claim="reaches a given accuracy in fewer rounds than FedAvg when clients' data differ",
    )

    cohort: int | float = 10
    alpha: float = 0.01
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32, clip=10.0)

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise ConfigError(f"FedDyn(alpha={self.alpha}) cannot be: alpha > 0 (the server divides by it)")

    def start(self, clients: Clients, before: FedDynState | None = None) -> FedDynState:
        params = before.params if before else clients.model.initial()
        return FedDynState(params=params, h=torch.zeros_like(params), mean=params)

    async def local(self, client: Client, params: Tensor) -> Message:
        linear = client.memory.get("linear", zeros(params))
        terms = {"linear": linear, "alpha": self.alpha, "anchor": params}
        out = await client.train(params, solver=self.solver, step=dynamic, extras=terms)
        delta = out.vector - params
        client.memory["linear"] = linear - self.alpha * delta
        return Message(delta=delta)

    def round(self, state: FedDynState, clients: Clients) -> FedDynState:
        got = clients.mean(self.local, clients.sample(self.cohort), weight=1, params=state.params)
        if got.count == 0:
            return state
        h = state.h - self.alpha * got.count / len(clients.ids) * got.delta
        mean = state.params + got.delta
        params = clients.model.layout.keep_statistics(mean - h / self.alpha, mean)
        return FedDynState(params=params, h=h, mean=mean)

    def evaluate(self, state: FedDynState, clients: Clients) -> dict[str, Evaluation]:
        return {"global": clients.evaluate(state.params), "mean": clients.evaluate(state.mean)}
