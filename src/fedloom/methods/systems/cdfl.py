"""CDFL (Li and Zhu, 2024): clients say when; the server guesses of which distributions each one's data is a mixture.

    client m, when it wants a better model:  w_m by SGD on f_m(w) + rho/2 ||w - v_m||^2 from v_m, the model it was sent
    server, with a little data D_k of every distribution k and a model C_k for it:
        u_k  = by_loss inv(f_{D_k}(w_m)) + by_gap inv(|f_{D_k}(w_m) - f_{D_k}(C_k)|) + (the rest) inv(||w_m - C_k||)
        C_k <- C_k + beta s(tau_k) u_k (w_m - C_k)        where u_k >= least; the others stay
        v_m  = sum_k u_k C_k                              what the client is sent back: one model, not K

inv is 1/x, made to add up to 1 over k; tau_k counts updates of C_k since v_m was sent; s is the hinge.
Sent: v_m down, w_m up. Kept at clients: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.data import Data
from fedloom.errors import ConfigError, DataError, NotSupported
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.methods.personalisation.ifca import losses
from fedloom.replies import Reply
from fedloom.training import SGD, Solver
from fedloom.training.hooks import proximal

from .staleness import discount


@dataclass(frozen=True)
class CdflState(State):
    """centres: one model per distribution `(K, d)`; updates: of each, so far; mixtures: u `(K,)` by client; held: the
    updates of each when a client was sent its model."""

    centres: Tensor
    updates: tuple[int, ...]
    mixtures: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    held: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])


@register
@dataclass(frozen=True)
class Cdfl(Method):
    """Client-driven clustered learning. The server's data has a field `cluster` (int64), the distribution of a sample.

    Args:
        rho: pull to the model a client was sent, >= 0 (paper: 0.1).
        beta: how far a fresh update moves a centre at most, in (0, 1] (paper: 0.025 to 0.1).
        by_loss, by_gap: shares of the two scores by losses; the distance has the rest.
        least: a centre moves only where u_k is at least this.
        a, b: of the hinge s(tau) (paper: 10, 5).
        warm: steps of the solver on D_k that part the centres before clients come, >= 1.
    """

    card = Card(
        id="cdfl",
        title="CDFL",
        paper="Towards Client Driven Federated Learning",
        authors="S. Li, C. Zhu",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2405.15407",
        family="systems",
        summary="clients come when they want; the server estimates their mixture of clusters and sends one model",
        needs=frozenset({"clock", "everybody", "replies", "server data"}),
        reduces=(("one distribution", "fedasync with weight beta, by clients that come on their own"),),
        deviations=(
            "the shares of the three scores are options; the paper's constants are not known to us",
            "a client comes at exponential times; its data does not change",
        ),
        claim="models at clients with mixed data are better than one asynchronous model, for one download, not K",
    )

    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    rho: float = 0.1
    beta: float = 0.1
    by_loss: float = 0.4
    by_gap: float = 0.2
    least: float = 0.2
    a: float = 10.0
    b: float = 5.0
    warm: int = 50

    def __post_init__(self) -> None:
        discount("hinge", 0, self.a, self.b)
        fine = min(self.by_loss, self.by_gap, self.rho, self.least) >= 0 and self.by_loss + self.by_gap <= 1
        if not (fine and 0 < self.beta <= 1 and self.warm >= 1):
            raise ConfigError(
                f"{self} cannot be: rho, least, by_loss, by_gap >= 0, by_loss + by_gap <= 1, 0 < beta <= 1, warm >= 1"
            )

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of the scores by loss, gap and distance."""
        return self.by_loss, self.by_gap, max(0.0, 1 - self.by_loss - self.by_gap)  # 1 - 0.32 - 0.68 is below 0

    def parts(self, clients: Clients) -> list[Data]:
        """D_k, by distribution."""
        data = clients.server.data
        if "cluster" not in data:
            raise NotSupported(
                "CDFL's server knows its samples' distributions: validation=Data(x=..., y=..., cluster=...), from 0"
            )
        there = data.cluster.unique().tolist()
        if there != list(range(len(there))):
            raise DataError(f"CDFL numbers distributions 0, 1, 2, ..., each with samples of its own; given {there}")
        return [data.rows(data.cluster == k) for k in there]

    def start(self, clients: Clients, before: CdflState | None = None) -> CdflState:
        if before:
            return before
        w, server = clients.model.initial(), clients.server
        centres = [server.train(w, solver=self.solver, steps=self.warm, data=d).vector for d in self.parts(clients)]
        return CdflState(centres=torch.stack(centres), updates=(0,) * len(centres))

    def down(self, state: CdflState, id: int) -> dict[str, Any]:
        """v_m; a newcomer's mixture is even."""
        k = len(state.centres)
        return {"params": state.mixtures.get(id, state.centres.new_full((k,), 1 / k)) @ state.centres}

    def round(self, state: CdflState, clients: Clients) -> CdflState:
        """Until one client comes with its model."""
        free = clients.idle()
        clients.send(free, self.local, when="update", each={i: self.down(state, i) for i in free})
        state = replace(state, held={**state.held, **dict.fromkeys(free, state.updates)})
        for reply in clients.receive(count=1):
            state = self.refined(state, reply, self.mixture(state, reply.params, clients))
        return state

    def mixture(self, state: CdflState, w: Tensor, clients: Clients) -> Tensor:
        """u `(K,)`: how much of a client's data is from each distribution, judged by its model."""
        parts, server = self.parts(clients), clients.server
        of_client = torch.stack([server.predict(w, d, fn=losses).mean() for d in parts])
        of_centre = torch.stack([server.predict(c, d, fn=losses).mean() for c, d in zip(state.centres, parts)])
        scores = (of_client, (of_client - of_centre).abs(), (w - state.centres).norm(dim=1))
        return torch.stack([share * inverse(x) for share, x in zip(self.shares, scores)]).sum(0)

    def refined(self, state: CdflState, reply: Reply, u: Tensor) -> CdflState:
        """The centres after one upload."""
        ages = [now - then for now, then in zip(state.updates, state.held[reply.id])]
        fresh = u.new_tensor([discount("hinge", tau, self.a, self.b) for tau in ages])
        moves = u >= self.least
        centres = state.centres + (self.beta * fresh * u * moves)[:, None] * (reply.params - state.centres)
        updates = tuple(n + int(m) for n, m in zip(state.updates, moves))
        return replace(state, centres=centres, updates=updates, mixtures={**state.mixtures, reply.id: u})

    async def local(self, client: Client, params: Tensor) -> Message:
        pull = {"mu": self.rho, "anchor": params}
        out = await client.train(params, solver=self.solver, step=proximal, extras=pull)
        return Message(params=out.vector)

    async def personalise(self, client: Client, params: Tensor) -> Tensor:
        """The model it was sent."""
        return params


def inverse(x: Tensor) -> Tensor:
    """1/x `(K,)`, scaled to add up to 1."""
    y = 1 / x.clamp(min=1e-6)
    return y / y.sum()
