"""FAVANO (Leconte, Nguyen, Moulines, ICASSP 2024): a few clients are polled at any time, and send what they have done.

    client i:  SGD steps from x_i, at most K, until it is polled: E_i steps, Delta_i = y_i - x_i
    server:    every `period` seconds, s clients S at random:
               x <- (x + sum_{i in S} (x_i + Delta_i / alpha_i)) / (s + 1);    those in S start again from the new x
    alpha_i    E[E_i]              "deterministic": the mean over its polls, those that found no step included
               P(E_i > 0) E_i      "stochastic": this poll's steps, times the share of its polls that found any

Divided by alpha_i, slow and fast clients move x by the same number of steps, one per poll, on average. s is `cohort`, K
the work of `solver`. Training that is polled stops there; a client with K steps done waits for its poll.
Running statistics are not divided. Sent: x down, Delta_i and E_i up. Kept at clients: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, unknown
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver

from .unbiased import Progress


@dataclass(frozen=True)
class FavanoState(State):
    """params: the global model `(d,)`; progress: what the polls of each client found."""

    params: Tensor
    progress: dict[int, Progress] = field(default_factory=dict[int, Progress])


@register
@dataclass(frozen=True)
class Favano(Method):
    """Averaging of unfinished work, polled at random.

    Args:
        cohort: s, clients polled at a time (paper: 20 of 100).
        period: seconds between polls, > 0 (paper: about three steps of a fast client).
        alpha: "deterministic" or "stochastic", see above.
    """

    card = Card(
        id="favano",
        title="FAVANO",
        paper="FAVANO: Federated AVeraging with Asynchronous NOdes",
        authors="L. Leconte, V. M. Nguyen, E. Moulines",
        venue="ICASSP",
        year=2024,
        url="https://arxiv.org/abs/2305.16099",
        family="systems",
        summary="random clients are polled in mid-work, and what they did is divided by what they do on average",
        up="4*d + 8",
        needs=frozenset({"clock", "replies"}),
        reduces=(("K = 1, everybody polled, equal devices", "fedavg with server_lr = N / (N + 1)"),),
        deviations=(
            "alpha_i is estimated from the steps its polls found, instead of known",
            "the server divides by alpha_i; a client that has done K steps sends them before it is asked",
            "no quantised networks",
        ),
        claim="learns what only slow clients hold better than buffered averaging after as much time",
    )

    cohort: int = 20
    period: float = 0.05
    solver: Solver = SGD(lr=0.1, steps=20, batch_size=32)
    alpha: Literal["deterministic", "stochastic"] = "deterministic"

    def __post_init__(self) -> None:
        if self.alpha not in ("deterministic", "stochastic"):
            raise unknown("alpha of Favano", self.alpha, ("deterministic", "stochastic"))
        if self.cohort < 1 or not 0 < self.period < float("inf"):
            raise ConfigError(
                f"Favano(cohort={self.cohort}, period={self.period}) cannot be: 1 client or more, more than 0 seconds"
            )

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Polls that find some clients at work and some done."""
        return {"method": cls(cohort=3, period=0.03, solver=SGD(lr=0.1, steps=4, batch_size=4)), "rounds": 4}

    def start(self, clients: Clients, before: FavanoState | None = None) -> FavanoState:
        return FavanoState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params, steps=out.steps)

    def round(self, state: FavanoState, clients: Clients) -> FavanoState:
        clients.send(clients.idle(), self.local, params=state.params)  # first all, then those polled the last time
        polled, poll = clients.sample(self.cohort), clients.now + self.period
        clients.cut(polled, at=poll)
        got = clients.receive(until=poll, of=polled)  # those with all K steps done
        got += clients.receive(count=len(polled) - len(got), of=polled)
        found = {r.id: state.progress.get(r.id, Progress()).and_then(r.steps) for r in got}
        params, layout = state.params, clients.model.layout
        for r in got:
            done = layout.keep_statistics(r.delta / self.typical(found[r.id], r.steps), r.delta)
            params = params + r.sent.params + done
        return replace(state, params=params / (1 + len(got)), progress=state.progress | found)

    def typical(self, found: Progress, steps: int) -> float:
        """alpha_i; 1 where nothing was done, which leaves nothing to divide."""
        if not steps:
            return 1.0
        return found.steps / found.polls if self.alpha == "deterministic" else found.moved / found.polls * steps
