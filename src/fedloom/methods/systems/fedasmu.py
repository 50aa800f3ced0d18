"""FedASMU (Liu et al., AAAI 2024): learned mixing weights, at the server and, in mid-job, at the clients.

    client, after a share `refresh` of its steps from model o: asks for the newest model w^g and goes on from
        w + beta (w^g - w)   beta = mu_b phi / (1 + mu_b phi),  phi = gamma / sqrt(g) (1 - upsilon / sqrt(g - o + 1))
    server, as w_i arrives at age t - o + 1:
        w <- w + alpha (w_i - w)    alpha = mu_a xi / (1 + mu_a xi),  xi = lam / (sqrt(t) age^sigma) + iota
    all coefficients descend f_i:   dF/dalpha = <g_i, w_i - w>,   dF/dbeta = <grad f_i, w^g - w>

t numbers the global models; g_i is (w^o - w_i) / (lr * steps), the mean gradient of the job and what a refresh moved.
Every `period` seconds `trigger` idle clients start. Sent: w and o down, w^g and g in mid-job, w_i and its steps up.
Kept at the server: each client's lam, sigma, iota; at a client: gamma, upsilon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.replies import Reply
from fedloom.training import SGD, Solver


@dataclass(frozen=True)
class FedAsmuState(State):
    """params: the global model `(d,)`; version: its number t; due: next trigger; learned: (lam, sigma, iota)."""

    params: Tensor
    version: int = 1
    due: float = 0.0
    learned: dict[int, tuple[float, float, float]] = field(default_factory=dict[int, tuple[float, float, float]])


@register
@dataclass(frozen=True)
class FedAsmu(Method):
    """Asynchronous mixing with learned weights.

    Args:
        concurrency: jobs under way at any time, at most one per client.
        period, trigger: every so many seconds so many idle clients start a job (paper: 10 of 100).
        refresh: share of the local steps after which the newest model is asked for, in [0, 1); 0: never.
        mu_a, mu_b: how far xi and phi count (paper: 1); mu_b = 0 leaves the client plain SGD.
        lam, sigma, iota, gamma, upsilon: where every client's coefficients start.
        rate: their step size, >= 0; 0 keeps them.
        oldest: an update of greater age is dropped (paper: 99).
    """

    card = Card(
        id="fedasmu",
        title="FedASMU",
        paper="FedASMU: Efficient Asynchronous Federated Learning with Dynamic Staleness-Aware Model Update",
        authors="J. Liu, J. Jia, T. Che, C. Huo, J. Ren, Y. Zhou, H. Dai, D. Dou",
        venue="AAAI",
        year=2024,
        url="https://arxiv.org/abs/2312.05770",
        family="systems",
        summary="arriving models are mixed by learned weights, and clients take up the newest model in mid-job",
        down=None,
        up="4*d + 8",
        why_bytes="4*d + 8 when a job starts, and as much again when it asks in mid-job",
        keeps="two coefficients",
        needs=frozenset({"clock", "replies", "memory"}),
        reduces=(("lam = 0, rate = 0, refresh = 0", "mixing with the constant weight iota / (1 + iota)"),),
        deviations=(
            "the moment of asking is fixed; the paper learns it with an LSTM and a Q-table per client",
            "g_i is how far the job went per step, with its refresh; the paper's is a gradient at a later global model",
            "xi and phi below 0 count as 0",
        ),
        claim="ends at a higher accuracy than FedAsync and FedBuff after as much time",
    )

    concurrency: int = 10
    period: float = 1.0
    trigger: int = 5
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    refresh: float = 0.5
    mu_a: float = 1.0
    mu_b: float = 1.0
    lam: float = 1.0
    sigma: float = 0.5
    iota: float = 0.0
    gamma: float = 1.0
    upsilon: float = 0.5
    rate: float = 0.01
    oldest: int = 99

    def __post_init__(self) -> None:
        fine = min(self.concurrency, self.trigger, self.oldest) >= 1 and self.period > 0 and 0 <= self.refresh < 1
        if not fine or min(self.mu_a, self.mu_b, self.rate) < 0:
            raise ConfigError(
                f"{self} cannot be: concurrency, trigger, oldest >= 1, period > 0, 0 <= refresh < 1, "
                f"mu_a, mu_b, rate >= 0"
            )

    def start(self, clients: Clients, before: FedAsmuState | None = None) -> FedAsmuState:
        return FedAsmuState(params=before.params if before else clients.model.initial())

    def latest(self, state: FedAsmuState) -> Message:
        """What a client is told in mid-job."""
        return Message(params=state.params, version=state.version)

    async def local(self, client: Client, params: Tensor, version: int) -> Message:
        steps = self.solver.work(len(client.data))
        slot = round(self.refresh * steps)
        w = (await client.train(params, solver=self.solver, steps=slot)).vector
        if self.refresh:
            w = await self.refreshed(client, w, version)
        out = await client.train(w, solver=self.solver, steps=steps - slot)
        return Message(params=out.vector, steps=steps)

    async def refreshed(self, client: Client, w: Tensor, version: int) -> Tensor:
        """w mixed with the newest model; the client's coefficients take a step."""
        fresh = await client.ask(self.latest)
        toward, root, age = fresh.params - w, math.sqrt(fresh.version), math.sqrt(fresh.version - version + 1)
        gamma, upsilon = client.memory.get("learned", (self.gamma, self.upsilon))
        beta, slope = share(self.mu_b, gamma / root * (1 - upsilon / age))
        mixed = w + beta * toward
        slope *= self.rate * float(await client.gradient(mixed) @ toward)
        client.memory["learned"] = (
            gamma - slope * (1 - upsilon / age) / root,
            upsilon + slope * gamma / (root * age),
        )
        return mixed

    def round(self, state: FedAsmuState, clients: Clients) -> FedAsmuState:
        """Until one update arrives, triggering as time goes by."""
        due, asked = state.due, False
        while not (got := clients.receive(count=1, until=due)):
            if asked and not clients.jobs:
                break  # nobody is there, or nobody could
            free = min(self.trigger, self.concurrency - len(clients.jobs))
            chosen = clients.sample(max(0, free), clients.idle())
            clients.send(chosen, self.local, params=state.params, version=state.version)
            due, asked = due + self.period, True
        state = replace(state, due=due)
        return self.mixed(state, got[0]) if got else state

    def mixed(self, state: FedAsmuState, reply: Reply) -> FedAsmuState:
        """The model with one update mixed in, and the coefficients of its client after their step."""
        t, age = state.version, state.version - reply.sent.version + 1
        if age > self.oldest:
            return state
        lam, sigma, iota = state.learned.get(reply.id, (self.lam, self.sigma, self.iota))
        toward, aged = reply.params - state.params, 1 / (math.sqrt(t) * age**sigma)
        alpha, slope = share(self.mu_a, lam * aged + iota)
        gradient = (reply.sent.params - reply.params) / (self.solver.lr * max(1, reply.steps))
        slope *= self.rate * float(gradient @ toward)
        coefficients = (lam - slope * aged, sigma + slope * lam * math.log(age) * aged, iota - slope)
        return replace(
            state,
            params=state.params + alpha * toward,
            version=t + 1,
            learned={**state.learned, reply.id: coefficients},
        )


def share(mu: float, x: float) -> tuple[float, float]:
    """mu x / (1 + mu x), a weight in [0, 1), and its derivative by x; x below 0 counts as 0."""
    x = max(0.0, x)
    return mu * x / (1 + mu * x), mu / (1 + mu * x) ** 2
