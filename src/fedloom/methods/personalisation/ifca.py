"""IFCA (Ghosh et al., NeurIPS 2020): k models; each client trains the one that suits its data best.

    j_i = argmin_j f_i(u_j)  on its training data;   y_i <- SGD on f_i from u_{j_i}
    u_j <- sum_{i: j_i = j} n_i y_i / sum_{i: j_i = j} n_i;   a model nobody picked stays as it is

Sent: k models down, one up with its number. Kept at clients: nothing. k = 1 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.data.fields import Data
from fedloom.errors import ConfigError
from fedloom.message import At, Message
from fedloom.method import Method, State, register
from fedloom.model import Model
from fedloom.training import SGD, Solver


def losses(model: Model, w: Tensor, batch: Data) -> Tensor:
    """One value per sample `(n,)`."""
    return model.losses(w, batch)


@dataclass(frozen=True)
class IfcaState(State):
    """models: one model per row `(k, d)`."""

    models: Tensor


@register
@dataclass(frozen=True)
class Ifca(Method):
    """Iterative federated clustering.

    Args:
        k: number of clusters, >= 1; the models start from k different draws (equal ones would never part).
    """

    card = Card(
        id="ifca",
        title="IFCA",
        paper="An Efficient Framework for Clustered Federated Learning",
        authors="A. Ghosh, J. Chung, D. Yin, K. Ramchandran",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2006.04088",
        family="personalisation",
        summary="k models; each client trains the one with the lowest loss on its data",
        down="4*d*k",
        up="4*d + min(4, ceil(k/8))",
        reduces=(("k = 1", "fedavg"),),
        deviations=("the model averaging variant; no shared layers",),
        claim="recovers the groups and beats one global model when groups of clients differ",
    )

    cohort: int = 10
    k: int = 4
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"Ifca(k={self.k}) cannot be: at least one cluster")

    def start(self, clients: Clients, before: IfcaState | None = None) -> IfcaState:
        if before:
            if len(before.models) != self.k:
                raise ConfigError(
                    f"Ifca(k={self.k}) cannot start from a run with {len(before.models)} clusters: "
                    f"say k={len(before.models)}, or leave before out"
                )
            return before
        others = [clients.model.initial(clients.rng("cluster")) for _ in range(self.k - 1)]
        return IfcaState(models=torch.stack([clients.model.initial(), *others]))

    async def nearest(self, client: Client, models: Tensor) -> int:
        """The number of the model with the lowest mean training loss."""
        if len(models) == 1:
            return 0
        found = [float((await client.predict(u, fn=losses)).mean()) for u in models]
        return min(range(len(found)), key=found.__getitem__)

    async def local(self, client: Client, models: Tensor) -> Message:
        j = await self.nearest(client, models)
        out = await client.train(models[j], solver=self.solver)
        return Message(models=At(torch.tensor([j]), out.vector[None], len(models)))

    def round(self, state: IfcaState, clients: Clients) -> IfcaState:
        got = clients.mean(self.local, clients.sample(self.cohort), models=state.models)
        return replace(state, models=got.models.over(state.models)) if got.count else state

    def down(self, state: IfcaState, id: int) -> dict[str, Any]:
        return {"models": state.models}

    async def personalise(self, client: Client, models: Tensor) -> Tensor:
        return models[await self.nearest(client, models)]

    def sizes(self, clients: Clients) -> dict[str, float]:
        return {"k": self.k}
