"""Ditto (Li et al., ICML 2021): FedAvg for the global model, and beside it a personal one tied to it.

    w_i <- SGD on f_i from w                                            (as FedAvg, bit for bit)
    v_i <- v_i - lr (grad f_i(v_i) + lam (v_i - w))                     w: the model as received

Sent: w down, w_i - w up. Kept at a client: v_i (it starts from the first w received).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver
from fedloom.training.hooks import proximal


@dataclass(frozen=True)
class DittoState(State):
    """params: the global model `(d,)`."""

    params: Tensor


@register
@dataclass(frozen=True)
class Ditto(Method):
    """Personal models through regularisation.

    Args:
        lam: pull of the personal model towards the global one, >= 0 (paper: 0.05 to 2).
        solver: of the global model; `personal`: of the personal one, the same work if None.
    """

    card = Card(
        id="ditto",
        title="Ditto",
        paper="Ditto: Fair and Robust Federated Learning Through Personalization",
        authors="T. Li, S. Hu, A. Beirami, V. Smith",
        venue="ICML",
        year=2021,
        url="https://arxiv.org/abs/2012.04221",
        family="personalisation",
        summary="a personal model beside the global one, tied to it",
        keeps="its personal model v_i, 4d bytes",
        needs=frozenset({"memory"}),
        reduces=(("the global model, any lam", "fedavg"), ("lam = 0, the personal model", "local training")),
        claim="at the clients it is at least as good as the better of local training and FedAvg",
    )

    cohort: int = 10
    lam: float = 0.5
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    personal: Solver | None = None

    def __post_init__(self) -> None:
        if not self.lam >= 0:
            raise ConfigError(f"Ditto(lam={self.lam}) cannot be: lam >= 0; 0 is local training")

    def start(self, clients: Clients, before: DittoState | None = None) -> DittoState:
        return DittoState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        delta = out.vector - params
        own = client.memory.get("personal", params)
        tie = {"mu": self.lam, "anchor": params}
        tied = await client.train(own, solver=self.personal or self.solver, step=proximal, extras=tie)
        client.memory["personal"] = tied.vector
        return Message(delta=delta)

    def round(self, state: DittoState, clients: Clients) -> DittoState:
        got = clients.mean(self.local, clients.sample(self.cohort), params=state.params)
        return replace(state, params=state.params + got.delta) if got.count else state

    async def personalise(self, client: Client, params: Tensor) -> Tensor:
        return client.memory.get("personal", params)
