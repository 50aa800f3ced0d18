"""PruneFL (Jiang et al., TNNLS 2022): the mask is what learns most per second of a round.

    t_j = per_number + per_use * (uses of weight j in a forward pass);   T(m) = fixed + sum_{j in m} t_j
    mask:      m maximises  sum_{j in m} g_j^2 / T(m);   it keeps, of each layer, all but a share `most` of the smallest
               weights it had; weights that were pruned may return, at 0
    stage 1:   one client trains alone and chooses masks, until their sizes settle
    stage 2:   FedAvg of w * m; after every R-th round the server chooses a mask from the clients' mean g_k^2
    g_k = sum of a job's batch gradients at w * m, with respect to all of w;   most_t = most * 2^(-t / half_life)

Sent: the weights that stay both ways, the mask to clients that do not hold it; g^2 (d numbers) up in rounds that
choose. Kept at clients: nothing. Only weights of linear and convolutional layers are pruned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import At, Message
from fedloom.method import register
from fedloom.model import Model
from fedloom.training import SGD

from .costs import uses
from .masks import best_ratio, largest, layers, prunable
from .pruned import Pruned, PrunedState
from .sparse import filled, sparse

SETTLED, IN_A_ROW = 0.1, 5
"""Stage 1 ends when so many sizes in a row differ from the one before by at most this share (as in the paper)."""


def under_mask(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """The gradient where the mask is; the sum of all entries' gradients is carried on."""
    g = f.grad(w)
    return g * extras["mask"], carry + g


@register
@dataclass(frozen=True)
class PruneFL(Pruned):
    """Adaptive pruning by squared gradient per time.

    Args:
        solver: local SGD.
        every: R, rounds between two masks (paper: 50).
        initial: most masks of stage 1, each after one job's work of the client; 0: no stage 1 (paper: 20).
        most: share of each layer's remaining weights that one mask may prune, in [0, 1] (authors' code: 0.3).
        half_life: rounds in which `most` halves in stage 2 (authors' code: 10,000).
        fixed: c, seconds of a round that no pruning saves, > 0.
        per_number: seconds to send and return one number, > 0; g^2 costs half of it per entry.
        per_use: seconds a round's training takes per weight and use of it, >= 0.
    """

    card = Card(
        id="prunefl",
        title="PruneFL",
        paper="Model Pruning Enables Efficient Federated Learning on Edge Devices",
        authors="Y. Jiang, S. Wang, V. Valls, B. J. Ko, W.-H. Lee, K. K. Leung, L. Tassiulas",
        venue="IEEE Transactions on Neural Networks and Learning Systems",
        year=2022,
        url="https://arxiv.org/abs/1909.12326",
        family="systems",
        summary="the mask maximises squared gradients per second of a round; pruned weights may return",
        down=None,
        up=None,
        why_bytes="4 per weight that stays each way, and the mask (4 per weight that stays, or d/8) when it changed; "
        "4 d more up in rounds that choose a mask; stage 1: 4 d down, the pruned network and its mask up",
        reduces=(("initial = 0, every = 1000000", "fedavg"),),
        deviations=(
            "g is of the round that chooses; the authors' clients add up the rounds since the last mask",
            "t_j is a model, linear in a weight's uses; the paper measures it layer by layer",
            "the client of stage 1 is drawn",
            "biases and norms are never pruned, and cost no time",
        ),
        claim="reaches a given accuracy in less time than the dense model and than magnitude pruning of equal size",
    )

    solver: SGD = SGD(lr=0.1, epochs=5, batch_size=32)
    every: int = 50
    initial: int = 20
    most: float = 0.3
    half_life: float = 10_000.0
    fixed: float = 6.2
    per_number: float = 5.6e-6
    per_use: float = 1.8e-7

    def __post_init__(self) -> None:
        fine = self.every >= 1 and self.initial >= 0 and 0 <= self.most <= 1 and self.per_use >= 0
        if not (fine and min(self.half_life, self.fixed, self.per_number) > 0):
            raise ConfigError(
                f"{self} cannot be: every >= 1, initial >= 0, most in [0, 1], per_use >= 0, and half_life, fixed and "
                f"per_number > 0"
            )
        if not isinstance(self.solver, SGD):
            raise ConfigError(f"PruneFL's masked steps are SGD's; given {type(self.solver).__name__}")

    @classmethod
    def example(cls) -> dict[str, Any]:
        return {"method": cls(cohort=4, solver=SGD(lr=0.1, epochs=1, batch_size=4), every=2, initial=2, fixed=0.01)}

    # ------------------------------------------------------------ the mask
    def times(self, model: Model) -> Tensor:
        """t_j `(d,)`, in seconds."""
        return self.per_number + self.per_use * uses(model)

    def chosen(self, model: Model, params: Tensor, mask: Tensor, g2: Tensor, most: float) -> Tensor:
        """The next mask after `mask`, from squared gradients."""
        among, sure = prunable(model), mask.clone()
        for name in layers(model.layout, among):
            at = model.layout.span(name)
            there = int((mask & among)[at].sum())
            sure[at] &= largest(params[at].abs(), (mask & among)[at], there - int(most * there))
        return best_ratio(g2, self.times(model).to(g2), self.fixed, sure)

    def seconds(self, model: Model, mask: Tensor) -> float:
        """T(m) of one round."""
        return self.fixed + float(self.times(model)[mask & prunable(model)].sum())

    # ------------------------------------------------------------ stage 1
    def first(self, params: Tensor, clients: Clients) -> tuple[Tensor, Tensor] | None:
        if self.initial == 0:
            return params, torch.ones_like(params, dtype=torch.bool)
        got = clients.mean(self.alone, clients.sample(1), weight=1, params=params)
        return (got.kept.total.to(params.dtype), got.kept.held > 0) if got.count else None

    async def alone(self, client: Client, params: Tensor) -> Message:
        mask, settled = torch.ones_like(params, dtype=torch.bool), 0
        for _ in range(self.initial):
            w, g2 = await self.measured(client, params, mask)
            new = self.chosen(client.model, w, mask, g2, self.most)
            settled = settled + 1 if abs(int(new.sum()) / int(mask.sum()) - 1) <= SETTLED else 0
            params, mask = w * new, new
            if settled == IN_A_ROW:
                break
        return Message(kept=At(mask, params[mask], len(params)))

    # ------------------------------------------------------------ stage 2
    async def measured(self, client: Client, params: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A job's work under the mask, and g^2."""
        start = torch.zeros_like(params)
        out = await client.train(params, solver=self.solver, step=under_mask, carry=start, extras={"mask": mask})
        return out.vector, out.carry.square()

    async def scored(self, client: Client, kept: Tensor, mask: Tensor) -> Message:
        params = filled(kept, mask)
        w, g2 = await self.measured(client, params, mask)
        return Message(delta=(w - params)[mask], g2=g2)

    def trained(self, state: PrunedState, clients: Clients) -> PrunedState:
        assert state.mask is not None
        chooses = (state.round + 1) % self.every == 0
        extra = chooses * self.per_number / 2 * len(state.params)
        clients.note(seconds=self.seconds(clients.model, state.mask) + extra)
        if not chooses:
            return super().trained(state, clients)
        got = clients.mean(self.scored, clients.sample(self.cohort), **sparse(state.params, state.mask))
        if got.count == 0:
            return state
        params, most = state.params + filled(got.delta, state.mask), self.most * 0.5 ** (state.round / self.half_life)
        mask = self.chosen(clients.model, params, state.mask, got.g2, most)
        return replace(state, params=params * mask, mask=mask)
