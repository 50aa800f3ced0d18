"""FedLEx (Interno et al. 2024): a few clients explore first; where their weights spread apart, all may move.

    round 1:  scouts train from x_0;   spread_j = mean_k (w_kj - x_0j)^2 for every weight j
              M = (spread - min) / (max - min) within each tensor        1 where a tensor's spread is constant
    then:     y_i <- y_i - lr M * grad f_i(y_i)    element by element;    x <- sum_i n_i y_i / sum_i n_i

M = 1 is FedAvg, M = 0 stands still. Most entries of M are near 0, so step sizes are larger than FedAvg's.
Sent: x down (and M once), y_i - x up; from a scout (w_k - x_0)^2. Kept at clients: nothing; M is the server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, MessageError
from fedloom.message import Message, once
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver
from fedloom.vector import Layout


@dataclass(frozen=True)
class FedLexState(State):
    """params: the global model `(d,)`; mask: M `(d,)` in [0, 1], None before scouts have been out."""

    params: Tensor
    mask: Tensor | None


def masked(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """mask * grad f(w): momentum sees what is left of the gradient."""
    return extras["mask"] * f.grad(w), carry


@register
@dataclass(frozen=True)
class FedLex(Method):
    """Federated loss exploration.

    Args:
        scouts: share of the clients that explore in the first round, in (0, 1].
        explore: epochs of a scout at most, >= 1; it stops after `patience` epochs without a lower training loss.
        shuffled: the entries of M change places within each tensor: the same values without what was explored, as a
            control for experiments.
    """

    card = Card(
        id="fedlex",
        title="FedLEx",
        paper="Federated Loss Exploration for Improved Convergence on Non-IID Data",
        authors="C. Interno, M. Olhofer, Y. Jin, B. Hammer",
        venue="IJCNN",
        year=2024,
        url="https://github.com/ChristianInterno/FedLEx",
        family="optimisation",
        summary="a mask from exploring clients scales every later gradient",
        down=None,
        why_bytes="4*d, and 4*d more the first time a client trains with the mask",
        deviations=(
            "the mask is made once, from displacements, and scaled by smallest and largest; gradients as signal, the "
            "scale by quartiles, and masks made anew each round are left out",
        ),
        claim="the accuracy over all rounds is higher than with the same mask shuffled within each tensor",
    )

    cohort: int | float = 10
    solver: Solver = SGD(lr=0.3, epochs=5, batch_size=32)
    scouts: float = 0.2
    explore: int = 10
    patience: int = 2
    shuffled: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scouts <= 1 or self.explore < 1 or self.patience < 1:
            raise ConfigError(
                f"FedLex(scouts={self.scouts}, explore={self.explore}, patience={self.patience}) cannot be: "
                f"0 < scouts <= 1, explore and patience >= 1"
            )

    def start(self, clients: Clients, before: FedLexState | None = None) -> FedLexState:
        return before or FedLexState(clients.model.initial(), None)

    async def scout(self, client: Client, params: Tensor) -> Message:
        """How far each weight goes on this client's data, squared."""
        epoch = replace(self.solver, epochs=1, steps=None)
        w, lowest, waited = params, math.inf, 0
        for _ in range(self.explore):
            out = await client.train(w, solver=epoch)
            w, waited = out.vector, 0 if out.loss < lowest else waited + 1
            lowest = min(lowest, out.loss)
            if waited >= self.patience:
                break
        return Message(square=(w - params) ** 2)

    async def local(self, client: Client, params: Tensor, mask: Tensor) -> Message:
        out = await client.train(params, solver=self.solver, step=masked, extras={"mask": mask})
        return Message(delta=out.vector - params)

    def round(self, state: FedLexState, clients: Clients) -> FedLexState:
        if state.mask is None:
            many = max(1, math.ceil(round(self.scouts * len(clients.ids), 9)))  # 0.28 of 50 are 14
            got = clients.mean(self.scout, clients.sample(many), weight=1, params=state.params)
            return replace(state, mask=self.mask(got.square, clients)) if got.count else state
        cohort = clients.sample(self.cohort)
        got = clients.mean(self.local, cohort, params=state.params, mask=once(state.mask))
        return replace(state, params=state.params + got.delta) if got.count else state

    def mask(self, spread: Tensor, clients: Clients) -> Tensor:
        """M `(d,)` from the spread `(d,)`; 1 for statistics, which no gradient moves."""
        return scaled(clients.model.layout, spread, clients.rng("shuffle") if self.shuffled else None)


def scaled(layout: Layout, spread: Tensor, shuffle: torch.Generator | None = None) -> Tensor:
    """Each tensor's entries from 0 (its smallest) to 1 (its largest), or 1 where all are alike.

    Raises:
        MessageError: not one number for each weight.
    """
    if spread.shape != (layout.size,):
        raise MessageError(f"scouts sent {tuple(spread.shape)} numbers of a model of {layout.size}")
    mask = torch.ones_like(spread)
    for name in layout.names:
        at = layout.span(name)
        values = spread[at]
        if at.stop > layout.trainable or len(values) == 0 or values.max() == values.min():
            continue
        values = (values - values.min()) / (values.max() - values.min())
        mask[at] = values if shuffle is None else values[torch.randperm(len(values), generator=shuffle)]
    return mask
