"""FedKSeed (Qin et al., ICML 2024): full-parameter tuning in kilobytes; only seeds and scalars travel.

    z(s): a standard normal vector of size d drawn from candidate seed s = 0..K-1
    client:  w = w_0 - lr sum_s a_s z(s);   each step: draw s,  g = (f(w + eps z) - f(w - eps z)) / (2 eps),
             w <- w - lr g z;   keep (s, g)
    server:  a_s <- a_s + sum_k p_k sum of client k's g for s
    Pro:     seeds are drawn with probability softmax(minmax(h)), h_s = mean of |clip(g)| seen for s; skipped steps
             (see `clip`) show none

Sent: a (K numbers) down, at most 8 bytes a step up. w_0 follows from the plan. Kept at clients: nothing.
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
from fedloom.model import Model
from fedloom.replies import Evaluation
from fedloom.training import SGD

from .forward_only import direction, two_points, undisturbed


@dataclass(frozen=True)
class FedKSeedState(State):
    """sums: a `(K,)`; size: sum of |clip(g)| per seed; draws: how many g per seed (both `(K,)`, Pro only)."""

    sums: Tensor
    size: Tensor
    draws: Tensor


@register
@dataclass(frozen=True)
class FedKSeed(Method):
    """Zeroth-order tuning over K candidate seeds.

    Args:
        candidates: K (paper: 4,096; 1,024 works).
        solver: `steps` is tau, `lr` the step size; plain SGD, as momentum or decay would not commute.
        eps: distance of the two points; clip: largest |f(w+) - f(w-)| that is believed.
        pro: draw seeds by how much they moved the loss so far; `pro_clip` is the c of |clip(g, -c, c)|.
    """

    card = Card(
        id="fedkseed",
        title="FedKSeed",
        paper="Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 "
        "Kilobytes",
        authors="Z. Qin, D. Chen, B. Qian, B. Ding, Y. Li, S. Deng",
        venue="ICML",
        year=2024,
        url="https://arxiv.org/abs/2312.06353",
        family="foundation",
        summary="full-parameter tuning where only seeds and scalars travel",
        down="4*K + 4*K*pro",
        up=None,
        why_bytes="4 per distinct seed (12 with pro) and its place: at most 8 per step (16 with pro)",
        deviations=(
            "a client adds up its g for a seed it drew twice, so that the server needs only sums",
            "w_0 follows from the plan and is not charged",
            "Pro starts from equal probabilities, and weights clients by samples",
        ),
        claim="comes near first-order tuning with a few kilobytes a round, whatever the model's size",
    )

    cohort: int = 10
    candidates: int = 1024
    solver: SGD = SGD(lr=1e-3, steps=50, batch_size=16)
    eps: float = 5e-4
    clip: float = 10.0
    pro: bool = False
    pro_clip: float = 1000.0

    def __post_init__(self) -> None:
        if not (self.candidates >= 1 and min(self.eps, self.clip, self.pro_clip) > 0):
            raise ConfigError(f"{self} cannot be: candidates >= 1, and eps, clip and pro_clip > 0")
        if type(self.solver) is not SGD or self.solver.momentum or self.solver.weight_decay or self.solver.clip:
            raise ConfigError(
                f"FedKSeed takes plain SGD(lr, steps, batch_size); given {self.solver}. Only then is what a step does "
                f"a sum over seeds, which everybody can repeat"
            )

    def start(self, clients: Clients, before: FedKSeedState | None = None) -> FedKSeedState:
        if clients.model.layout.trainable < clients.model.layout.size:
            raise NotSupported("FedKSeed cannot send running statistics: use a network without, or buffers='batch'")
        if before and len(before.sums) != self.candidates:
            raise ConfigError(
                f"FedKSeed(candidates={self.candidates}) cannot start from a run with {len(before.sums)} seeds: "
                f"say candidates={len(before.sums)}, or leave before out"
            )
        zeros = clients.model.initial().new_zeros(self.candidates)
        return before or FedKSeedState(sums=zeros, size=zeros, draws=zeros)

    def replay(self, model: Model, sums: Tensor) -> Tensor:
        """w_0 - lr sum_s a_s z(s), seeds in order."""
        w = model.initial()
        for s in sums.nonzero().flatten().tolist():
            w.add_(direction(s, w), alpha=-self.solver.lr * float(sums[s]))
        return w

    async def local(self, client: Client, sums: Tensor, chance: Tensor | None = None) -> Message:
        w = self.replay(client.model, sums)
        tau = self.solver.work(len(client.data))
        law = torch.ones(self.candidates) if chance is None else chance
        seeds = torch.multinomial(law, tau, replacement=True, generator=client.rng("seeds"))
        terms, none = {"seeds": seeds, "eps": self.eps, "clip": self.clip}, w.new_zeros(tau)
        out = await client.train(w, solver=self.solver, loss=undisturbed, step=two_points, carry=none, extras=terms)
        g = out.carry
        drawn, place = seeds.unique(return_inverse=True)
        each = torch.stack([g, g.abs().clamp(max=self.pro_clip), (g != 0).to(g)], 1) if self.pro else g[:, None]
        table = g.new_zeros(len(drawn), each.shape[1]).index_add_(0, place.to(g.device), each)
        return Message(seen=At(drawn, table, self.candidates))

    def round(self, state: FedKSeedState, clients: Clients) -> FedKSeedState:
        down: dict[str, Any] = {"chance": self.chance(state)} if self.pro else {}
        got = clients.sum(self.local, clients.sample(self.cohort), weight=None, sums=state.sums, **down)
        if got.count == 0:
            return state
        seen = got.seen.total / got.weight
        state = replace(state, sums=state.sums + seen[:, 0])
        return replace(state, size=state.size + seen[:, 1], draws=state.draws + seen[:, 2]) if self.pro else state

    def chance(self, state: FedKSeedState) -> Tensor:
        """Probabilities of the seeds `(K,)`."""
        h = torch.where(state.draws > 0, state.size / state.draws.clamp(min=1e-9), 0.0)
        return torch.softmax((h - h.min()) / (h.max() - h.min()).clamp(min=1e-12), 0)

    def evaluate(self, state: FedKSeedState, clients: Clients) -> dict[str, Evaluation]:
        return {"global": clients.evaluate(self.replay(clients.model, state.sums))}

    def down(self, state: FedKSeedState, id: int) -> dict[str, Any]:
        return {"sums": state.sums}

    async def personalise(self, client: Client, sums: Tensor) -> Tensor:
        return self.replay(client.model, sums)

    def sizes(self, clients: Clients) -> dict[str, float]:
        return {"K": self.candidates, "pro": float(self.pro)}
