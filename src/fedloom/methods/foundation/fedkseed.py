"""FedKSeed (Qin et al., ICML 2024): full-parameter tuning in kilobytes; only seeds and scalars travel.

    z(s): a standard normal vector of size d drawn from candidate seed s = 0..K-1
    client:  w = w_0 - lr sum_s a_s z(s);   each step: draw s,  g = (f(w + eps z) - f(w - eps z)) / (2 eps),
             w <- w - lr g z;   keep (s, g)
    server:  a_s <- a_s + sum_k p_k sum of client k's g for s
    Pro:     seeds are drawn with probability softmax(minmax(h)), h_s = mean of |clip(g)| seen for s

Sent: a (K numbers) down, one (seed, g) pair per step up. w_0 follows from the plan. Kept at clients: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.keyed import generator
from fedloom.message import At, Message
from fedloom.method import Method, State, register
from fedloom.model import Model
from fedloom.replies import Evaluation
from fedloom.training import SGD


def direction(seed: int, like: Tensor) -> Tensor:
    """z(seed) `(d,)`: drawn in float32 on the CPU, the same on every device."""
    return torch.randn(like.shape, generator=generator("fedkseed", seed)).to(like)


def two_points(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """Both losses on one batch; nothing is differentiated. A step that is not finite or too large is skipped."""
    z = direction(int(extras["seeds"][k]), w)
    high, low = f(w + extras["eps"] * z), f(w - extras["eps"] * z)
    fine = torch.isfinite(high - low) & ((high - low).abs() <= extras["clip"])
    g = torch.where(fine, (high - low) / (2 * extras["eps"]), torch.zeros_like(high))
    return g * z, torch.cat([carry[:k], g.view(1), carry[k + 1 :]])


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
        solver: `steps` is tau, `lr` the step size; plain SGD: decay of rate or weights would not commute.
        eps: distance of the two points; clip: largest |f(w+) - f(w-)| that is believed.
        pro: draw seeds by how much they moved the loss so far.
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
        down=None,
        up=None,
        why_bytes="4 K down; up 4 per distinct seed and its place, at most 8 per step (twice more with pro)",
        deviations=(
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

    def start(self, clients: Clients, before: FedKSeedState | None = None) -> FedKSeedState:
        zeros = torch.zeros(self.candidates)
        return before or FedKSeedState(sums=zeros, size=zeros, draws=zeros)

    def replay(self, model: Model, sums: Tensor) -> Tensor:
        """w_0 - lr sum_s a_s z(s), seeds in order."""
        w = model.initial()
        for s in sums.nonzero().flatten().tolist():
            w = w - self.solver.lr * sums[s].to(w) * direction(s, w)
        return w

    async def local(self, client: Client, sums: Tensor, chance: Tensor | None = None) -> Message:
        w = self.replay(client.model, sums)
        tau, rng = self.solver.work(len(client.data)), client.rng("seeds")
        law = torch.ones(self.candidates) if chance is None else chance
        seeds = torch.multinomial(law, tau, replacement=True, generator=rng)
        terms = {"seeds": seeds, "eps": self.eps, "clip": self.clip}
        out = await client.train(w, solver=self.solver, step=two_points, carry=torch.zeros(tau).to(w), extras=terms)
        g = out.carry.float()
        drawn, place = seeds.unique(return_inverse=True)

        def by_seed(x: Tensor) -> At:
            return At(drawn, torch.zeros(len(drawn)).index_add_(0, place, x), self.candidates)

        if not self.pro:
            return Message(g=by_seed(g))
        return Message(g=by_seed(g), size=by_seed(g.abs().clamp(max=self.clip)), draws=by_seed(torch.ones(tau)))

    def round(self, state: FedKSeedState, clients: Clients) -> FedKSeedState:
        down: dict[str, Any] = {"sums": state.sums} | ({"chance": self.chance(state)} if self.pro else {})
        got = clients.sum(self.local, clients.sample(self.cohort), weight=None, **down)
        if got.count == 0:
            return state
        new = replace(state, sums=state.sums + got.g.total / got.weight)
        if self.pro:
            size, draws = got.size.total / got.weight, got.draws.total / got.weight
            new = replace(new, size=state.size + size, draws=state.draws + draws)
        return new

    def chance(self, state: FedKSeedState) -> Tensor:
        """Probabilities of the seeds `(K,)`."""
        h = state.size / state.draws.clamp(min=1e-9)
        span = (h.max() - h.min()).clamp(min=1e-12)
        return torch.softmax((h - h.min()) / span, 0)

    def evaluate(self, state: FedKSeedState, clients: Clients) -> dict[str, Evaluation]:
        return {"global": clients.evaluate(self.replay(clients.model, state.sums))}

    def down(self, state: FedKSeedState, id: int) -> dict[str, Any]:
        return {"sums": state.sums}

    async def personalise(self, client: Client, sums: Tensor) -> Tensor:
        return self.replay(client.model, sums)
