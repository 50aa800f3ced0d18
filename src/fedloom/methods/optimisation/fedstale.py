"""FedStale (Rodio, Neglia 2024): between forgetting absent clients and letting their last updates speak in full.

    Delta = beta sum_j a_j h_j + sum_{i in S} a_i / p_i (Delta_i - beta h_i)          Delta_i = y_i - x
    x   <- x + server_lr * Delta;    h_i <- Delta_i for i in S                        h_i = 0 before the first

p_i is a client's chance to take part: the share of rounds it has been there in so far, times its chance to be drawn.
beta = 0 weighs by inverse availability, beta = 1 with a_i = 1/N is FedVARP: Delta = (1 - beta) Delta_0 + beta Delta_1.
An empty cohort still moves x by beta sum a_j h_j. Running statistics are averaged over S, by a_i / p_i.
Sent: x down, y_i - x up. Kept at clients: nothing; at the server h_i of every client, 4d bytes each.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver

from .activity import Activity
from .shares import chance, targets
from .updates import Updates
from .weights import Weight, weight_of


@dataclass(frozen=True)
class FedStaleState(State):
    """params: the global model `(d,)`; updates: h_i and their mean; activity: who was there; targets: a_k `(N,)`."""

    params: Tensor
    updates: Updates
    activity: Activity
    targets: Tensor


@register
@dataclass(frozen=True)
class FedStale(Method):
    """Fresh updates and stale ones.

    Args:
        beta: weight of stale updates, in [0, 1]; small where data are alike or participation is very uneven.
        cohort: clients a round, of those that are there; None: all that are there.
        weight: the target a_k of each client: "samples" (n_k / n) or "uniform" (1 / N).
        floor: the share of rounds a client is there in is taken to be at least this, in (0, 1].
    """

    card = Card(
        id="fedstale",
        title="FedStale",
        paper="FedStale: leveraging stale client updates in federated learning",
        authors="A. Rodio, G. Neglia",
        venue="ECAI",
        year=2024,
        url="https://arxiv.org/abs/2405.04171",
        family="optimisation",
        summary="a convex mixture of unbiased FedAvg and FedVARP",
        needs=frozenset({"replies"}),
        reduces=(("beta = 0", "inverseavailability"), ("beta = 1, equal targets, everybody there", "fedvarp")),
        deviations=("participation probabilities are estimated from what was seen and have a floor",),
        claim="where data differ and participation is uneven, a mixture ends at a lower loss than both of its ends",
    )

    beta: float = 0.5
    cohort: int | None = None
    solver: Solver = SGD(lr=0.1, epochs=1, batch_size=32)
    server_lr: float = 1.0
    weight: Weight = "samples"
    floor: float = 0.02

    def __post_init__(self) -> None:
        weight_of(self.weight)
        if not 0 <= self.beta <= 1 or not 0 < self.floor <= 1:
            raise ConfigError(
                f"FedStale(beta={self.beta}, floor={self.floor}) cannot be: 0 <= beta <= 1, 0 < floor <= 1"
            )

    def start(self, clients: Clients, before: FedStaleState | None = None) -> FedStaleState:
        params = before.params if before else clients.model.initial()
        a = targets(clients, self.weight)
        return FedStaleState(params, Updates.none(params), Activity.of(len(a)), a)

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedStaleState, clients: Clients) -> FedStaleState:
        position = {i: k for k, i in enumerate(clients.ids)}
        here, old = clients.available(), state.updates
        activity = state.activity.seen(position[i] for i in here)
        cohort = clients.sample(len(here) if self.cohort is None else self.cohort)
        got = clients.map(self.local, cohort, params=state.params)

        a, pi = state.targets, activity.frequency(self.floor)
        shares = {i: float(a[position[i]] / pi[position[i]]) / chance(cohort, i) for i in got.ids}
        delta = self.beta * old.mean
        for r in got:
            delta = delta + shares[r.id] * (r.delta - self.beta * old.get(r.id))
        updates = old.heard(got, {i: float(a[position[i]]) for i in got.ids})
        params, models = state.params + self.server_lr * delta, (state.params + r.delta for r in got)
        params = clients.model.layout.mean_statistics(params, state.params, models, shares.values())
        return FedStaleState(params, updates, activity, a)
