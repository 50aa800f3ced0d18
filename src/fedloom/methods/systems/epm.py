"""Every Parameter Matters (Zhou, Lan, Venkataramani, Ding, NeurIPS 2023): any masks, averaged region by region.

    client n:  theta_0 = theta (.) m_n;   theta <- theta - lr * grad F_n(theta) (.) m_n     for T steps
    server:    theta_j <- mean over N_j = {n : m_n[j] = 1} of theta_n[j];   theta_j stays where N_j is empty

The frame of HeteroFL, FedRolex, Federated Dropout and pruning, with its theorem: convergence is governed by the
coverage index Gamma_min = min_j |N_j| (1 at least; more is better) and the reduction noise max_n ||theta - theta (.)
m_n||^2 / ||theta||^2 (less is better). Both are noted every round.
Sent: |m_n| entries both ways; with `policy="magnitude"` a mask of d bits more each way, as it follows from theta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fedloom.card import Card
from fedloom.client import Client
from fedloom.clients import Clients
from fedloom.errors import ConfigError, unknown
from fedloom.message import At, Message
from fedloom.method import register
from fedloom.methods.optimisation.weights import weight_of

from .submodels import SubModels, SubModelState
from .width import Choose, first_units, kept, random_units, rolling_units, tiled_units

Policy = Literal["prefix", "shifted", "rolling", "random", "magnitude"]
UNITS: dict[str, Callable[[float, int], Choose]] = {
    "prefix": lambda rate, which: first_units(rate),
    "shifted": tiled_units,
    "rolling": rolling_units,
    "random": random_units,
}
"""The policies that keep whole units, so that a client trains a narrow network."""


@register
@dataclass(frozen=True)
class EveryParameterMatters(SubModels):
    """Region-wise averaging under any policy of masks.

    Args:
        policy: "prefix", the first units for all (HeteroFL's); "shifted", windows of those below rate 1 laid end to end
            over the cohort, so that they cover different units (of one layer; from one window's units of a layer to
            another's of the next nothing is covered); "rolling" (FedRolex's); "random" (Federated Dropout's);
            "magnitude", the largest entries of theta, whole units or not (pruning; trained as a mask).
        rates: client i keeps the share `rates[i % len(rates)]` (of units, or of entries), each in (0, 1].
        dynamic: rates are drawn anew for every client and round.
        step_budget: seconds a training step may take: a client's rate is the largest that its device does in time
            and has the memory for, or else the smallest; inf: memory alone decides. None: by number.
        weight: of a client within N_j, "uniform" (the paper) or "samples".
        scale, mask: HeteroFL's scaler, and its masked scores; not in the paper.
    """

    card = Card(
        id="epm",
        title="Every Parameter Matters",
        paper="Every Parameter Matters: Ensuring the Convergence of Federated Learning with Dynamic Heterogeneous "
        "Models Reduction",
        authors="H. Zhou, T. Lan, G. Venkataramani, W. Ding",
        venue="NeurIPS",
        year=2023,
        url="https://arxiv.org/abs/2201.11803",
        family="systems",
        summary="any masks, averaged region by region; how they cover the network decides convergence",
        down=None,
        up=None,
        why_bytes="4 per entry of the client's sub-model, and 16 for what it is down; with policy magnitude its mask "
        "instead, d bits at most",
        reduces=(
            ("rates = (1,)", "fedavg (weight = uniform)"),
            ("policy = prefix", "heterofl (scale, mask = False)"),
            ("policy = rolling", "fedrolex (scale, mask = False)"),
            ("policy = random", "feddropout (scale = False)"),
        ),
        deviations=(
            "the paper shifts by hand-made layouts; here windows lie end to end, in the order of client numbers",
        ),
        claim="at equal bytes, sub-models that cover different units beat sub-models that all cover the same",
    )

    rates: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    policy: Policy = "shifted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy not in (*UNITS, "magnitude"):
            raise unknown("policy", self.policy, (*UNITS, "magnitude"))
        if self.policy == "magnitude" and (self.mask or self.scale):
            raise ConfigError("EveryParameterMatters(policy='magnitude') trains masks of entries: mask=scale=False")

    def units(self, rate: float, which: int = 0) -> Choose:
        return UNITS[self.policy](rate, which)

    def specs(self, state: SubModelState, clients: Clients, cohort: Sequence[int]) -> dict[int, Any]:
        rates = self.rates_of(clients, cohort)
        draws = torch.randint(2**31, (len(cohort),), generator=clients.rng("units")).tolist()
        which: dict[int, int] = {
            "prefix": dict.fromkeys(cohort, 0),
            "shifted": {i: place for place, i in enumerate(i for i in sorted(cohort) if rates[i] < 1)},
            "rolling": dict.fromkeys(cohort, state.turn),
            "random": dict(zip(cohort, draws)),
        }[self.policy]
        return {i: {"rate": rate, "which": which.get(i, 0)} for i, rate in rates.items()}

    # ------------------------------------------------------------ masks that follow from theta
    async def masked(self, client: Client, params: At) -> Message:
        """params: the entries this client's mask keeps."""
        inside = torch.zeros(params.size, dtype=torch.bool, device=params.index.device)
        inside[params.index] = True
        out = await client.train(params.dense(), solver=self.solver, only=inside)
        return Message(params=At(params.index, out.vector[params.index], params.size, known=True))

    def round(self, state: SubModelState, clients: Clients) -> SubModelState:
        if self.policy != "magnitude":
            return super().round(state, clients)
        cohort, theta = clients.sample(self.cohort), state.params
        rates = self.rates_of(clients, cohort)
        sizes = theta[: clients.model.layout.trainable].abs()
        sent = {r: sizes.topk(kept(r, len(sizes))).indices.sort().values for r in set(rates.values())}
        each = {i: {"params": At(sent[r], theta[sent[r]], len(theta))} for i, r in rates.items()}
        got = clients.mean(self.masked, cohort, weight=weight_of(self.weight), each=each)
        return self.overlaid(state, clients, cohort, [sent[rates[i]] for i in cohort], got)
