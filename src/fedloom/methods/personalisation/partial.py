"""Partial sharing: some entries of the vector are averaged, the others never leave their client.

What FedPer and FedBN have in common; they differ in `private`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import Message
from fedloom.method import Method, State
from fedloom.model import Model
from fedloom.training import SGD, Solver
from fedloom.vector import joined


@dataclass(frozen=True)
class PartialState(State):
    """shared: the averaged entries of the vector `(s,)`, in order."""

    shared: Tensor


@dataclass(frozen=True)
class Partial(Method):
    """FedAvg on the shared entries; everything is trained together at the client.

    A client's private entries start from the common initial model, which both sides know from the plan.
    """

    cohort: int = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)

    def private(self, model: Model) -> Tensor:
        """Boolean `(d,)`: what stays at the client."""
        raise NotImplementedError

    def start(self, clients: Clients, before: PartialState | None = None) -> PartialState:
        mask = self.private(clients.model)
        return PartialState(shared=before.shared if before else clients.model.initial()[~mask])

    def whole(self, client: Client, shared: Tensor) -> Tensor:
        """The client's model: what it was sent around what it keeps."""
        mask = self.private(client.model)
        own = client.memory["own"] if "own" in client.memory else client.model.initial()[mask].to(shared)
        return joined(mask, own, shared)

    async def local(self, client: Client, shared: Tensor) -> Message:
        mask = self.private(client.model)
        out = await client.train(self.whole(client, shared), solver=self.solver)
        client.memory["own"] = out.vector[mask]
        return Message(delta=out.vector[~mask] - shared)

    def round(self, state: PartialState, clients: Clients) -> PartialState:
        got = clients.mean(self.local, clients.sample(self.cohort), shared=state.shared)
        return replace(state, shared=state.shared + got.delta) if got.count else state

    def down(self, state: PartialState, id: int) -> dict[str, Any]:
        return {"shared": state.shared}

    async def personalise(self, client: Client, shared: Tensor) -> Tensor:
        return self.whole(client, shared)

    def sizes(self, clients: Clients) -> dict[str, float]:
        return {"shared": float((~self.private(clients.model)).sum())}
