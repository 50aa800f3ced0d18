"""CA-Fed (Rodio et al., INFOCOM 2023): leave out clients that are rarely there, or there in long runs, if that pays.

    q_k = a_k / pi_k for all clients, then 0 for those whose leaving makes the error smaller:
    error(q) = sum_k P_k F_k + kappa TV(a, P)^2 max_k F_k          P_k = pi_k q_k / sum_j pi_j q_j
               looked at from the largest |lambda_k| down, then from the smallest pi_k up; somebody always stays
    x <- x + server_lr * sum_{k there, q_k > 0} q_k (y_k - x)      not divided by the q of those there

F_k is the loss of x at a client, smoothed over its visits; pi_k the share of rounds it is there in; lambda_k how much
being there depends on the round before; TV the total variation distance from the targets a_k. Leaving somebody out adds
bias and takes away noise; kappa weighs the one against the other, and a huge kappa is inverse availability.
Sent: x down, y_k - x and the loss up. Kept at clients: nothing; at the server who was there when, and F.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.training import SGD, Solver
from fedloom.training.inference import sample_losses

from .activity import Activity
from .shares import targets
from .weights import Weight, weight_of


@dataclass(frozen=True)
class CaFedState(State):
    """params: the global model `(d,)`; activity: who was there when; targets: a_k `(N,)`; losses: F_k `(N,)`, None
    before any was told."""

    params: Tensor
    activity: Activity
    targets: Tensor
    losses: Tensor | None


@register
@dataclass(frozen=True)
class CaFed(Method):
    """Correlation-aware federated averaging.

    Args:
        weight: the target a_k of each client: "samples" (n_k / n) or "uniform" (1 / N).
        kappa: weight of the bias, >= 0; 0 keeps whoever has the lowest loss, a huge one everybody.
        smooth: F_k <- smooth F_k + (1 - smooth) loss_k, in [0, 1).
        least: a client is left out if the error falls by at least this, >= 0.
        floor: the share of rounds a client is there in is taken to be at least this, in (0, 1].
        prior: rounds of each kind that are thought to have been seen in which nothing depended on the round before.
    """

    card = Card(
        id="cafed",
        title="CA-Fed",
        paper="Federated Learning under Heterogeneous and Correlated Client Availability",
        authors="A. Rodio, F. Faticanti, O. Marfoq, G. Neglia, E. Leonardi",
        venue="INFOCOM",
        year=2023,
        url="https://arxiv.org/abs/2301.04632",
        family="optimisation",
        summary="clients that are rarely there or in long runs are left out where the noise costs more than the bias",
        up="4*d + 8",
        needs=frozenset({"everybody", "replies"}),
        reduces=(("kappa huge", "inverseavailability"),),
        deviations=(
            "F_k* = 0, as in the authors' code",
            "the estimates of pi and lambda have a floor and a prior of independence; the authors' prior knows them",
            "all that are there train; those with q_k = 0 are left out of the sum",
        ),
        claim="under Markov availability its accuracy over time is no worse than that of inverse availability",
    )

    solver: Solver = SGD(lr=0.1, epochs=1, batch_size=32)
    server_lr: float = 1.0
    weight: Weight = "samples"
    kappa: float = 1.0
    smooth: float = 0.0
    least: float = 0.0
    floor: float = 0.02
    prior: float = 5.0

    def __post_init__(self) -> None:
        weight_of(self.weight)
        fine = self.kappa >= 0 and 0 <= self.smooth < 1 and self.least >= 0 and 0 < self.floor <= 1 and self.prior >= 0
        if not fine:
            raise ConfigError(f"{self} cannot be: kappa, least, prior >= 0; 0 <= smooth < 1; 0 < floor <= 1")

    def start(self, clients: Clients, before: CaFedState | None = None) -> CaFedState:
        a = targets(clients, self.weight)
        params = before.params if before else clients.model.initial()
        return CaFedState(params, Activity.of(len(a)), a, None)

    async def local(self, client: Client, params: Tensor) -> Message:
        loss = (await client.predict(params, fn=sample_losses)).mean()
        out = await client.train(params, solver=self.solver)
        return Message(delta=out.vector - params, loss=float(loss))

    def round(self, state: CaFedState, clients: Clients) -> CaFedState:
        position = {i: k for k, i in enumerate(clients.ids)}
        here = clients.available()
        activity = state.activity.seen(position[i] for i in here)
        got = clients.map(self.local, clients.sample(len(here)), params=state.params)
        if not got:
            return replace(state, activity=activity)

        rows = [position[r.id] for r in got]
        losses = self.heard(state.losses, len(position), rows, state.targets.new_tensor([r.loss for r in got]))
        q = self.allocation(state.targets, activity, losses)
        clients.note(left_out=float((q == 0).sum()))
        step = torch.zeros_like(state.params)
        for k, r in zip(rows, got):
            step = step + float(q[k]) * r.delta
        params, models = state.params + self.server_lr * step, (state.params + r.delta for r in got)
        params = clients.model.layout.mean_statistics(params, state.params, models, q[rows].tolist())
        return CaFedState(params, activity, state.targets, losses)

    def heard(self, losses: Tensor | None, n: int, rows: Sequence[int], told: Tensor) -> Tensor:
        """F `(n,)` with the losses of those that are there; in the first round the others have their mean."""
        if losses is None:
            return told.mean().expand(n).index_copy(0, torch.tensor(rows), told)
        new = losses.clone()
        new[list(rows)] = self.smooth * losses[list(rows)] + (1 - self.smooth) * told
        return new

    def allocation(self, a: Tensor, activity: Activity, losses: Tensor) -> Tensor:
        """q `(N,)` after both greedy passes."""
        pi, correlation = activity.frequency(self.floor), activity.correlation(self.prior)
        q, error = a / pi, partial(self.error, a, pi, losses)
        for order in (correlation.abs().argsort(descending=True, stable=True), pi.argsort(stable=True)):
            for k in order.tolist():
                without = q.clone()
                without[k] = 0.0
                if q[k] and without.any() and float(error(q) - error(without)) > max(self.least, _ROUNDING):
                    q = without
        return q

    def error(self, a: Tensor, pi: Tensor, losses: Tensor, q: Tensor) -> Tensor:
        """What optimises slowly plus what is optimised wrongly, as above."""
        p = pi * q / (pi * q).sum()
        return p @ losses + self.kappa * (0.5 * (a - p).abs().sum()) ** 2 * losses.max()


_ROUNDING = 1e-12
"""Equal errors keep a client."""
