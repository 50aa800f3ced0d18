"""FedBuff (Nguyen et al., AISTATS 2022): clients come and go; every `buffer` arrivals make one server step.

    client:  Delta_i = y_i - x^s          local work from the version s it was sent
    server:  x <- x + server_lr / K * sum_{k=1..K} s(tau_k) Delta_k       s(tau) = (1 + tau)^-1/2

K is `buffer`; `concurrency` jobs are always under way; tau counts server steps between a job's sending and the step
that uses it. Replies of one instant are all read before new jobs are sent, K at most in one step.
Running statistics move by s(tau) / K towards each reply's. Sent: x down, Delta up. Kept at clients: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.replies import Replies, Reply
from fedloom.training import SGD, Solver

from .staleness import Staleness, discount


@dataclass(frozen=True)
class FedBuffState(State):
    """params: the global model `(d,)`."""

    params: Tensor


@register
@dataclass(frozen=True)
class FedBuff(Method):
    """Buffered asynchronous averaging.

    Args:
        concurrency: jobs under way at any time, at most one per client.
        buffer: K, arrivals per server step (paper: 10).
        server_lr: eta_g.
        staleness: s(tau): "polynomial" with exponent `a` (the paper's, a = 1/2), "constant" (none), or "hinge".
    """

    card = Card(
        id="fedbuff",
        title="FedBuff",
        paper="Federated Learning with Buffered Asynchronous Aggregation",
        authors="J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba",
        venue="AISTATS",
        year=2022,
        url="https://arxiv.org/abs/2106.06639",
        family="systems",
        summary="no waiting for the slowest: every K arrivals make a step, discounted by staleness",
        needs=frozenset({"clock", "replies"}),
        reduces=(("buffer = concurrency = all clients, equal durations", "fedavg (weight = uniform)"),),
        deviations=(
            "replies are read one by one, though only their sum is needed",
            "the server's step is plain; the paper allows any server optimiser",
        ),
        claim="reaches a given accuracy in less time than synchronous averaging when durations differ",
    )

    concurrency: int = 10
    buffer: int = 5
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    server_lr: float = 1.0
    staleness: Staleness = "polynomial"
    a: float = 0.5

    def __post_init__(self) -> None:
        discount(self.staleness, 0, self.a)
        if self.concurrency < 1 or self.buffer < 1:
            raise ConfigError(
                f"FedBuff(concurrency={self.concurrency}, buffer={self.buffer}) cannot be: 1 or more each"
            )

    def start(self, clients: Clients, before: FedBuffState | None = None) -> FedBuffState:
        return FedBuffState(params=before.params if before else clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params)

    def round(self, state: FedBuffState, clients: Clients) -> FedBuffState:
        got = Replies()
        while len(got) < self.buffer:
            free = max(0, self.concurrency - len(clients.jobs))
            clients.send(clients.sample(free, clients.idle()), self.local, params=state.params)
            first = clients.receive(count=1)
            if not first:
                break  # nobody is there
            got += first
            got += clients.receive(count=self.buffer - len(got), until=clients.now)
        if not got:
            return state
        update = got.sum(self.discounted).delta / self.buffer
        models, shares = (r.sent.params + r.delta for r in got), (self.discounted(r) / self.buffer for r in got)
        params = state.params + self.server_lr * update
        return replace(state, params=clients.model.layout.mean_statistics(params, state.params, models, shares))

    def discounted(self, reply: Reply) -> float:
        """s(tau) of a reply."""
        return discount(self.staleness, reply.staleness, self.a)
