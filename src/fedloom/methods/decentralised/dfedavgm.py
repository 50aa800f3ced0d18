"""DFedAvgM (Sun, Li, Wang, TPAMI 2023): local momentum SGD at every node, then averaging with neighbours.

    y_i <- K steps of SGD with heavy-ball momentum theta from x_i;      x_i <- sum_j W_ij y_j     (gossip times)

W is doubly stochastic over a graph. No server: bytes are those of the edges. Kept at a node: x_i.
On the complete graph with theta = 0 every node holds FedAvg's uniform mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.method import Method, State, register
from fedloom.topology import topology_named
from fedloom.training import SGD


@dataclass(frozen=True)
class DFedAvgMState(State):
    """round: rounds done. There is no model in the middle."""

    round: int = 0


@register
@dataclass(frozen=True)
class DFedAvgM(Method):
    """Decentralised averaging with momentum.

    Args:
        topology: "ring", "ring:2", "complete", "random:4".
        gossip: mixing steps a round, >= 1.
        solver: local work; momentum theta = 0.9 in the paper, started anew each round.
    """

    card = Card(
        id="dfedavgm",
        title="DFedAvgM",
        paper="Decentralized Federated Averaging",
        authors="T. Sun, D. Li, B. Wang",
        venue="TPAMI",
        year=2023,
        url="https://arxiv.org/abs/2104.11375",
        family="decentralised",
        summary="local momentum SGD, then averaging with neighbours in a graph",
        down="0",
        up="0",
        keeps="its own model x_i, 4d bytes",
        needs=frozenset({"memory", "peers"}),
        reduces=(("complete graph, no momentum, all clients", "fedavg (weight = uniform)"),),
        deviations=(
            "nodes that are away keep their model, and the graph closes around them",
            "quantised messages are a channel's business",
        ),
        claim="a complete graph agrees sooner than a ring; both beat training alone",
    )

    topology: str = "ring"
    gossip: int = 1
    solver: SGD = SGD(lr=0.05, epochs=1, batch_size=32, momentum=0.9)

    def __post_init__(self) -> None:
        topology_named(self.topology)
        if self.gossip < 1:
            raise ConfigError(f"DFedAvgM(gossip={self.gossip}) cannot be: at least one mixing step a round")

    def start(self, clients: Clients, before: Any = None) -> DFedAvgMState:
        return DFedAvgMState()

    async def local(self, client: Client) -> None:
        out = await client.train(await self.personalise(client), solver=self.solver)
        client.memory["params"] = out.vector

    def round(self, state: DFedAvgMState, clients: Clients) -> DFedAvgMState:
        here = clients.only(clients.available())
        here.sum(self.local)  # nobody answers: what was trained stays where it is
        for _ in range(self.gossip):
            here.mix("params", topology_named(self.topology))
        return replace(state, round=state.round + 1)

    def down(self, state: DFedAvgMState, id: int) -> dict[str, Any]:
        return {}

    async def personalise(self, client: Client) -> Tensor:
        return client.memory["params"] if "params" in client.memory else client.model.initial()
