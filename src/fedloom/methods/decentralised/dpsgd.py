"""D-PSGD (Lian et al., NeurIPS 2017): every node mixes with its neighbours and descends, both from where it was.

    x_i <- sum_j W_ij x_j - lr g_i(x_i)

The gradient is taken at x_i, not at the mixed point, so the two can go on side by side. W is doubly stochastic over a
graph: the mean of the nodes moves by -lr times the mean gradient. No server: bytes are those of the edges, each step.
Running statistics are mixed as the step left them. Kept at a node between rounds: sum_j W_ij x_j and the step -lr g_i
that is still to be added to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.method import register
from fedloom.training import SGD, Solver

from .gossip import AWAY, Gossip


@register
@dataclass(frozen=True)
class DPSGD(Gossip):
    """Decentralised parallel SGD.

    Args:
        topology: "ring", "grid", "exponential", "complete", "random:4", ...: see `fedloom.topology`.
        gossip: mixing steps a round, 1 in the paper.
        solver: one step a round in the paper.
    """

    card = Card(
        id="dpsgd",
        title="D-PSGD",
        paper="Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for Decentralized Parallel "
        "Stochastic Gradient Descent",
        authors="X. Lian, C. Zhang, H. Zhang, C.-J. Hsieh, W. Zhang, J. Liu",
        venue="NeurIPS",
        year=2017,
        url="https://arxiv.org/abs/1705.09056",
        family="decentralised",
        summary="one gradient step at every node and one averaging with neighbours, both from the same point",
        down="0",
        up="0",
        keeps="its mixed model and its last step, 8d bytes",
        needs=frozenset({"memory", "peers"}),
        reduces=(("complete graph, all clients", "centralised SGD on the mean of the nodes"),),
        deviations=(AWAY, "a solver with more steps makes the step a whole local update"),
        claim="a sparse graph reaches a target loss in as many rounds as a complete one, with a fraction of its bytes",
    )

    solver: Solver = SGD(lr=0.05, steps=1, batch_size=32)

    async def local(self, client: Client) -> None:
        x = await self.personalise(client)
        out = await client.train(x, solver=self.solver)
        mixes = client.model.layout.keep_statistics(x, out.vector)
        client.memory["params"], client.memory["step"] = mixes, out.vector - mixes

    async def personalise(self, client: Client) -> Tensor:
        mixed = await super().personalise(client)
        return mixed + client.memory["step"] if "step" in client.memory else mixed
