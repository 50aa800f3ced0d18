"""FedDF (Lin et al., NeurIPS 2020): average within each architecture, then distil the ensemble into each average.

    group g:  w_g <- sum_{i in g} n_i y_i / sum_{i in g} n_i
    server:   a few steps of Adam on  KL(softmax(mean_k f_k(u)) || softmax(f_g(u)))  over unlabelled public u,
              with every client of every group as teacher

Sent: the group's model down, the trained one up. Kept at clients: nothing. With 0 server steps and one group: FedAvg.
The server pays: a forward pass over the public data for every reply, and `distil.steps` steps per architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.method import Method, State, register
from fedloom.replies import Evaluation
from fedloom.training import SGD, Adam, Solver
from fedloom.training.distil import match_softened


@dataclass(frozen=True)
class FedDFState(State):
    """models: a vector `(d_g,)` for each architecture, by name."""

    models: dict[str, Tensor]


@register
@dataclass(frozen=True)
class FedDF(Method):
    """Ensemble distillation at the server.

    Args:
        solver: local work; distil: the server's work on public data (steps = 0: none).
        temperature: T > 0 of the distillation (1 in the paper).
    """

    card = Card(
        id="feddf",
        title="FedDF",
        paper="Ensemble Distillation for Robust Model Fusion in Federated Learning",
        authors="T. Lin, L. Kong, S. U. Stich, M. Jaggi",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2006.07242",
        family="knowledge",
        summary="the ensemble of clients is distilled into each averaged model on public data",
        down=None,
        up=None,
        why_bytes="4 d each way, with d the size of the client's own architecture",
        needs=frozenset({"public", "replies", "families"}),
        reduces=(("distil.steps = 0, one architecture", "fedavg"),),
        deviations=("a fixed number of steps at a constant rate, without the paper's cosine and early stopping",),
        claim="beats FedAvg by fusing on unlabelled public data when labels are skewed",
    )

    cohort: int = 10
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=32)
    distil: Solver = Adam(lr=1e-3, steps=50, batch_size=64)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"FedDF(temperature={self.temperature}) cannot be: temperature > 0")

    def start(self, clients: Clients, before: FedDFState | None = None) -> FedDFState:
        return before or FedDFState(models={name: m.initial() for name, m in clients.models.items()})

    async def local(self, client: Client, params: Tensor) -> Message:
        out = await client.train(params, solver=self.solver)
        return Message(params=out.vector)

    def round(self, state: FedDFState, clients: Clients) -> FedDFState:
        cohort = clients.sample(self.cohort)
        kind = {i: clients.info(i)["model"] for i in cohort}
        got = clients.map(self.local, cohort, each={i: {"params": state.models[kind[i]]} for i in cohort})
        if not got:
            return state
        assert clients.public is not None
        server, public = clients.server, clients.public
        said = [server.predict(r.params, public, model=clients.models[kind[r.id]]) for r in got]
        taught, terms = public.replace(teacher=torch.stack(said).mean(0)), {"temperature": self.temperature}
        models = dict(state.models)
        for name, model in clients.models.items():
            members = got.where(lambda r, name=name: kind[r.id] == name)
            w = members.mean().params if members else models[name]
            out = server.train(w, solver=self.distil, data=taught, model=model, loss=match_softened, extras=terms)
            models[name] = out.vector
        return replace(state, models=models)

    def down(self, state: FedDFState, id: int) -> dict[str, Any]:
        return {"models": state.models}

    async def personalise(self, client: Client, models: dict[str, Tensor]) -> Tensor:
        return models[client.model.name]

    def evaluate(self, state: FedDFState, clients: Clients) -> dict[str, Evaluation]:
        if len(state.models) > 1:
            return {"personal": clients.evaluate(self.personalise, models=state.models)}
        (params,) = state.models.values()
        return {"global": clients.evaluate(params)}
