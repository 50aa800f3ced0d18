"""FedPAGE (Zhao, Li, Richtárik, 2021), and BVR-L-SGD (Murata, Suzuki, ICML 2021) as one of its cases.

    g  <- mean_{i in A} grad f_i(x)                                  with chance `fresh`, and in the first round
    g  <- g + mean_{i in S} (grad f_i(x) - grad f_i(x_last))         else
    y_i <- x,  g_i <- g                                              then K steps at each i in S:
        y_i <- y_i - lr g_i;   g_i <- g_i + grad f_i(y_i; b) - grad f_i(y_i before; b)
    x_last <- x;   x <- x + server_lr mean_{i in S} (y_i - x)       or y_i - x of one i in S, drawn evenly

BVR-L-SGD has fresh = 1, everybody in S, and one y_i instead of the mean; here only that client does local steps.
Two exchanges a round: x (and x_last) down, a gradient (or a difference of two) up; x and g down, y_i - x up. Clients
keep nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import State, register

from .recursive import Recursive


@dataclass(frozen=True)
class FedPageState(State):
    """params: x, the global model; last: the one of the round before; direction: g, once known. All `(d,)`."""

    params: Tensor
    last: Tensor
    direction: Tensor | None = None


@register
@dataclass(frozen=True)
class FedPage(Recursive):
    """Federated learning with the PAGE estimator; every client counts alike.

    Args:
        fresh: p, the chance in (0, 1] of a round with a fresh direction.
        anchors: A, how many give fresh gradients; None: all that are there.
        average: whether x follows the mean of the cohort's models, or (BVR-L-SGD) one of them, drawn at random.
    """

    card = Card(
        id="fedpage",
        title="FedPAGE",
        paper="FedPAGE: A Fast Local Stochastic Gradient Method for Communication-Efficient Federated Learning",
        authors="H. Zhao, Z. Li, P. Richtárik",
        venue="arXiv",
        year=2021,
        url="https://arxiv.org/abs/2108.04755",
        family="optimisation",
        summary="local steps follow a global direction, refreshed by chance and corrected by differences else",
        down=None,
        why_bytes="down 4d for a fresh gradient, else 8d (x and the last x, or x and the direction); up 4d always",
        deviations=(
            "gradients at the server's models are over all of a client's samples, not over a large batch of them",
            "of BVR-L-SGD, clients whose models would be dropped do no local steps",
        ),
        claim="reaches a given accuracy in fewer rounds than FedAvg at equal local steps",
    )

    fresh: float = 0.2
    anchors: int | None = None
    average: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fresh <= 1:
            raise ConfigError(
                f"FedPage(fresh={self.fresh}) cannot be: it is a chance in (0, 1]; 1 refreshes the direction in every "
                f"round, as BVR-L-SGD does"
            )

    def start(self, clients: Clients, before: FedPageState | None = None) -> FedPageState:
        params = before.params if before else clients.model.initial()
        return FedPageState(params=params, last=params)

    async def change(self, client: Client, params: Tensor, last: Tensor) -> Message:
        return Message(gradient=await client.gradient(params) - await client.gradient(last))

    def directed(self, state: FedPageState, clients: Clients, cohort: list[int]) -> Tensor | None:
        """g of this round; None where nobody has given a gradient yet."""
        old = state.direction
        if torch.rand((), generator=clients.rng("fresh")) < self.fresh or old is None:
            asked = clients.available() if self.anchors is None else clients.sample(self.anchors)
            got = clients.mean(self.gradient, asked, weight=1, params=state.params)
            return got.gradient if got.count else old
        got = clients.mean(self.change, cohort, weight=1, params=state.params, last=state.last)
        return old + got.gradient if got.count else old

    def round(self, state: FedPageState, clients: Clients) -> FedPageState:
        cohort = clients.sample(self.cohort)
        direction = self.directed(state, clients, cohort)
        if direction is None:
            return state
        workers = cohort if self.average else clients.sample(min(1, len(cohort)), cohort)
        got = clients.mean(self.local, workers, weight=1, params=state.params, direction=direction)
        params = state.params
        if got.count:
            moved, mean = params + self.server_lr * got.delta, params + got.delta
            params = clients.model.layout.keep_statistics(moved, mean)
        return replace(state, params=params, last=state.params, direction=direction)
