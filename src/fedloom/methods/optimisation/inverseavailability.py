"""Inverse availability: who is rarely there counts for more, so that in the long run everybody counts as they should.

    x <- x + server_lr * sum_{k in S} a_k / (pi_k p_k) (y_k - x)

a_k is a client's target (n_k / n), pi_k the share of rounds it has been there in so far, p_k its chance to be drawn
from those that are there. The sum is not divided by the shares' own sum: that would bring the bias back. With everybody
there and drawn it is FedAvg.
Sent: x and a number down, y_k - x and the number up. Kept at clients: nothing; at the server who was there how often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedloom.card import Card
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import State, register
from fedloom.replies import Cohort

from .activity import Activity
from .shares import Shares, chance, given, targets


@dataclass(frozen=True)
class AvailabilityState(State):
    """params: the global model `(d,)`; activity: who was there in which share of the rounds; targets: a_k `(N,)`."""

    params: Tensor
    activity: Activity
    targets: Tensor


@register
@dataclass(frozen=True)
class InverseAvailability(Shares):
    """Weights in inverse proportion to how often a client is there.

    Args:
        floor: pi_k is taken to be at least this, in (0, 1]: an update that comes once a year must not be all.
    """

    card = Card(
        id="inverseavailability",
        title="Inverse availability",
        paper="Federated Learning under Heterogeneous and Correlated Client Availability",
        authors="A. Rodio, F. Faticanti, O. Marfoq, G. Neglia, E. Leonardi",
        venue="INFOCOM",
        year=2023,
        url="https://arxiv.org/abs/2301.04632",
        family="optimisation",
        summary="updates weighed by one over the share of rounds their client is there in",
        down="4*d + 8",
        up="4*d + 8",
        reduces=(("everybody there, cohort = all", "fedavg"),),
        deviations=("pi is estimated from what was seen and has a floor; the paper's baseline knows or estimates it",),
        claim="where clients with unlike data are there unlike often, it ends at a lower loss on everybody's data than "
        "FedAvg over those that are there",
    )

    floor: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.floor <= 1:
            raise ConfigError(f"{type(self).__name__}(floor={self.floor}) cannot be: 0 < floor <= 1")

    def start(self, clients: Clients, before: AvailabilityState | None = None) -> AvailabilityState:
        params = before.params if before else clients.model.initial()
        return AvailabilityState(params, Activity.of(len(clients.ids)), targets(clients, self.weight))

    def round(self, state: AvailabilityState, clients: Clients) -> AvailabilityState:
        position = {i: k for k, i in enumerate(clients.ids)}
        here = clients.available()
        activity = state.activity.seen(position[i] for i in here)
        cohort = clients.sample(len(here) if self.cohort is None else self.cohort)
        share = state.targets / activity.frequency(self.floor)
        shares = {i: float(share[position[i]]) / chance(cohort, i) for i in cohort}
        got = self.combined(clients, cohort, shares, state.params)
        if got.count == 0:
            return replace(state, activity=activity)
        params, mean = state.params + self.server_lr * got.delta, state.params + got.delta / max(1.0, got.weight)
        return replace(state, params=clients.model.layout.keep_statistics(params, mean), activity=activity)

    def combined(self, clients: Clients, cohort: Cohort, shares: dict[int, float], params: Tensor) -> Message:
        """The sum of updates times shares, and `weight`, the sum of these."""
        return clients.sum(self.local, cohort, weight="share", each=given(shares), params=params)
