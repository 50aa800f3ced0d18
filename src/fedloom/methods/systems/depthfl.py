"""DepthFL (Kim et al., ICLR 2023): devices train as many blocks as they carry, and their exits teach each other.

    a client of depth k:  blocks 1..k with a classifier behind each, w_i = x[those entries], trained by FedDyn on
        sum_i CE(z_i, y) + lam(t) / (k - 1) sum_{i != j} KL(p_j || p_i) - <g, w> + alpha/2 ||w - w_i||^2
        lam(t) = lam exp(-5 (1 - min(t / ramp, 1))^2);                      g <- g - alpha (y_i - w_i)
    server, for every entry, over those in the cohort that own it (m of all N clients):
        mean = x + 1/m sum (y_i - w_i);   h <- h - alpha / N sum (y_i - w_i);   x <- mean - h / alpha
        entries nobody in the cohort owns stay as they are

Sent: the client's blocks and heads both ways, and lam(t). Kept at a client: g, as long as what it owns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import At, Message
from fedloom.method import Method, State, register
from fedloom.model import Model, Part
from fedloom.replies import Evaluation
from fedloom.training import SGD, Solver
from fedloom.training.hooks import dynamic
from fedloom.vector import zeros

from .depth import check_shares, entries_of, prefix
from .exit_losses import exit_losses, exit_views, mutual_kl
from .exits import with_exits


def mutual(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The task's loss of every exit, and what exits learn from each other."""
    scores = model["exits"](w, *model.task.inputs(batch))
    return exit_losses(model, scores, batch).sum(1) + extras["lam"] * mutual_kl(scores)


@dataclass(frozen=True)
class DepthFLState(State):
    """params: the deepest network `(d,)`; h: the server's sum of drifts `(d,)`; round: rounds done."""

    params: Tensor
    h: Tensor
    round: int = 0


@register
@dataclass(frozen=True)
class DepthFL(Method):
    """Depth-wise sub-networks with mutual distillation between exits.

    Args:
        depths: client i owns the first `ceil(depths[i % len(depths)] * K)` of K blocks, each in (0, 1].
        lam: weight of the mutual distillation once it has ramped up, >= 0 (paper: 1; 0: without).
        ramp: rounds until then, >= 1 (paper: 300 of 1,000).
        alpha: FedDyn's, >= 0 (paper: 0.1; 0: without, a plain mean over owners).
    """

    card = Card(
        id="depthfl",
        title="DepthFL",
        paper="DepthFL: Depthwise Federated Learning for Heterogeneous Clients",
        authors="M. Kim, S. Yu, S. Kim, S.-M. Moon",
        venue="ICLR",
        year=2023,
        url="https://openreview.net/forum?id=pf8RIZTMU58",
        family="systems",
        summary="devices train as many blocks as they carry, and the exits behind them teach each other",
        down=None,
        up=None,
        why_bytes="4 for each entry of the client's own blocks and heads; down 4 more for lam(t)",
        keeps="its linear term g, as long as the part it owns",
        needs=frozenset({"memory"}),
        reduces=(("one block, alpha = 0", "fedavg (weight = uniform)"),),
        deviations=(
            "an ordinary network gets a linear classifier behind each block; the paper's have a bottleneck before it",
            "the step size is the solver's, without the paper's decay of 0.998 a round",
            "running statistics, where the vector holds them, are averaged over owners and take no part in FedDyn",
        ),
        claim="a mixed fleet beats training with its full-depth clients only, and mutual distillation helps",
    )

    cohort: int = 10
    depths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    lam: float = 1.0
    ramp: int = 300
    alpha: float = 0.1
    solver: Solver = SGD(lr=0.1, epochs=5, batch_size=50)

    def __post_init__(self) -> None:
        check_shares("DepthFL", self.depths)
        if not self.lam >= 0 or self.ramp < 1 or not self.alpha >= 0:
            raise ConfigError(
                f"DepthFL(lam={self.lam}, ramp={self.ramp}, alpha={self.alpha}) cannot be: lam, alpha >= 0, ramp >= 1"
            )

    def module(self, net: nn.Module) -> nn.Module:
        return with_exits(net)

    def start(self, clients: Clients, before: DepthFLState | None = None) -> DepthFLState:
        params = before.params if before else clients.model.initial()
        return DepthFLState(params=params, h=torch.zeros_like(params))

    def part(self, model: Model, id: int) -> Part:
        """What client `id` owns."""
        return prefix(model, self.depths[id % len(self.depths)])

    async def local(self, client: Client, params: Tensor, lam: Tensor) -> Message:
        part, linear = self.part(client.model, client.id), client.memory.get("linear", zeros(params))
        out = await client.train(
            params,
            solver=self.solver,
            model=part.model,
            loss=mutual,
            step=dynamic if self.alpha else None,
            extras={"lam": lam, "linear": linear, "alpha": self.alpha, "anchor": params},
        )
        delta = out.vector - params
        if self.alpha:
            client.memory["linear"] = linear - self.alpha * delta
        return Message(delta=At(part.index, delta, client.model.layout.size, known=True))

    def round(self, state: DepthFLState, clients: Clients) -> DepthFLState:
        cohort, model, t = clients.sample(self.cohort), clients.model, state.round
        lam = state.params.new_tensor(self.lam * math.exp(-5 * (1 - min(t / self.ramp, 1)) ** 2))
        each = entries_of({i: self.part(model, i) for i in cohort}, state.params)
        got = clients.sum(self.local, cohort, each=each, lam=lam)
        if not got.count:
            return DepthFLState(state.params, state.h, t + 1)
        moved, owners = got.delta.total, got.delta.held
        h = state.h - self.alpha / len(clients.ids) * moved
        h[model.layout.trainable :] = 0
        params = state.params + moved / owners.clamp(min=1)
        if self.alpha:
            params = torch.where(owners > 0, params - h / self.alpha, params)
        return DepthFLState(params.to(state.params.dtype), h.to(state.h.dtype), t + 1)

    async def personalise(self, client: Client, params: Tensor) -> Callable[..., Tensor]:
        """The mean of the exits the client owns."""
        part = self.part(client.model, client.id)
        return lambda *x: part.model(params[part.index], *x)

    def evaluate(self, state: DepthFLState, clients: Clients) -> dict[str, Evaluation]:
        """The mean of all exits, and every exit by itself."""
        return {"global": clients.evaluate(state.params), **exit_views(clients, state.params)}
