"""FedADP (Wang, Lv, Liu, 2025): networks of different depth and width are averaged as one union network.

    union   per stage the most layers, per layer the most units of all networks;  u its weights (D,)
    up_a    deepen (identity layers) and widen (copies of units) network a to the union: the same function
    down_a  narrow and shorten the union to network a: copies and inserted layers go;  down_a(up_a(w)) = w

    client:  y_i <- SGD on f_i from down_a(u);         server:  u <- sum_i (n_i / n) up_a(y_i)

Sent: the client's own network both ways, never the union. Kept at clients: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import At, Message
from fedloom.method import Method, State, register
from fedloom.task import Classification
from fedloom.training import SGD, Solver

from .transforms import union_of


@dataclass(frozen=True)
class FedADPState(State):
    """union: weights of the union network `(D,)`."""

    union: Tensor


@register
@dataclass(frozen=True)
class FedADP(Method):
    """Averaging of different networks through function-preserving transforms to their union."""

    card = Card(
        id="fedadp",
        title="FedADP",
        paper="FedADP: Unified Model Aggregation for Federated Learning with Heterogeneous Model Architectures",
        authors="J. Wang, H. Lv, L. Liu",
        venue="arXiv",
        year=2025,
        url="https://arxiv.org/abs/2505.06497",
        family="systems",
        summary="networks of different depth and width are averaged as one union network",
        down=None,
        up=None,
        why_bytes="4 for each weight of the client's own network",
        needs=frozenset({"families"}),
        reduces=(("one network", "fedavg"),),
        deviations=(
            "how layers are dropped is our reading: copies go and what reads them is added up, inserted layers go",
            "unit j is copied as j + n, j + 2n, ..., the same in every round",
            "chains of dense and convolution layers with ReLU, pooling and flattening; no normalisation, no residuals",
            "the union starts as the largest network's initial weights",
        ),
        claim="clients of different networks end better than when only their common layers are averaged (FlexiFed)",
    )

    cohort: int = 10
    solver: Solver = SGD(lr=0.05, epochs=1, batch_size=32)

    def start(self, clients: Clients, before: FedADPState | None = None) -> FedADPState:
        if before:
            return before
        largest = max(clients.models.values(), key=lambda model: model.layout.size)
        return FedADPState(union=union_of(clients.models)[largest.name].up(largest.initial()))

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        at, size = places(client)[client.model.name]
        return Message(params=At(at + torch.arange(len(params)), out.vector, size, known=True))

    def round(self, state: FedADPState, clients: Clients) -> FedADPState:
        cohort, ways = clients.sample(self.cohort), union_of(clients.models)
        small = {network: {"params": way.down(state.union)} for network, way in ways.items()}
        got = clients.mean(self.local, cohort, each={i: small[clients.info(i)["model"]] for i in cohort})
        if not got.count:
            return state
        union = torch.zeros_like(state.union)
        for network, (at, _) in places(clients).items():  # the mean over each network's clients, and their weight
            own = slice(at, at + ways[network].size)
            total, weight = got.params.total[own], got.params.held[own][0]
            if weight > 0:
                union = union + weight / got.weight * ways[network].up((total / weight).to(union.dtype))
        return FedADPState(union=union)

    def down(self, state: FedADPState, id: int) -> dict[str, Any]:
        return {"union": state.union}

    async def personalise(self, client: Client, union: Tensor) -> Tensor:
        return union_of(client.models)[client.model.name].down(union)

    @classmethod
    def example(cls) -> dict[str, Any]:
        family = {"narrow": "mlp:5", "wide": "mlp:8", "deep": "mlp:6,7"}
        return {
            "method": cls(cohort=4, solver=SGD(lr=0.1, epochs=2, batch_size=4)),
            "task": Classification(model=family),
        }


def places(of: Client | Clients) -> dict[str, tuple[int, int]]:
    """Where each network's weights begin in a row of all networks', and the row's length: replies add up in it."""
    sizes = {name: model.layout.size for name, model in of.models.items()}
    return dict(zip(sizes, ((at, sum(sizes.values())) for at in accumulate(sizes.values(), initial=0))))
