"""S2S, sampled to sampled (Rodio et al., AAAI 2026): neighbours mix, and now and then a server averages a sample.

    every round:     y_i <- local steps from x_i;   x_i <- sum_j W_ij y_j      W doubly stochastic inside components
    every `every`:   a <- mean of x_i over a uniform sample;   x_i <- a for those of the sample

The server links components that cannot hear of each other. Mean and exchange are over the same nodes, so the mean of
all nodes stays where it is, while their disagreement only shrinks. Kept at a node: x_i; at the server: the last a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import register
from fedloom.training import SGD

from .gossip import AWAY, Gossip, GossipState


@dataclass(frozen=True)
class SemiState(GossipState):
    """params: the mean of the last sample `(d,)`, all that the server ever sees; the initial model before."""

    params: Tensor | None = None


@register
@dataclass(frozen=True)
class S2S(Gossip):
    """Gossip inside components; every few rounds a sample of nodes takes its own mean from a server.

    Args:
        topology: edges between nodes: "components:4", "ring", ...
        gossip: mixing steps a round, >= 1.
        solver: local work.
        cohort: nodes the server contacts (the paper's K_s).
        every: rounds from one contact to the next, >= 1 (the paper's H).
    """

    card = Card(
        id="s2s",
        title="S2S",
        paper="A Unified Convergence Analysis for Semi-Decentralized Learning: Sampled-to-Sampled vs. Sampled-to-All "
        "Communication",
        authors="A. Rodio, G. Neglia, Z. Chen, E. G. Larsson",
        venue="AAAI",
        year=2026,
        family="decentralised",
        summary="gossip inside components, and a server that averages a sample of nodes, which alone receives the mean",
        down=None,
        up=None,
        why_bytes="in a round with contact 4d up and 4d down for each node of the sample, otherwise none",
        keeps="its own model x_i, 4d bytes",
        needs=frozenset({"memory", "peers"}),
        reduces=(("no contact within the run", "dfedavg"), ("every = 1, all nodes", "fedavg (weight = uniform)")),
        deviations=(
            AWAY,
            "the contact comes after the mixing of its round (the paper leaves the order open)",
            "the server keeps the last mean, so that there is a global model to judge",
        ),
        claim="with other data in every component, the mean of all nodes is a better model with S2S than with S2A",
    )

    topology: str = "components:4"
    cohort: int = 6
    every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or self.cohort < 1:
            raise ConfigError(
                f"{type(self).__name__}(cohort={self.cohort}, every={self.every}) cannot be: both are at least 1"
            )

    @classmethod
    def example(cls) -> dict[str, Any]:
        """A contact within its rounds, and a round without one."""
        return {"method": cls(cohort=6, every=2, solver=SGD(lr=0.05, epochs=1, batch_size=4))}

    def start(self, clients: Clients, before: Any = None) -> SemiState:
        if before is not None:
            raise ConfigError(
                f"{type(self).__name__} cannot start from an earlier run: what it learns lies at its nodes, and its "
                f"server holds no more than the mean of a sample. Leave before out"
            )
        return SemiState(params=clients.model.initial())

    def round(self, state: SemiState, clients: Clients) -> SemiState:
        state = replace(state, round=super().round(state, clients).round)
        return self.contact(state, clients) if state.round % self.every == 0 else state

    def contact(self, state: SemiState, clients: Clients) -> SemiState:
        sample = clients.sample(self.cohort)
        got = clients.mean(self.report, sample, weight=1)
        if not got.count:
            return state
        clients.sum(self.adopt, self.receivers(sample, clients), params=got.params)
        return replace(state, params=got.params)

    def receivers(self, sample: Sequence[int], clients: Clients) -> Sequence[int]:
        """Who takes the mean of the sample as its model."""
        return sample

    async def report(self, client: Client) -> Message:
        return Message(params=await self.personalise(client))

    async def adopt(self, client: Client, params: Tensor) -> None:
        client.memory["params"] = params
