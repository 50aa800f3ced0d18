"""FedCompass (Li et al., ICLR 2024): each client gets as many steps as make its group arrive together.

    S_i      seconds a step takes at client i:  of its first job, then (1 - mu) S_i + mu * (seconds / steps of the last)
    Q_i      steps of its next job, in [least, most]; g is an open group, T_g its expected and L_g its latest arrival:
               into the group with the largest  floor((T_g - now) / S_i)  in [least, most];  where none is,
               a group of its own with the largest  floor((L_g + most * S_g - now) / S_i) <= most  (the next arrival of
               g, whose fastest member needs S_g a step), else most;    T = now + Q_i S_i,   L = now + slack * Q_i S_i
    server   when a group is complete, or at its L:    x <- x + sum_j p_j s(tau_j) Delta_j        p_j = n_j / n
             over those in and those that came too late for theirs; all in get the new x and Q, the fastest first

A first job has `most` steps and makes a step alone. Who comes late is sent the current x at once, its update waits for
the next step. A round is one server step. Sent: x and Q_i down, Delta_i up. Kept at clients: nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
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

from .arrivals import Group, Update, place
from .staleness import Staleness, discount
from .unbiased import all_samples


@dataclass(frozen=True)
class FedCompassState(State):
    """params `(d,)` after `version` server steps; samples: n; seconds: S_i; groups by number; late: updates that came
    too late for theirs."""

    params: Tensor
    samples: int
    version: int = 0
    seconds: dict[int, float] = field(default_factory=dict[int, float])
    groups: dict[int, Group] = field(default_factory=dict[int, Group])
    late: tuple[Update, ...] = ()


@register
@dataclass(frozen=True)
class FedCompass(Method):
    """Semi-asynchronous averaging of groups that arrive together, for few clients that all take part.

    Args:
        least, most: Q_min and Q_max, bounds on the steps of a job, 1 <= least <= most (paper: a ratio of 0.2).
        slack: lambda, how long past its expected time a group waits, >= 1 (paper: 1.2).
        momentum: mu, weight of the last job in S_i, in (0, 1].
        staleness, a, b: s(tau) and its parameters, as in FedAsync.
    """

    card = Card(
        id="fedcompass",
        title="FedCompass",
        paper="FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices using a Computing "
        "Power Aware Scheduler",
        authors="Z. Li, P. Chaturvedi, S. He, H. Chen, G. Singh, V. Kindratenko, E. A. Huerta, K. Kim, R. Madduri",
        venue="ICLR",
        year=2024,
        url="https://arxiv.org/abs/2309.14675",
        family="systems",
        summary="clients get as many local steps as make them arrive in groups, so that few wait and few are stale",
        down="4*d + 8",
        needs=frozenset({"clock", "everybody", "replies"}),
        reduces=(("equal devices, after two jobs each", "fedavg with `most` local steps and all clients"),),
        deviations=("a group nobody of which is in at its L is given up; updates that wait make their step then",),
        claim="reaches a given accuracy in less time than synchronous and asynchronous averaging",
    )

    least: int = 20
    most: int = 100
    slack: float = 1.2
    momentum: float = 0.9
    staleness: Staleness = "polynomial"
    a: float = 0.5
    b: float = 4.0
    solver: Solver = SGD(lr=0.1, batch_size=32)

    def __post_init__(self) -> None:
        discount(self.staleness, 0, self.a, self.b)
        if not (1 <= self.least <= self.most and self.slack >= 1 and 0 < self.momentum <= 1):
            raise ConfigError(f"{self} cannot be: 1 <= least <= most, slack >= 1, 0 < momentum <= 1")

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Few steps, and rounds enough for groups."""
        return {"method": cls(least=2, most=8, slack=1.1, solver=SGD(lr=0.1, batch_size=4)), "rounds": 11}

    def start(self, clients: Clients, before: FedCompassState | None = None) -> FedCompassState:
        return FedCompassState(before.params if before else clients.model.initial(), all_samples(clients))

    async def local(self, client: Client, params: Tensor, steps: int) -> Message:
        out = await client.train(params, solver=self.solver, steps=steps)
        return Message(delta=out.vector - params)

    def round(self, state: FedCompassState, clients: Clients) -> FedCompassState:
        used: tuple[Update, ...] = ()
        while not used:
            state = self.assign(state, clients)
            sent = {job.id: job.sent for job in clients.jobs}
            due, first = min(((g.latest, k) for k, g in state.groups.items()), default=(math.inf, -1))
            if got := clients.receive(count=1, until=due):
                state, used = self.arrive(state, got[0], got[0].time - sent[got[0].id])
            elif state.groups:
                state, used = self.close(state, first)
            if not (got or used or clients.jobs):
                return state  # nobody is there
        params = state.params
        shares = [u.share * discount(self.staleness, state.version - u.version, self.a, self.b) for u in used]
        for u, share in zip(used, shares):
            params = params + share * u.delta
        params = clients.model.layout.mean_statistics(params, state.params, (u.begun + u.delta for u in used), shares)
        return replace(state, params=params, version=state.version + 1)

    def assign(self, state: FedCompassState, clients: Clients) -> FedCompassState:
        """Work for everybody who neither has any nor waits for a group."""
        waiting = {i for group in state.groups.values() for i in group.here}
        free = [i for i in clients.idle() if i not in waiting]
        groups, now, bounds = state.groups, clients.now, (self.least, self.most, self.slack)
        for i in sorted(free, key=lambda i: state.seconds.get(i, 0.0)):
            steps = self.most
            if i in state.seconds:
                groups, steps = place(groups, i, state.seconds, now, *bounds)
            clients.send(i, self.local, params=state.params, steps=steps)
        return replace(state, groups=groups)

    def arrive(self, state: FedCompassState, reply: Reply, took: float) -> tuple[FedCompassState, tuple[Update, ...]]:
        """A reply: what the next server step uses, if this makes one."""
        i, s, mu = reply.id, took / reply.sent.steps, self.momentum
        share, version = reply.n / state.samples, state.version - reply.staleness
        update = Update(reply.delta, reply.sent.params, share, version)
        if i not in state.seconds:
            return replace(state, seconds=state.seconds | {i: s}), (update,)
        state = replace(state, seconds=state.seconds | {i: (1 - mu) * state.seconds[i] + mu * s})
        k = next((k for k, group in state.groups.items() if i in group.out), None)
        if k is None:
            return replace(state, late=(*state.late, update)), ()
        group = state.groups[k].arrived(i, update)
        state = replace(state, groups=state.groups | {k: group})
        return (state, ()) if group.out else self.close(state, k)

    def close(self, state: FedCompassState, k: int) -> tuple[FedCompassState, tuple[Update, ...]]:
        """Group k is in, or its time is over: its updates, and those that wait."""
        used = (*state.groups[k].here.values(), *state.late)
        return replace(state, groups={j: g for j, g in state.groups.items() if j != k}, late=()), used
