"""FedAMD (Wu et al., ICML 2023): some of a cohort anchor the mean gradient, the others mine along it.

    anchors (each with chance p_t)   v_i <- grad f_i(x)
    miners (the others)              y_i <- x,  g_i <- v;   then K steps:
        y_i <- y_i - lr g_i;   g_i <- g_i + grad f_i(y_i; b) - grad f_i(y_i before; b)
    x <- x + server_lr mean_{miners} (y_i - x);    v <- 1/N sum_i v_i, for the miners of the next round

Sent: x down and v_i up at an anchor, x and v down and y_i - x up at a miner. Clients keep nothing; the server keeps v_i
of every client that has ever anchored, 4d bytes each. In the first round all that are there anchor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.method import State, register

from .recursive import Recursive
from .updates import Updates


@dataclass(frozen=True)
class FedAmdState(State):
    """params: x `(d,)`; gradients: v_i by client, and v, their mean over all clients `(d,)`; rounds: how many began."""

    params: Tensor
    gradients: Updates
    rounds: int = 0


@register
@dataclass(frozen=True)
class FedAmd(Recursive):
    """Anchor sampling; every client counts alike.

    Args:
        anchors: p_t in [0, 1], a chance for each round in turn, over and over: (0.2,) is the paper's constant one,
            (1.0, 0.0, 0.0) a round of anchors and two of miners.
        solver: that of the miners.
    """

    card = Card(
        id="fedamd",
        title="FedAMD",
        paper="Anchor Sampling for Federated Learning with Partial Client Participation",
        authors="F. Wu, S. Guo, Z. Qu, S. He, Z. Liu, J. Gao",
        venue="ICML",
        year=2023,
        url="https://arxiv.org/abs/2206.05891",
        family="optimisation",
        summary="some clients refresh their full gradients, the others step along the mean of all gradients",
        down=None,
        why_bytes="down 4d for an anchor, 8d for a miner; up 4d for both",
        needs=frozenset({"replies"}),
        deviations=(
            "an anchor's gradient is over all its samples, not over a large batch of them",
            "a client that was not there in the first round counts with a zero gradient until it anchors",
            "miners count alike, as in the released code, whatever they hold",
        ),
        claim="reaches a given accuracy in fewer rounds than FedAvg with few of many unlike clients a round",
    )

    anchors: tuple[float, ...] = (0.2,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.anchors or not all(0 <= p <= 1 for p in self.anchors):
            raise ConfigError(
                f"FedAmd(anchors={self.anchors}) cannot be: one chance in [0, 1] for each round in turn, as in (0.2,)"
            )

    def start(self, clients: Clients, before: FedAmdState | None = None) -> FedAmdState:
        if before:
            return replace(before, gradients=before.gradients.among(clients.ids))
        params = clients.model.initial()
        return FedAmdState(params=params, gradients=Updates.none(params))

    def roles(self, state: FedAmdState, clients: Clients) -> tuple[list[int], list[int]]:
        """Who anchors and who mines in this round."""
        if not state.gradients.of:
            return list(clients.available()), []
        cohort = clients.sample(self.cohort)
        p = self.anchors[state.rounds % len(self.anchors)]
        anchors = (torch.rand(len(cohort), generator=clients.rng("roles")) < p).tolist()
        return [i for i, a in zip(cohort, anchors) if a], [i for i, a in zip(cohort, anchors) if not a]

    def round(self, state: FedAmdState, clients: Clients) -> FedAmdState:
        anchors, miners = self.roles(state, clients)
        v = state.gradients  # as it was: this round's anchors guide the miners of the next
        heard = clients.only(anchors).map(self.gradient, params=state.params)
        mined = clients.only(miners).mean(self.local, weight=1, params=state.params, direction=v.mean)
        params = state.params
        if mined.count:
            moved, mean = params + self.server_lr * mined.delta, params + mined.delta
            params = clients.model.layout.keep_statistics(moved, mean)
        gradients = v.heard(heard, dict.fromkeys(heard.ids, 1 / len(clients.ids)), "gradient")
        return FedAmdState(params, gradients, state.rounds + 1)
