"""MIFA (Gu et al., NeurIPS 2021): the mean of everybody's last update, whoever is there.

    h_i <- Delta_i for i in S  (Delta_i = y_i - x);    then  x <- x + server_lr * 1/N sum_j h_j

No participation probabilities are needed; absent clients count with what they sent last, which is stale: a step of
FedVARP is unbiased, one of MIFA steady. With everybody there it is FedAvg. Running statistics are averaged over S.
Sent: x down, y_i - x up. Kept at clients: nothing; at the server h_i of every client, 4d bytes each.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver

from .updates import Updates


@dataclass(frozen=True)
class MifaState(State):
    """params: the global model `(d,)`; updates: h_i of every client, and their mean `(d,)`."""

    params: Tensor
    updates: Updates


@register
@dataclass(frozen=True)
class Mifa(Method):
    """Memory-augmented impatient federated averaging.

    Args:
        cohort: at most so many of those that are there; None: all of them, as in the paper.
        wait: the model stays where it is until every client was heard once, as the paper's analysis asks; otherwise
            clients not heard yet count as an update of zero.
    """

    card = Card(
        id="mifa",
        title="MIFA",
        paper="Fast Federated Learning in the Presence of Arbitrary Device Unavailability",
        authors="X. Gu, K. Huang, J. Zhang, L. Huang",
        venue="NeurIPS",
        year=2021,
        url="https://arxiv.org/abs/2106.04159",
        family="optimisation",
        summary="every round averages the last updates of all clients, absent or not",
        needs=frozenset({"replies"}),
        reduces=(("cohort = all, everybody there", "fedavg (weight = uniform)"),),
        deviations=(
            "the memory is at the server; the paper also has a form in which clients keep their update and send what "
            "changed",
            "the step size does not fall with the rounds",
        ),
        claim="where clients with unlike data are there unlike often, it ends at a lower loss on everybody's data than "
        "FedAvg over those that are there",
    )

    cohort: int | None = None
    solver: Solver = SGD(lr=0.1, epochs=1, batch_size=32)
    server_lr: float = 1.0
    wait: bool = False

    def start(self, clients: Clients, before: MifaState | None = None) -> MifaState:
        params = before.params if before else clients.model.initial()
        return MifaState(params, before.updates.among(clients.ids) if before else Updates.none(params))

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: MifaState, clients: Clients) -> MifaState:
        cohort = clients.sample(len(clients.ids) if self.cohort is None else self.cohort)
        got = clients.map(self.local, cohort, params=state.params)
        updates = state.updates.heard(got, dict.fromkeys(got.ids, 1 / len(clients.ids)))
        if self.wait and len(updates.of) < len(clients.ids):
            return MifaState(state.params, updates)
        params, models = state.params + self.server_lr * updates.mean, (state.params + r.delta for r in got)
        params = clients.model.layout.mean_statistics(params, state.params, models, (1 / len(got) for _ in got))
        return MifaState(params, updates)
