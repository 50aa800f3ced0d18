"""GI-Unstale (Wang and Gao, AAAI 2025): what a slow client sent is repeated from the current model.

    client i:  Delta_i = y_i - w^s             local work from the version s it was sent
    server, every `period` seconds, for an update of staleness tau = t - s that no fresh update resembles:
        D_i   = samples on which training from w^s gives Delta_i          (w^s comes with the reply)
        hat_i = gamma U(w^t; D_i) + (1 - gamma) Delta_i                   U(w; D): what training from w on D adds to w
    other updates count s(tau) Delta_i;   w^{t+1} = w^t + sum_i n_i hat_i / sum_i n_i

When a client's next update arrives, the guess of before is tested on it: once ||U(w^s; D_i) - Delta_i||_1 is not below
||Delta_i(before) - Delta_i||_1, gamma falls from 1 to 0 over a tenth of the rounds so far: Delta_i counts as it is.
Sent: w down, Delta up. Kept at clients: nothing; at the server: a guess and the last update of who was inverted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.model import Model
from fedloom.replies import Replies, Reply
from fedloom.training import SGD

from .inversion import Guess, first_guess, inverted, trained_on, unique
from .staleness import discount


@dataclass(frozen=True)
class GiUnstaleState(State):
    """params: the global model `(d,)`; round: server steps; left: the round from which gamma falls, None before;
    guesses, last: D_i and Delta_i by client."""

    params: Tensor
    round: int = 0
    left: int | None = None
    guesses: dict[int, Guess] = field(default_factory=dict[int, Guess])
    last: dict[int, Tensor] = field(default_factory=dict[int, Tensor])


@register
@dataclass(frozen=True)
class GiUnstale(Method):
    """Stale updates made fresh by gradient inversion.

    Args:
        cohort: clients asked a round, of those at rest.
        period: seconds of a round; who needs longer is stale.
        solver: plain local SGD, which the server repeats.
        samples: size of D_i as a share of the client's samples (paper: 0.5).
        keep: share of the largest entries of an update that is compared (paper: 0.05).
        search, rate: steps of Adam on D_i, and their size; it starts from the client's guess of before.
        unroll: at most so many steps are differentiated, longer ones where the client did more.
        a: of s(tau) = (1 + tau)^-a, for updates that are not unique.
        window: gamma falls over this share of the rounds so far (paper: 0.1).
    """

    card = Card(
        id="gi-unstale",
        title="GI-Unstale",
        paper="Tackling Intertwined Data and Device Heterogeneities in Federated Learning with Unlimited Staleness",
        authors="H. Wang, W. Gao",
        venue="AAAI",
        year=2025,
        url="https://arxiv.org/abs/2309.13536",
        family="systems",
        summary="stale updates are inverted to samples, and the update is computed anew from the current model",
        needs=frozenset({"clock", "replies"}),
        reduces=(("nobody stale", "fedavg"),),
        deviations=(
            "an update is unique if it is further from the nearest fresh one than these are from theirs (cosine)",
            "the server repeats a job with full batches of D_i, in at most `unroll` longer steps",
            "one test that fails starts the fall of gamma, for all clients",
            "the server's work takes no virtual time",
        ),
        claim="keeps the classes that only slow clients hold, where discounted stale updates lose them",
    )

    cohort: int = 20
    period: float = 1.0
    solver: SGD = SGD(lr=0.1, epochs=2, batch_size=32)
    samples: float = 0.5
    keep: float = 0.05
    search: int = 30
    rate: float = 0.1
    unroll: int = 5
    a: float = 0.5
    window: float = 0.1

    def __post_init__(self) -> None:
        plain = SGD(lr=self.solver.lr, epochs=self.solver.epochs, batch_size=self.solver.batch_size)
        if replace(self.solver, steps=None) != plain:
            raise ConfigError(f"GiUnstale repeats local work at the server, so it is plain SGD; given {self.solver}")
        shares = 0 < self.samples <= 1 and 0 < self.keep <= 1 and min(self.window, self.a, self.search) >= 0
        if not (shares and min(self.period, self.rate) > 0 and min(self.cohort, self.unroll) >= 1):
            raise ConfigError(
                f"{self} cannot be: samples, keep in (0, 1]; cohort, unroll >= 1; search, window, a >= 0; others > 0"
            )

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Rounds so short that updates of every kind arrive."""
        return {"method": cls(cohort=4, period=0.03, solver=SGD(lr=0.1, epochs=1, batch_size=4), search=3)}

    def start(self, clients: Clients, before: GiUnstaleState | None = None) -> GiUnstaleState:
        return GiUnstaleState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: GiUnstaleState, clients: Clients) -> GiUnstaleState:
        clients.send(clients.sample(self.cohort, clients.idle()), self.local, params=state.params)
        got = clients.receive(until=clients.now + self.period)
        if not got:
            return replace(state, round=state.round + 1)
        left = self.left(state, got, clients.model)
        gamma = 1.0 if left is None else max(0.0, 1 - (state.round - left) / max(1.0, self.window * left))
        fresh = [r.delta for r in got if not r.staleness]
        guesses, last, updates = dict(state.guesses), dict(state.last), list[Tensor]()
        for r in got:
            update = r.delta
            if r.staleness and not unique(r.delta, fresh):
                update = discount("polynomial", r.staleness, self.a) * r.delta
            elif r.staleness and gamma:
                guesses[r.id], last[r.id] = self.guess(state, r, clients), r.delta
                again = self.repeated(clients.model, state.params, guesses[r.id], r.n)
                update = gamma * again + (1 - gamma) * r.delta
            updates.append(update)
        n = state.params.new_tensor([float(r.n) for r in got])
        params, models = state.params + n @ torch.stack(updates) / n.sum(), (r.sent.params + r.delta for r in got)
        params = clients.model.layout.mean_statistics(params, state.params, models, (n / n.sum()).tolist())
        return GiUnstaleState(params, state.round + 1, left, guesses, last)

    def program(self, n: int) -> tuple[float, int]:
        """Step size and number of steps that stand for a job on n samples."""
        steps = self.solver.work(n)
        fewer = max(1, min(steps, self.unroll))
        return self.solver.lr * steps / fewer, fewer

    def guess(self, state: GiUnstaleState, reply: Reply, clients: Clients) -> Guess:
        """Samples that would have led from the model the client was sent to its update."""
        model, base = clients.model, reply.sent.params
        guess = state.guesses.get(reply.id)
        if guess is None:
            guess = first_guess(model, base, math.ceil(self.samples * reply.n), clients.rng("guess"))
        return inverted(model, base, reply.delta, guess, *self.program(reply.n), self.keep, self.search, self.rate)

    def repeated(self, model: Model, w: Tensor, guess: Guess, n: int) -> Tensor:
        """U(w; D): the update of a job from w on the guess."""
        return trained_on(model, w, guess, *self.program(n)).detach() - w

    def left(self, state: GiUnstaleState, got: Replies, model: Model) -> int | None:
        """The round from which gamma falls: this one, if a guess tells its client's new update no better than its last
        update does."""
        for r in got if state.left is None else ():
            if r.id in state.guesses:
                told = self.repeated(model, r.sent.params, state.guesses[r.id], r.n)
                if (told - r.delta).abs().sum() >= (state.last[r.id] - r.delta).abs().sum():
                    return state.round
        return state.left
