"""F3AST (Ribero, Vikalo, de Veciana 2022): choose those whose long-run rate is furthest behind, and weigh by it.

    S: the K of those that are there with the largest a_k / r_k          they reduce sum_k a_k^2 / r_k the most
    x   <- x + server_lr * sum_{k in S} a_k / r_k (y_k - x)
    r_k <- (1 - beta) r_k + beta 1[k in S]                               K / N at the start

The rates adapt to whatever makes clients available; what is rarely chosen counts for more when it is.
Sent: x and a number down, y_k - x and the number up. Kept at clients: nothing; at the server r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.method import State, register
from fedloom.replies import Cohort
from fedloom.selection import highest

from .shares import Shares, given, targets


@dataclass(frozen=True)
class F3astState(State):
    """params: the global model `(d,)`; rates: r_k `(N,)`; targets: a_k `(N,)`."""

    params: Tensor
    rates: Tensor
    targets: Tensor


@register
@dataclass(frozen=True)
class F3ast(Shares):
    """Selection by learned long-run rates.

    Args:
        cohort: K, the clients a round can pay for, of those that are there.
        beta: how fast the rates are learned, in (0, 1).
    """

    card = Card(
        id="f3ast",
        title="F3AST",
        paper="Federated Learning Under Intermittent Client Availability and Time-Varying Communication Constraints",
        authors="M. Ribero, H. Vikalo, G. de Veciana",
        venue="IEEE Journal of Selected Topics in Signal Processing",
        year=2022,
        url="https://arxiv.org/abs/2205.06730",
        family="optimisation",
        summary="the clients whose long-run participation lags most are chosen, and weighed by one over it",
        down="4*d + 8",
        up="4*d + 8",
        reduces=(("cohort = all, everybody there", "fedavg"),),
        deviations=("the number of clients a round can pay for is constant", "rates are learned after they are used"),
        claim="where clients with unlike data are there unlike often, it ends at a lower loss on everybody's data than "
        "FedAvg over an equal draw of those that are there",
    )

    cohort: int = 10
    beta: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1 or self.cohort < 1:
            raise ConfigError(f"F3ast(cohort={self.cohort}, beta={self.beta}) cannot be: cohort >= 1, 0 < beta < 1")

    def start(self, clients: Clients, before: F3astState | None = None) -> F3astState:
        n = len(clients.ids)
        rates = torch.full((n,), min(1.0, self.cohort / max(n, 1)), dtype=torch.float64)
        return F3astState(before.params if before else clients.model.initial(), rates, targets(clients, self.weight))

    def round(self, state: F3astState, clients: Clients) -> F3astState:
        position = {i: k for k, i in enumerate(clients.ids)}
        share = state.targets / state.rates

        def furthest_behind(ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
            return highest(ids, [float(share[position[i]]) for i in ids], k, rng)

        cohort = clients.sample(self.cohort, policy=furthest_behind)
        shares = {i: float(share[position[i]]) for i in cohort}
        got = clients.sum(self.local, cohort, weight="share", each=given(shares), params=state.params)
        chosen = torch.zeros_like(state.rates)
        chosen[[position[i] for i in cohort]] = 1.0
        rates = (1 - self.beta) * state.rates + self.beta * chosen
        if got.count == 0:
            return replace(state, rates=rates)
        params, mean = state.params + self.server_lr * got.delta, state.params + got.delta / max(1.0, got.weight)
        return replace(state, params=clients.model.layout.keep_statistics(params, mean), rates=rates)
