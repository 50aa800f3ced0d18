"""FedVARP (Jhunjhunwala et al., UAI 2022): absent clients are spoken for by the last update they sent.

    Delta = 1/N sum_j h_j + 1/|S| sum_{i in S} (Delta_i - h_i)          Delta_i = y_i - x,  h_i = 0 before the first
    x   <- x + server_lr * Delta;    h_i <- Delta_i for i in S

The noise of partial participation is that of what changed since clients were last heard; with everybody in the cohort
it is FedAvg. Running statistics are averaged over S.
Sent: x down, y_i - x up. Kept at clients: nothing; at the server h_i of every client, 4d bytes each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver

from .updates import Updates


@dataclass(frozen=True)
class FedVarpState(State):
    """params: the global model `(d,)`; updates: h_i of every client, and their mean `(d,)`."""

    params: Tensor
    updates: Updates


@register
@dataclass(frozen=True)
class FedVarp(Method):
    """Variance reduction by remembered updates."""

    card = Card(
        id="fedvarp",
        title="FedVARP",
        paper="FedVARP: Tackling the Variance Due to Partial Client Participation in Federated Learning",
        authors="D. Jhunjhunwala, P. Sharma, A. Nagarkatti, G. Joshi",
        venue="UAI",
        year=2022,
        url="https://arxiv.org/abs/2207.14130",
        family="optimisation",
        summary="the last update of every client stands in where it is absent",
        needs=frozenset({"replies"}),
        reduces=(("cohort = all", "fedavg (weight = uniform)"),),
        deviations=("ClusterFedVARP, which shares h within clusters to save memory, is left out",),
        claim="with few of many unlike clients a round, it ends at a lower loss than FedAvg",
    )

    cohort: int | float = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    server_lr: float = 1.0

    def start(self, clients: Clients, before: FedVarpState | None = None) -> FedVarpState:
        params = before.params if before else clients.model.initial()
        return FedVarpState(params, before.updates.among(clients.ids) if before else Updates.none(params))

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedVarpState, clients: Clients) -> FedVarpState:
        got = clients.map(self.local, clients.sample(self.cohort), params=state.params)
        delta, old = state.updates.mean, state.updates
        if got:
            delta = delta + torch.stack([r.delta - old.get(r.id) for r in got]).mean(0)
        updates = old.heard(got, dict.fromkeys(got.ids, 1 / len(clients.ids)))
        params, models = state.params + self.server_lr * delta, (state.params + r.delta for r in got)
        params = clients.model.layout.mean_statistics(params, state.params, models, (1 / len(got) for _ in got))
        return FedVarpState(params, updates)
