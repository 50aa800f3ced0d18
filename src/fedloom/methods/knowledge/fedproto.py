"""FedProto (Tan et al., AAAI 2022): clients of any architecture agree on one mean feature per class.

    client:  CE(x, y) + lam * mean_D (phi_i(x) - P[y])^2     where the class y has a global prototype P[y]
             then  s_i[c] = sum of phi_i(x) over its samples of class c,  n_i[c] their number
    server:  P[c] = sum_i s_i[c] / sum_i n_i[c]

Sent: P down, sums and counts of the classes a client has up: 4 (C_i D + C_i) bytes, whatever the model's size, and the
cheaper of 4-byte class numbers and a bitmap for each of the two. Kept at a client: its whole model.
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
from fedloom.data.fields import Data
from fedloom.errors import ConfigError
from fedloom.message import At, Message
from fedloom.method import Method, State, register
from fedloom.model import Model
from fedloom.training import SGD, Solver


def features(model: Model, w: Tensor, batch: Data) -> Tensor:
    """What goes into the head `(n, D)`."""
    return model[:"head"](w, *model.task.inputs(batch))


def near_prototypes(model: Any, w: Tensor, batch: Data, extras: Any) -> Tensor:
    """The task's loss, and the distance of each sample's features to the prototype of its class."""
    z = features(model, w, batch)
    loss = model.task.losses(model["head"](w, z), batch)
    away = (z - extras["prototypes"][batch.y]).square().mean(1)
    return loss + extras["lam"] * extras["known"][batch.y] * away


@dataclass(frozen=True)
class FedProtoState(State):
    """prototypes: mean feature per class `(C, D)`; known: 1.0 for classes somebody has shown `(C,)`."""

    prototypes: Tensor
    known: Tensor


@register
@dataclass(frozen=True)
class FedProto(Method):
    """Prototypes instead of weights; every network has children `features` and `head` with one feature size D.

    Args:
        lam: weight of the prototype term, >= 0 (paper: 1 for MNIST, 0.1 for CIFAR-10).
        by: how clients answer: "prototype" (nearest one, the paper) or "head" (their own).
    """

    card = Card(
        id="fedproto",
        title="FedProto",
        paper="FedProto: Federated Prototype Learning across Heterogeneous Clients",
        authors="Y. Tan, G. Long, L. Liu, T. Zhou, Q. Lu, J. Jiang, C. Zhang",
        venue="AAAI",
        year=2022,
        url="https://arxiv.org/abs/2105.00243",
        family="knowledge",
        summary="clients of different architectures agree on one mean feature per class",
        down="4*classes*dim + 4*classes",
        up=None,
        why_bytes="4 (C_i D + C_i) for a client's own C_i classes, and twice the cheaper of 4 C_i and ceil(C / 8)",
        keeps="its whole model",
        needs=frozenset({"memory", "families"}),
        reduces=(("lam = 0", "local training"),),
        deviations=(
            "class sums travel instead of means: the server needs only their sum, and the quotient is the same",
            "the plain mean over samples, without the released code's further division by the number of holders",
        ),
        claim="beats local training where clients hold few classes and different architectures",
    )

    cohort: int = 10
    lam: float = 1.0
    solver: Solver = SGD(lr=0.05, epochs=1, batch_size=32)
    by: Literal["prototype", "head"] = "prototype"

    def __post_init__(self) -> None:
        if not self.lam >= 0:
            raise ConfigError(f"FedProto(lam={self.lam}) cannot be: lam >= 0; 0 is local training")

    def start(self, clients: Clients, before: FedProtoState | None = None) -> FedProtoState:
        if before:
            return before
        table = {name: tuple(m.layout.shapes.get("head.weight", ())) for name, m in clients.models.items()}
        if len(set(table.values())) > 1 or not all(table.values()):
            raise ConfigError(
                f"FedProto needs networks whose `head` reads features of one size; their head.weight is {table}. "
                f"Ask for one size, e.g. model={{'a': 'mlp:64,dim=32', 'b': 'cnn:dim=32'}}"
            )
        zeros = clients.model.initial().new_zeros(table[clients.model.name])
        return FedProtoState(prototypes=zeros, known=zeros[:, 0].clone())

    def own(self, client: Client) -> Tensor:
        """The client's model; a newcomer's is the initial one of its architecture."""
        return client.memory["params"] if "params" in client.memory else client.model.initial()

    async def local(self, client: Client, prototypes: Tensor, known: Tensor) -> Message:
        terms = {"prototypes": prototypes, "known": known, "lam": self.lam}
        out = await client.train(self.own(client), solver=self.solver, loss=near_prototypes, extras=terms)
        client.memory["params"] = out.vector
        z = await client.predict(client.memory["params"], fn=features)
        labels, counts = client.data.y.unique(return_counts=True)
        sums = torch.stack([z[client.data.y == c].sum(0) for c in labels])
        size = len(known)
        return Message(sums=At(labels, sums, size), counts=At(labels, counts.to(z.dtype), size))

    def round(self, state: FedProtoState, clients: Clients) -> FedProtoState:
        got = clients.sum(self.local, clients.sample(self.cohort), **self.down(state, 0))
        if got.count == 0:
            return state
        n = got.counts.total
        seen = n > 0
        mean = got.sums.total / n.clamp(min=1)[:, None]
        return FedProtoState(
            prototypes=torch.where(seen[:, None], mean, state.prototypes),
            known=torch.maximum(state.known, seen.to(state.known)),
        )

    def down(self, state: FedProtoState, id: int) -> dict[str, Any]:
        return {"prototypes": state.prototypes, "known": state.known}

    async def personalise(self, client: Client, prototypes: Tensor, known: Tensor) -> Tensor | Callable[..., Tensor]:
        own = self.own(client)
        if self.by == "head" or not bool(known.any()):
            return own
        body = client.model[:"head"]

        def nearest(*inputs: Tensor) -> Tensor:
            """Minus the distance to each known prototype, as scores `(n, C)`."""
            return (-torch.cdist(body(own, *inputs), prototypes)).masked_fill(known == 0, -1e9)

        return nearest

    def sizes(self, clients: Clients) -> dict[str, float]:
        classes, dim = clients.model.layout.shapes["head.weight"]
        return {"classes": classes, "dim": dim}
