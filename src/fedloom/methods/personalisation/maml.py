"""MAML (Finn, Abbeel, Levine, ICML 2017), federated: descend the loss clients have AFTER adapting.

    S_i, Q_i    a fresh split of the client's samples into support and query
    w_i^0 = phi;   w_i^{j+1} = w_i^j - inner_lr * grad f_S(w_i^j)            j < inner_steps, all of S_i
    exact:       g_i = prod_j (I - inner_lr * Hess f_S(w_i^j)) grad f_Q(w_i^K)     by differentiating through the steps
    first order: g_i = grad f_Q(w_i^K)                                             FOMAML
    phi <- phi - server_lr_t * mean_i g_i

Sent: phi down, -g_i up. Kept at clients: nothing. With one meta-step a round this is FedMeta (Chen et al., 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.data import Data
from fedloom.errors import ConfigError, NotSupported
from fedloom.message import Message
from fedloom.method import register
from fedloom.training import SGD, Solver

from .meta import Meta, MetaState

ALL = 1 << 30
"""A batch of all there is."""


def on_support(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    return model.losses(w, batch["support"])


def on_query(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    return model.losses(w, batch["query"])


def adapted(w: Tensor, f: Any, extras: Any) -> Tensor:
    """w after the inner steps; differentiable in w where w is being differentiated."""
    for _ in range(extras["steps"]):
        w = w - extras["lr"] * f.grad(w, on_support)
    return w


def exact(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """The gradient of f_Q(adapted(w)), through the inner steps. Twice differentiated, so clients run one by one."""
    with sdpa_kernel(SDPBackend.MATH):  # attention's faster forms have no second derivative
        return torch.func.grad(lambda v: f(adapted(v, f, extras)))(w), carry


def first_order(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """The gradient of f_Q at adapted(w), as if the inner steps only shifted w."""
    return f.grad(adapted(w, f, extras)), carry


@register
@dataclass(frozen=True)
class Maml(Meta):
    """A start for few local steps, by the gradient of the loss after them.

    Args:
        inner_lr, inner_steps: alpha and K (paper: 0.01 and 1 to 5), at training and when clients adapt.
        support: share of a client's samples that it adapts on, in (0, 1); the others are the query.
        second_order: False is FOMAML: no Hessians, about a third of the work.
    """

    card = Card(
        id="maml",
        title="MAML",
        paper="Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
        authors="C. Finn, P. Abbeel, S. Levine",
        venue="ICML",
        year=2017,
        url="https://arxiv.org/abs/1703.03400",
        family="personalisation",
        summary="clients send the gradient of the loss they have after adapting; judged at unseen clients",
        reduces=(("inner_steps = 0", "gradient descent on the query samples"),),
        deviations=(
            "the server's step is plain SGD; the paper's is Adam",
            "a client with a single sample adapts and is tested on it",
        ),
        claim="adapts to an unseen client in few steps where joint training cannot",
    )

    server_lr: float = 0.01
    inner_lr: float = 0.05
    inner_steps: int = 1
    support: float = 0.5
    second_order: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_lr <= 0 or self.inner_steps < 0 or not 0 < self.support < 1:
            raise ConfigError(
                f"Maml(inner_lr={self.inner_lr}, inner_steps={self.inner_steps}, support={self.support}) cannot be: "
                f"inner_lr > 0, inner_steps >= 0, 0 < support < 1"
            )

    def start(self, clients: Clients, before: MetaState | None = None) -> MetaState:
        if self.second_order and clients.model.layout.trainable < clients.model.layout.size:
            raise NotSupported(
                "MAML differentiates through its inner steps, which leave running statistics as they were, so they "
                "cannot be in the vector (buffers='vector'). Use buffers='batch' or 'frozen', a network that "
                "normalises each sample by itself (nn.GroupNorm), or Maml(second_order=False)"
            )
        return super().start(clients, before)

    def alone(self, steps: int) -> Solver:
        return SGD(lr=self.inner_lr, steps=steps, batch_size=ALL)

    def split(self, client: Client) -> dict[str, Data]:
        """Support and query of this job, neither empty."""
        n = len(client.data)
        order = torch.randperm(n, generator=client.rng("support"))
        cut = min(max(1, math.floor(self.support * n)), max(1, n - 1))
        return {"support": client.data.rows(order[:cut]), "query": client.data.rows(order[cut:] if n > 1 else order)}

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(
            params,
            solver=SGD(lr=1.0, steps=1, batch_size=ALL),
            loss=on_query,
            step=exact if self.second_order else first_order,
            extras={"lr": self.inner_lr, "steps": self.inner_steps},
            data=self.split(client),
        )
        return Message(delta=out.vector - params)
