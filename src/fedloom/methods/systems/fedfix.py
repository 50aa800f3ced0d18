"""FedFix (Fraboni, Vidal, Kameni, Lorenzi, JMLR 2023): a step every dt seconds, with weights that keep it unbiased.

    client i:  Delta_i = y_i - x^s           from the version s it was sent; a new job as soon as it has delivered
    server:    every dt seconds   x <- x + server_lr * sum_{i arrived} p_i ceil(T_i / dt) Delta_i        p_i = n_i / n

T_i is the time of a job, so client i is in one step of ceil(T_i / dt), and in the long run it moves x by p_i Delta_i a
step: x tends to where synchronous averaging does. ceil(T_i / dt) is the number of steps since s, the current one
included; `interval` is dt. With dt beyond the slowest job it is FedAvg with everybody, with dt = 0 (a step at every
arrival) asynchronous FedAvg with weights p_i T_i sum_j 1/T_j, counted.
Running statistics move by these weights towards each client's, no further. Sent: x down, Delta_i up. Kept at clients:
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.replies import Reply
from fedloom.training import SGD, Solver

from .unbiased import all_samples, steps_between

LATE = 1 + 1e-9
"""An interval ends this much late: a job that takes a whole number of intervals is in, whatever its sum rounds to."""


@dataclass(frozen=True)
class FedFixState(State):
    """params: the global model `(d,)`; samples: n, of all clients."""

    params: Tensor
    samples: int


@register
@dataclass(frozen=True)
class FedFix(Method):
    """Averaging at fixed times of whatever has arrived; all clients are always at work.

    Args:
        interval: dt, seconds between server steps, >= 0 (paper: half the time of the slowest job); 0: a step at every
            arrival.
        unbiased: weights p_i ceil(T_i / dt); False: p_i, which favours those who deliver often.
        server_lr: eta_g (paper: 1).
    """

    card = Card(
        id="fedfix",
        title="FedFix",
        paper="A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates",
        authors="Y. Fraboni, R. Vidal, L. Kameni, M. Lorenzi",
        venue="JMLR",
        year=2023,
        url="https://arxiv.org/abs/2206.10189",
        family="systems",
        summary="a server step at fixed intervals; who delivers more rarely weighs more, so that nobody's data do",
        needs=frozenset({"clock", "everybody", "replies"}),
        reduces=(("interval as long as the slowest job", "fedavg with all clients"),),
        deviations=(
            "ceil(T_i / dt), and T_i sum_j 1/T_j at interval = 0, are counted in server steps instead of known "
            "beforehand: equal for a fixed T_i and dt > 0, equal on average elsewhere",
            "replies are read one by one, though only their sum is needed",
            "clients that are away wait for a job, and meanwhile count for less, as in FedAvg",
        ),
        claim="steadier than asynchronous averaging and faster than synchronous, without a bias to fast clients",
    )

    interval: float = 1.0
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    unbiased: bool = True
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.interval < float("inf"):
            raise ConfigError(f"FedFix(interval={self.interval}) cannot be: seconds >= 0, or 0 for every arrival")

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Intervals that the slower of the tiny devices need several of."""
        return {"method": cls(interval=0.04, solver=SGD(lr=0.1, epochs=2, batch_size=4)), "rounds": 4}

    def start(self, clients: Clients, before: FedFixState | None = None) -> FedFixState:
        return FedFixState(before.params if before else clients.model.initial(), all_samples(clients))

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedFixState, clients: Clients) -> FedFixState:
        clients.send(clients.idle(), self.local, params=state.params)  # those that delivered; the others go on
        got = clients.receive(until=clients.now + LATE * self.interval) if self.interval else clients.receive()
        if not got:
            return state

        def weight(reply: Reply) -> float:
            return reply.n / state.samples * (steps_between(reply) if self.unbiased else 1)

        params = state.params + self.server_lr * got.sum(weight).delta
        models, shares = (r.sent.params + r.delta for r in got), map(weight, got)
        return replace(state, params=clients.model.layout.mean_statistics(params, state.params, models, shares))
