"""What SCALLION and SCAFCOM have in common: SCAFFOLD's local work, and one compressed vector for both of its sums."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.message import Message
from fedloom.method import State
from fedloom.training.hooks import shifted
from fedloom.vector import zeros

from .packing import Packing, mean_gradient, moved, statistics, weights


@dataclass(frozen=True)
class ControlledState(State):
    """params: the global model `(d,)`; control: c, the mean of all clients' variates, of its weights `(t,)`."""

    params: Tensor
    control: Tensor


@dataclass(frozen=True)
class Controlled(Packing):
    """Stochastic controlled averaging with a compressed change of the control variate, which the model follows too."""

    def start(self, clients: Clients, before: ControlledState | None = None) -> ControlledState:
        params = before.params if before else clients.model.initial()
        return ControlledState(params=params, control=torch.zeros_like(weights(params, clients.model.layout)))

    def change(self, memory: MutableMapping[str, Any], own: Tensor, gradient: Tensor) -> Tensor:
        """What the variate `own` should change by, given the job's mean gradient, before it is compressed."""
        raise NotImplementedError

    async def local(self, client: Client, params: Tensor, control: Tensor) -> Message:
        own, layout = client.memory.get("control", zeros(control)), client.model.layout
        shift = pad(control - own, (0, layout.size - layout.trainable))
        out = await client.train(params, solver=self.solver, step=shifted, extras={"shift": shift})
        gradient = weights(mean_gradient(params, out), layout) + own - control
        sent = self.packed(self.change(client.memory, own, gradient), client.rng("compress"))
        client.memory["control"] = own + sent.dense()
        return Message(change=sent, work=out.steps * out.lr, **statistics(out.vector - params, layout))

    def round(self, state: ControlledState, clients: Clients) -> ControlledState:
        cohort = clients.sample(self.cohort)
        got = clients.mean(self.local, cohort, weight=1, params=state.params, control=state.control)
        if got.count == 0:
            return state
        return ControlledState(
            params=moved(state.params, -self.server_lr * got.work * (state.control + got.change), got),
            control=state.control + got.count / len(clients.ids) * got.change,
        )
