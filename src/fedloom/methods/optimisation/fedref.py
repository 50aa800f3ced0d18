"""FedRef (Yoon, Choi, De Neve, 2025): when the loss rises, the model is drawn to the path of its own past.

    x', F   <- one round of the method inside: the model it gives, and the mean training loss of its clients
    if F > F of the round before + threshold, and the last p models are known:
        ref <- sum_{i = 1..p} (p - i + 1) / Phi x_{t+1-i},  Phi = p (p + 1) / 2          the newest weighs most
        x'  <- x' - pull ((x' - x_t) - (ref - ref before))           pull = 2 lr lambda of the paper's MAP step
    x_{t+1} = x'

`ref before` is the reference of the last such round, and at first the same. pull = 0 is the method inside; pull = 1
moves x_t as the reference moved. Sent: as the method inside, and 8 bytes more up for the loss. Kept at clients: what
the method inside keeps; at the server the last p models and a reference, 4d bytes each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, NotSupported
from fedloom.method import register

from .hearing import Hearing, with_loss
from .wrapping import Wrapping, WrappingState


@dataclass(frozen=True)
class FedRefState(WrappingState):
    """inner: the state of the method inside; past: the last models, oldest first, at most p; reference: ref `(d,)` of
    the last correction; loss: F of the last round. None where there was none yet."""

    past: Sequence[Tensor] = ()
    reference: Tensor | None = None
    loss: float | None = None


@register
@dataclass(frozen=True)
class FedRef(Wrapping):
    """Bayesian fine-tuning with a reference model, around any method whose result is one global model.

    Args:
        pull: 2 lr lambda, how much of the difference is undone, in [0, 1].
        window: p, models the reference is made of, >= 1 (paper: 2 to 5).
        threshold: by how much the loss has to rise, >= 0; None: the model is corrected in every round.
    """

    card = Card(
        id="fedref",
        title="FedRef",
        paper="FedRef: Communication-Efficient Bayesian Fine-Tuning using a Reference Model",
        authors="T. Yoon, B. Choi, W. De Neve",
        venue="arXiv",
        year=2025,
        url="https://arxiv.org/abs/2506.23210",
        family="optimisation",
        summary="when the loss rises, the server draws the model to the way its last models went",
        up="4*d + 8",
        reduces=(("pull = 0", "the method inside"),),
        deviations=(
            "the product 2 lr lambda is one option; the published commands have 2e-9 for it, which changes nothing",
            "the newest model weighs most, as the formula says; the released code gives the oldest the most",
            "the loss is weighted as the method inside weighs its replies, and is the mean over local steps",
            "the likelihood's term is left out, as in the released code: the server has no data",
        ),
        claim="with one or two classes a client, it ends at a higher accuracy than FedAvg",
    )

    pull: float = 0.3
    window: int = 3
    threshold: float | None = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.pull <= 1 or self.window < 1 or not (self.threshold is None or self.threshold >= 0):
            raise ConfigError(
                f"FedRef(pull={self.pull}, window={self.window}, threshold={self.threshold}) cannot be: pull in "
                f"[0, 1], window >= 1, threshold >= 0, or none to correct every round"
            )
        super().__post_init__()

    def composed(self, inner: Card) -> Card:
        """And the loss."""
        why = inner.why_bytes and f"{inner.why_bytes}, and 8 with the reply of who trains"
        return replace(super().composed(inner), up=inner.up and f"{inner.up} + 8", why_bytes=why)

    def start(self, clients: Clients, before: FedRefState | None = None) -> FedRefState:
        inner = self.inner.start(clients, before.inner if before else None)
        card = self.inner.card
        if "peers" in card.needs or not isinstance(getattr(inner, "params", None), Tensor):
            why = "its models are the clients' own" if "peers" in card.needs else "no `params` in its state"
            raise NotSupported(
                f"FedRef corrects one global model, and {card.title} has none ({why}). Put it around a method that "
                f"has, e.g. FedRef(inner=FedAvg())"
            )
        return FedRefState(inner=inner)

    def round(self, state: FedRefState, clients: Clients) -> FedRefState:
        hearing = Hearing(clients)
        inner = self.inner.round(state.inner, hearing)
        loss = hearing.loss
        if loss is None:
            return replace(state, inner=inner)
        x, ref = inner.params, state.reference
        if len(state.past) == self.window and self.rose(loss, state.loss):
            ref = recent(state.past)
            before = ref if state.reference is None else state.reference
            drawn = x - self.pull * ((x - state.params) - (ref - before))
            x = clients.model.layout.keep_statistics(drawn, x)
            inner = with_params(inner, x)
        return FedRefState(inner, (*state.past, x)[-self.window :], ref, loss)

    def rose(self, loss: float, before: float | None) -> bool:
        """Whether this round's model is to be corrected."""
        return self.threshold is None or (before is not None and loss > before + self.threshold)

    async def around(self, client: Client, honest: Callable[..., Any], /, **payload: Any) -> Any:
        return await with_loss(client, honest, **payload)


def recent(past: Sequence[Tensor]) -> Tensor:
    """The mean of some models `(d,)`, oldest first, weighted 1, 2, 3, ..."""
    weights = torch.arange(1.0, len(past) + 1).to(past[0])
    return weights / weights.sum() @ torch.stack(list(past))


def with_params(state: Any, params: Tensor) -> Any:
    """A method's state with another model, that of the method inside where it stands around one."""
    if isinstance(state, WrappingState):
        return replace(state, inner=with_params(state.inner, params))
    return replace(state, params=params)
