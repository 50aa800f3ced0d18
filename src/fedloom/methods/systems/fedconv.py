"""FedConv (Shen et al., MobiSys 2024): the server learns to make small networks of the large one, and back.

    server, on its own labelled data, each round:
      w     <- a few epochs of training
      phi_r <- min CE(f_r(x; A_phi(w)))                   for each size r;    w_r = A_phi_r(w) is sent
    client of size r:  w_i <- local training of the small network from w_r
      psi_i <- min CE(f(x; A'_psi(w_i)))                  for each client;    W_i = A'_psi_i(w_i)
      a     <- min CE(f(x; sum_i a_il p_i W_i[l]))        from a = 1;         w[l] <- sum_i a_il p_i W_i[l]

A convolves every tensor with a filter (programs.py), A' does so transposed; a size of 1 needs neither.
Sent: the small network both ways. Kept: phi_r and psi_i at the server, nothing at clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.data.fields import Data
from fedloom.errors import ConfigError, NotSupported
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.model import Model
from fedloom.replies import Evaluation
from fedloom.training import SGD, Adam, Solver

from .programs import compressed, dilated, first_of, learn, program
from .width import first_units


@dataclass(frozen=True)
class FedConvState(State):
    """params: the large network `(d,)`; shrink: phi_r by size; grow: psi_i by client."""

    params: Tensor
    shrink: dict[float, Tensor]
    grow: dict[int, Tensor]


@register
@dataclass(frozen=True)
class FedConv(Method):
    """Learned compression and dilation of weights.

    Args:
        rates: client i trains a network of `rates[i % len(rates)]` times the units, each in (0, 1] (paper: 1, 0.75,
            0.75^2).
        own: training of w on the server's data, before each round (paper: 10 epochs; steps = 0: none).
        learner: of phi, psi and a (paper: 10 to 20 epochs; steps = 0: they stay what they are).
    """

    card = Card(
        id="fedconv",
        title="FedConv",
        paper="FedConv: A Learning-on-Model Paradigm for Heterogeneous Federated Clients",
        authors="L. Shen, Q. Yang, K. Cui, Y. Zheng, X.-Y. Wei, J. Liu, J. Han",
        venue="MobiSys",
        year=2024,
        url="https://arxiv.org/abs/2502.20639",
        family="systems",
        summary="the server learns convolutions that make small networks of the large one's weights, and back",
        down=None,
        up=None,
        why_bytes="4 per number of the client's small network, each way",
        needs=frozenset({"replies", "server data"}),
        reduces=(("rates = (1,), own.steps = 0, learner.steps = 0", "fedavg"),),
        deviations=(
            "filters start as the choice of the first units (a slice, put back among zeros); the authors' at random",
            "weights pass no activation; the authors' shrinks positive ones (0.85) and all but removes negative ones",
            "no projection before a filter: next to the filter's size it would only add an offset",
            "fixed numbers of epochs; the authors keep the best by accuracy on a test set",
        ),
        claim="ends above HeteroFL at the same sizes, and above training on the server's data alone",
    )

    cohort: int = 10
    rates: tuple[float, ...] = (1.0, 0.75, 0.5625)
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    own: Solver = Adam(lr=1e-3, epochs=10, batch_size=32)
    learner: Adam = Adam(lr=1e-3, epochs=10, batch_size=32)

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < r <= 1 for r in self.rates):
            raise ConfigError(f"FedConv(rates={self.rates}) cannot be: at least one rate, each in (0, 1]")

    def start(self, clients: Clients, before: FedConvState | None = None) -> FedConvState:
        big, params = clients.model.layout, clients.model.initial()
        if big.trainable < big.size:
            raise NotSupported("FedConv cannot convolve running statistics: use a network without, or buffers='batch'")
        small = {r: self.small(clients.model, r).layout for r in set(self.rates) - {1.0}}
        shrink = {r: first_of(program(big, small[r]), params) for r in sorted(small)}
        old = before or FedConvState(params, shrink, {})
        return replace(old, grow={i: v for i, v in old.grow.items() if len(v) == len(shrink.get(self.rate(i), ()))})

    def rate(self, id: int) -> float:
        """The size of a client's network."""
        return self.rates[id % len(self.rates)]

    def small(self, model: Model, rate: float) -> Model:
        """The network of a size; of 1 the large one itself."""
        return model if rate == 1 else model.part(first_units(rate)).model

    async def local(self, client: Client, params: Tensor) -> Message:
        model = self.small(client.model, self.rate(client.id))
        out = await client.train(params, solver=self.solver, model=model)
        return Message(params=out.vector)

    def sized(self, model: Model, w: Tensor, shrink: Mapping[float, Tensor], rate: float) -> Tensor:
        """w_r, the vector of the network of a size."""
        return w if rate == 1 else compressed(shrink[rate], w, model.layout, self.small(model, rate).layout)

    def learned(self, vector: Tensor, loss: Callable[[Tensor, Data], Tensor], clients: Clients) -> Tensor:
        return learn(vector, loss, clients.server.data, self.learner, clients.rng("learn"))

    def round(self, state: FedConvState, clients: Clients) -> FedConvState:
        model, shrink, grow = clients.model, dict(state.shrink), dict(state.grow)
        w = clients.server.train(state.params, solver=self.own).vector
        for r in shrink:
            small = self.small(model, r)
            shrink[r] = self.learned(shrink[r], self.shrinking(model, small, w), clients)
        cohort = clients.sample(self.cohort)
        sent = {r: {"params": self.sized(model, w, shrink, r)} for r in set(self.rates)}
        got = clients.map(self.local, cohort, each={i: sent[self.rate(i)] for i in cohort})
        whole = {reply.id: reply.params for reply in got}
        for i in [i for i in whole if self.rate(i) < 1]:
            small = self.small(model, self.rate(i))
            psi = grow.get(i, first_of(program(model.layout, small.layout), w))
            grow[i] = self.learned(psi, self.growing(model, small, whole[i]), clients)
            whole[i] = dilated(grow[i], whole[i], model.layout, small.layout)
        n = w.new_tensor([float(reply.n) for reply in got])
        w = self.mixed(torch.stack([*whole.values()]), n / n.sum(), clients) if got else w
        return FedConvState(w, shrink, grow)

    def shrinking(self, model: Model, small: Model, w: Tensor) -> Callable[[Tensor, Data], Tensor]:
        return lambda phi, batch: small.loss(compressed(phi, w, model.layout, small.layout), batch)

    def growing(self, model: Model, small: Model, w: Tensor) -> Callable[[Tensor, Data], Tensor]:
        return lambda psi, batch: model.loss(dilated(psi, w, model.layout, small.layout), batch)

    def mixed(self, whole: Tensor, shares: Tensor, clients: Clients) -> Tensor:
        """sum_i a_il p_i W_i[l] with a learned, of networks `(n, d)` and their p `(n,)`."""
        model, parts = clients.model, whole * shares[:, None]
        of = torch.cat([torch.full((s.numel(),), k) for k, s in enumerate(model.layout.shapes.values())])
        ones = parts.new_ones(len(whole), len(model.layout.shapes))
        a = self.learned(ones, lambda a, batch: model.loss((a[:, of] * parts).sum(0), batch), clients)
        return (a[:, of] * parts).sum(0)

    async def personalise(self, client: Client, params: Tensor, shrink: dict[float, Tensor]) -> Callable[..., Tensor]:
        """The client's small network, as it would be sent."""
        r = self.rate(client.id)
        small, w = self.small(client.model, r), self.sized(client.model, params, shrink, r)
        return lambda *x: small(w, *x)

    def down(self, state: FedConvState, id: int) -> dict[str, Any]:
        return {"params": state.params, "shrink": state.shrink}

    def evaluate(self, state: FedConvState, clients: Clients) -> dict[str, Evaluation]:
        """The large network, and the small one of every size."""
        views = {"global": clients.evaluate(state.params)}
        for r in state.shrink:
            small, w = self.small(clients.model, r), self.sized(clients.model, state.params, state.shrink, r)
            views[f"rate{r:g}"] = clients.evaluate(lambda *x, small=small, w=w: small(w, *x))
        return views
