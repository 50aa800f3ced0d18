"""What error feedback's forms have in common: a cohort's gradients, compressed with what each client has kept."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import Message, Packed
from fedloom.method import State

from .packing import Packing, mean_gradient, moved, statistics, weights


@dataclass(frozen=True)
class FeedbackState(State):
    """params: the global model `(d,)`."""

    params: Tensor


@dataclass(frozen=True)
class ShiftedState(FeedbackState):
    """And shift: h, the mean of all clients' shifts h_i `(t,)`."""

    shift: Tensor


@dataclass(frozen=True)
class Feedback(Packing):
    """Clients send g_i, the mean gradient of their local steps, in parts; what was left out waits at the client.

    Its solver's `steps=1` is the papers' distributed SGD.
    """

    def reply(self, memory: MutableMapping[str, Any], gradient: Tensor, rng: torch.Generator) -> Packed:
        """What a client sends of g_i, given what it has kept."""
        raise NotImplementedError

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        layout, rng = client.model.layout, client.rng("compress")
        sent = self.reply(client.memory, weights(mean_gradient(params, out), layout), rng)
        return Message(sent=sent, work=out.steps * out.lr, **statistics(out.vector - params, layout))


@dataclass(frozen=True)
class Shifted(Feedback):
    """What is sent moves a shift h_i towards g_i; the model follows the mean of all shifts."""

    def start(self, clients: Clients, before: FeedbackState | None = None) -> ShiftedState:
        params = before.params if before else clients.model.initial()
        return ShiftedState(params, shift=torch.zeros_like(weights(params, clients.model.layout)))

    def round(self, state: ShiftedState, clients: Clients) -> ShiftedState:
        got = clients.mean(self.local, clients.sample(self.cohort), weight=1, params=state.params)
        if got.count == 0:
            return state
        shift = state.shift + got.count / len(clients.ids) * got.sent
        return ShiftedState(moved(state.params, -self.server_lr * got.work * shift, got), shift)
