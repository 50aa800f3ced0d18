"""FedDisco (Ye et al., ICML 2023): weights by size, less by how far a client's labels are from a target.

    d_k = distance(labels_k, target), made to sum to 1 over the cohort;    p_k = n_k / n of the cohort
    w_k = max(0, p_k - a d_k + b), made to sum to 1 (p_k where all are 0)
    x  <- x + sum_k w_k (y_k - x)                       by FedAvg inside; any mean weighted by samples is weighed so

The target is the same share of each class, which everybody knows: a client tells its one number d_k the first time it
is in a cohort, and no label counts leave it. a = b = 0, or equal d_k and n_k, changes nothing.
Sent: as the method inside; w_k down and up with every job, d_k up once: 8 bytes each. At the server: all d_k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, unknown
from fedloom.message import Message
from fedloom.method import register

from .labels import class_counts
from .selected import Selected
from .weighing import Weighing, with_share
from .wrapping import Wrapping, WrappingState

Distance = Literal["kl", "l2", "l1", "cosine"]


@dataclass(frozen=True)
class FedDiscoState(WrappingState):
    """inner: the state of the method inside; distances: d_k of every client that has told."""

    distances: Mapping[int, float]


@register
@dataclass(frozen=True)
class FedDisco(Wrapping):
    """Discrepancy-aware weights, around any method that averages by samples.

    Args:
        a: weight of the distance, >= 0; `b` raises all weights, and so evens them out, >= 0.
        distance: of the label distribution from equal shares: "kl", "l2", "l1", "cosine" (1 - cosine).
    """

    card = Card(
        id="feddisco",
        title="FedDisco",
        paper="FedDisco: Federated Learning with Discrepancy-Aware Collaboration",
        authors="R. Ye, M. Xu, J. Wang, C. Xu, S. Chen, Y. Wang",
        venue="ICML",
        year=2023,
        url="https://arxiv.org/abs/2305.19229",
        family="optimisation",
        summary="weights fall with the distance of a client's labels from equal shares",
        down="4*d + 8",
        up=None,
        why_bytes="8 the first time, 4*d + 8 from who trains",
        needs=frozenset({"replies"}),
        reduces=(("a = 0 and b = 0", "the method inside"),),
        deviations=("the target is equal shares of the classes; the pooled distribution is left out",),
        claim="where some clients hold all classes and others one, its weights end at a higher accuracy than sizes",
    )

    a: float = 0.5
    b: float = 0.1
    distance: Distance = "kl"

    def __post_init__(self) -> None:
        if self.a < 0 or self.b < 0:
            raise ConfigError(f"FedDisco(a={self.a}, b={self.b}) cannot be: both >= 0")
        if self.distance not in _DISTANCES:
            raise unknown("distance", self.distance, _DISTANCES)
        if isinstance(self.inner, Selected):
            raise ConfigError(
                f"FedDisco around {self.inner.card.title} would not see the mean it is to weigh; the other way round: "
                f"{type(self.inner).__name__}(inner=FedDisco(inner=...))"
            )
        super().__post_init__()

    def composed(self, inner: Card) -> Card:
        """And the weight both ways."""
        why = f"8 the first time, {inner.up or inner.why_bytes} + 8 from who trains"
        return replace(super().composed(inner), down=inner.down and f"{inner.down} + 8", up=None, why_bytes=why)

    def start(self, clients: Clients, before: FedDiscoState | None = None) -> FedDiscoState:
        inner = self.inner.start(clients, before.inner if before else None)
        return FedDiscoState(inner=inner, distances={})  # an earlier run may have been of other samples

    def round(self, state: FedDiscoState, clients: Clients) -> FedDiscoState:
        known = dict(state.distances)

        def weights(cohort: Sequence[int]) -> dict[int, float]:
            fresh = [i for i in dict.fromkeys(cohort) if i not in known]
            known.update({r.id: r.distance for r in clients.map(self.tell, fresh)})
            told = [i for i in cohort if i in known]
            sizes = np.array([float(clients.info(i)["samples"]) for i in told])
            return dict(zip(told, self.weights(sizes, np.array([known[i] for i in told])).tolist()))

        inner = self.inner.round(state.inner, Weighing(clients, weights, "FedDisco", self.inner.card.title))
        return FedDiscoState(inner=inner, distances=known)

    def weights(self, sizes: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """w_k of a cohort `(n,)` from n_k and d_k, as the formula above has it."""
        p = sizes / max(sizes.sum(), 1.0)
        w = np.maximum(0.0, p - self.a * distances / (distances.sum() or 1.0) + self.b)
        return w / w.sum() if w.sum() > 0 else p

    # ------------------------------------------------------------ at a client
    async def tell(self, client: Client) -> Message:
        counts = class_counts(client).double()
        return Message(distance=float(_DISTANCES[self.distance](counts / counts.sum())))

    async def around(self, client: Client, honest: Callable[..., Any], /, **payload: Any) -> Any:
        return await with_share(client, honest, **payload)


def _kl(p: Tensor) -> Tensor:
    return (p[p > 0] * (p[p > 0] * len(p)).log()).sum()


_DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": _kl,
    "l2": lambda p: (p - 1 / len(p)).norm(),
    "l1": lambda p: (p - 1 / len(p)).abs().sum(),
    "cosine": lambda p: 1 - p.sum() / (p.norm() * len(p) ** 0.5),
}
