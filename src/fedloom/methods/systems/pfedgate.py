"""pFedGate (Chen et al., ICML 2023): each client's own gate picks and scales blocks of the global model, in a budget.

    client:  M = gate_i(x), a weight for each block of w: 0 for all but the share s_i of the numbers   (gates.py)
             w_i, gate_i <- SGD on f_i(w_i * M), together, from w and its last gate
    server:  w <- w + sum_i p_i (w_i - w)          blocks a client never used have not moved there

At an evaluation a client gates by all its training inputs; one without a gate first learns one, w as it is.
Sent: w down; the change of the blocks it used and which these are up. Kept at a client: its gate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, NotSupported
from fedloom.message import At, Message
from fedloom.method import Method, State, register
from fedloom.replies import Evaluation
from fedloom.training import SGD, Solver
from fedloom.training.request import Trained

from .gates import Blocks, blocks_of, through_gate, weights
from .sparse import Mask


@dataclass(frozen=True)
class PFedGateState(State):
    """params: the global model `(d,)`; it is meant to be gated."""

    params: Tensor


@register
@dataclass(frozen=True)
class PFedGate(Method):
    """Personal sparse models through gates.

    Args:
        budgets: client i may use the share `budgets[i % len(budgets)]` of the numbers, in (0, 1] (paper: 0.3, 0.5, 1).
        blocks: B, blocks of each tensor, >= 1 (paper: 5).
        gate_lr: step size of the gate, > 0 (paper: 0.1).
        by_users: average each block over the clients that used it, instead of over all.
    """

    card = Card(
        id="pfedgate",
        title="pFedGate",
        paper="Efficient Personalized Federated Learning via Sparse Model-Adaptation",
        authors="D. Chen, L. Yao, D. Gao, B. Ding, Y. Li",
        venue="ICML",
        year=2023,
        url="https://arxiv.org/abs/2305.02776",
        family="systems",
        summary="a gate at each client picks and scales blocks of the global model within its budget",
        up=None,
        why_bytes="up: 4 per number of the blocks a client used in its job, and a bit per block (or 4 per used block)",
        keeps="its gate, 4 (features + 2) bytes per block",
        needs=frozenset({"memory"}),
        reduces=(("budgets = (1,) and gates of 1", "fedavg"),),
        deviations=(
            "inputs are normalised sample by sample; the paper learns a mixture of normalisations",
            "knapsacks take real values in order of value per size; the authors' code rounds them to tenths",
            "the gate takes plain SGD steps",
        ),
        claim="at half of the parameters, clients are better off than with one dense model for all",
    )

    cohort: int = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    budgets: tuple[float, ...] = (0.5,)
    blocks: int = 5
    gate_lr: float = 0.1
    by_users: bool = False

    def __post_init__(self) -> None:
        if not self.budgets or not all(0 < s <= 1 for s in self.budgets):
            raise ConfigError(f"pFedGate(budgets={self.budgets}) cannot be: at least one, each in (0, 1]")
        if not (self.blocks >= 1 and self.gate_lr > 0):
            raise ConfigError(
                f"pFedGate(blocks={self.blocks}, gate_lr={self.gate_lr}) cannot be: blocks >= 1, gate_lr > 0"
            )

    def start(self, clients: Clients, before: PFedGateState | None = None) -> PFedGateState:
        if clients.model.layout.trainable < clients.model.layout.size:
            raise NotSupported("pFedGate cannot gate running statistics: use a network without, or buffers='batch'")
        return before or PFedGateState(params=clients.model.initial())

    def limits(self, id: int) -> dict[str, float]:
        """s_i, and s_min of a block's weight."""
        s = self.budgets[id % len(self.budgets)]
        return {"budget": s, "least": min(max(1 / self.blocks, 0.1), s)}

    def fresh(self, client: Client, blocks: Blocks, like: Tensor) -> Tensor:
        """A gate before it has learned anything: G random, BatchNorm's scale 1 and shift 0."""
        x = client.data.x
        if not x.is_floating_point():
            raise NotSupported(f"pFedGate's gate looks at real inputs; these are {str(x.dtype)[6:]}")
        features = x[0].numel()
        g = torch.randn(len(blocks.first), features, generator=client.rng("gate")).to(like) / features**0.5
        return torch.cat([g, torch.ones_like(g[:, :1]), torch.zeros_like(g[:, :1])], 1)

    async def trained(self, client: Client, params: Tensor, blocks: Blocks, only: Tensor | None = None) -> Trained:
        """w and gate after a job's work; `only`: what of w may move."""
        gate = client.memory["gate"] if "gate" in client.memory else self.fresh(client, blocks, params)
        carry = {"gate": gate, "touched": torch.zeros_like(blocks.first)}
        terms: dict[str, Any] = {"blocks": blocks, "gate_lr": self.gate_lr, **self.limits(client.id)}
        return await client.train(params, solver=self.solver, step=through_gate, carry=carry, extras=terms, only=only)

    async def local(self, client: Client, params: Tensor) -> Message:
        blocks = blocks_of(client.model, self.blocks)
        out = await self.trained(client, params, blocks)
        client.memory["gate"] = out.carry["gate"]
        used = out.carry["touched"][blocks.of]
        delta = At(used, (out.vector - params)[used], len(params), known=True)
        return Message(delta=delta, blocks=Mask.of(out.carry["touched"]))

    def round(self, state: PFedGateState, clients: Clients) -> PFedGateState:
        got = clients.mean(self.local, clients.sample(self.cohort), params=state.params)
        if got.count == 0:
            return state
        step = got.delta.over(torch.zeros_like(state.params)) if self.by_users else got.delta.total / got.weight
        return replace(state, params=state.params + step.to(state.params.dtype))

    async def personalise(self, client: Client, params: Tensor) -> Tensor:
        blocks = blocks_of(client.model, self.blocks)
        if "gate" in client.memory:
            gate = client.memory["gate"]
        else:
            still = torch.zeros_like(params, dtype=torch.bool)
            gate = (await self.trained(client, params, blocks, only=still)).carry["gate"]
        each, _ = weights(gate, client.data.x, blocks, **self.limits(client.id))
        return params * each[blocks.of]

    def evaluate(self, state: PFedGateState, clients: Clients) -> dict[str, Evaluation]:
        each = {i: self.down(state, i) for i in clients.panel}
        return {"personal": clients.evaluate(self.personalise, each=each)}
