"""FedLD (Zeng et al., MICCAI 2024): small margins at clients, and an update along what the clients' updates share.

    y_i ~ argmin_y CE(y) + penalty log(1 + ||softmax(z)||^2)     z: a sample's logits; local SGD from x
    for every tensor, with G (S, d_l) the rows g_i of y_i - x:
        1/S G G^T = E diag(s) E^T,  s_1 >= s_2 >= ...             the principal directions are w_j = G^T e_j
        g_i' = sum_{j <= k} s_j / (sum s) ||g_i|| sign(<g_i, w_j>) w_j / ||w_j||,        k = floor(directions S)
        x_l <- x_l + 1/S sum_i g_i'

A client's part along each direction is as long as the direction matters, whatever the client: who points elsewhere is
turned, not shortened. The first round, tensors of one number and running statistics take the plain mean.
Sent: x down, y_i - x up. Kept at clients: nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, unknown
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver
from fedloom.vector import Layout


def softmax_margin(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The task's loss + penalty log(1 + ||p||^2), p a sample's probabilities."""
    scores = model(w, *model.task.inputs(batch))
    return model.task.losses(scores, batch) + extras["penalty"] * _log_norm(scores.softmax(-1))


def logit_margin(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The task's loss + penalty log(1 + ||z||^2), z a sample's logits."""
    scores = model(w, *model.task.inputs(batch))
    return model.task.losses(scores, batch) + extras["penalty"] * _log_norm(scores)


def _log_norm(scores: Tensor) -> Tensor:
    return scores.flatten(1).square().sum(1).log1p()


_MARGINS: dict[str, Callable[..., Tensor]] = {"softmax": softmax_margin, "logits": logit_margin}


def principal(updates: Tensor, k: int) -> Tensor:
    """One update `(d,)` from S of them `(S, d)`, along their `k` principal directions, in 32 bits or more; O(S^2 d)."""
    updates = updates.to(torch.promote_types(updates.dtype, torch.float32))
    gram = updates @ updates.T
    values, vectors = torch.linalg.eigh(gram)  # ascending: s_j S and e_j
    values, vectors = values[-k:].clamp(min=0), vectors[:, -k:]
    share, length = values / gram.trace().clamp(min=_TINY), gram.diagonal().sqrt()
    along = vectors * values.sqrt()  # <g_i, w_j> / ||w_j||
    sign = along.sign() * (along.abs() > _EPS * length[:, None])  # none where there is nothing but rounding
    part = share / values.sqrt().clamp(min=_TINY) * (length @ sign) / len(updates)
    return (vectors @ part) @ updates


_EPS, _TINY = 1e-6, 1e-30


@dataclass(frozen=True)
class FedLDState(State):
    """params: the global model `(d,)`; begun: whether it has ever moved."""

    params: Tensor
    begun: bool = False


@register
@dataclass(frozen=True)
class FedLD(Method):
    """Margin control at clients and principal-gradient aggregation; either can be had alone.

    Args:
        penalty: weight of the margin control, >= 0; 0: without (paper: lambda, 0.03).
        on: what its norm is of: "softmax", as in the released code, or "logits".
        directions: share rho of the cohort's principal directions that is kept, in (0, 1], at least one of them (paper:
            0.8); None: the plain mean of the updates.
    """

    card = Card(
        id="fedld",
        title="FedLD",
        paper="Tackling Data Heterogeneity in Federated Learning via Loss Decomposition",
        authors="S. Zeng, P. Guo, S. Wang, J. Wang, Y. Zhou, L. Qu",
        venue="MICCAI",
        year=2024,
        url="https://arxiv.org/abs/2408.12300",
        family="optimisation",
        summary="margin control in the local loss, and updates aggregated along their principal directions",
        needs=frozenset({"replies"}),
        reduces=(("penalty = 0, directions = none", "fedavg (weight = uniform)"),),
        deviations=(
            "the penalty is the mean over samples; the released code takes one norm of all probabilities of a batch, "
            "which grows with the batch and mixes its samples",
            "directions are not turned to where most clients point: the projections are the same either way",
            "the released code's running mean of updates is left out: it only tells that there was a round before",
        ),
        claim="with very skewed labels it ends at a higher accuracy than FedAvg",
    )

    cohort: int | float = 10
    solver: Solver = SGD(lr=0.01, epochs=5, batch_size=50, momentum=0.5, weight_decay=5e-4)
    penalty: float = 0.03
    on: Literal["softmax", "logits"] = "softmax"
    directions: float | None = 0.8

    def __post_init__(self) -> None:
        if self.on not in _MARGINS:
            raise unknown("on", self.on, _MARGINS)
        if not self.penalty >= 0 or not (self.directions is None or 0 < self.directions <= 1):
            raise ConfigError(
                f"FedLD(penalty={self.penalty}, directions={self.directions}) cannot be: penalty >= 0, directions in "
                f"(0, 1], or none for the plain mean"
            )

    def start(self, clients: Clients, before: FedLDState | None = None) -> FedLDState:
        return before or FedLDState(params=clients.model.initial())

    async def local(self, client: Client, params: Tensor) -> Message:
        margin, extras = (_MARGINS[self.on], {"penalty": self.penalty}) if self.penalty else (None, None)
        out = await client.train(params, solver=self.solver, loss=margin, extras=extras)
        return Message(delta=out.vector - params)

    def round(self, state: FedLDState, clients: Clients) -> FedLDState:
        got = clients.map(self.local, clients.sample(self.cohort), params=state.params)
        if not got:
            return state
        update = self.combined(got.delta, clients.model.layout) if state.begun else got.delta.mean(0)
        return FedLDState(state.params + update, begun=True)

    def combined(self, updates: Tensor, layout: Layout) -> Tensor:
        """One update `(d,)` from those of a cohort `(S, d)`, tensor by tensor."""
        update = updates.mean(0)
        if self.directions is None:
            return update
        k = max(1, int(self.directions * len(updates)))
        for at in map(layout.span, layout.names):
            if at.stop - at.start > 1 and at.stop <= layout.trainable:
                update[at] = principal(updates[:, at], k)
        return update
