"""EF14 (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019): what was left out is added to the next message.

    m_i =  C(e_i + g_i);    e_i <- e_i + g_i - m_i            g_i: the mean gradient of K local steps from x
    x   <- x - server_lr lr K mean m_i

Sent: x down, m_i and lr K up. Kept at a client: e_i (zero before its first job).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.clients import Clients
from fedloom.message import Packed
from fedloom.method import register
from fedloom.vector import zeros

from .feedback import Feedback, FeedbackState
from .packing import moved


@register
@dataclass(frozen=True)
class EF14(Feedback):
    """Error feedback as it began."""

    card = Card(
        id="ef14",
        title="EF14",
        paper="Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
        authors="S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi",
        venue="ICML",
        year=2019,
        url="https://arxiv.org/abs/1901.09847",
        family="optimisation",
        summary="compressed gradients, and what was left out is added to the next",
        up="packed + 8",
        keeps="what was left out so far e_i, 4d bytes",
        needs=frozenset({"memory"}),
        deviations=(
            "g_i may be the mean gradient of several local steps, and a cohort may be a part of all clients",
            "the step size is applied at the server; the same where it is constant",
            "lr K is sent, 8 bytes, so that the server needs to know nothing of local work",
        ),
        claim="it ends at a lower loss than compression without feedback for the same bytes",
    )

    def start(self, clients: Clients, before: FeedbackState | None = None) -> FeedbackState:
        return FeedbackState(params=before.params if before else clients.model.initial())

    def reply(self, memory: MutableMapping[str, Any], gradient: Tensor, rng: torch.Generator) -> Packed:
        error = memory.get("error", zeros(gradient))
        sent = self.packed(error + gradient, rng)
        memory["error"] = error + gradient - sent.dense()
        return sent

    def round(self, state: FeedbackState, clients: Clients) -> FeedbackState:
        got = clients.mean(self.local, clients.sample(self.cohort), weight=1, params=state.params)
        if got.count == 0:
            return state
        return FeedbackState(moved(state.params, -self.server_lr * got.work * got.sent, got))
