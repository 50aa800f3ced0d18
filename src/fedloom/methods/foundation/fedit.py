"""FedIT (Zhang et al., ICASSP 2024): federated instruction tuning; FedAvg on LoRA factors over a frozen base.

    W = W_0 + (alpha / r) B A;   clients train A and B with AdamW, anew each round
    A <- sum_k p_k A_k,  B <- sum_k p_k B_k        with p_k = n_k / n      (two means, not the mean of B A)

Sent: A and B both ways, and the modules in `train`. W_0 is frozen: it is not in the vector, is one object in memory for
all models and clients, and never travels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedloom.card import Card
from fedloom.data.fields import Data
from fedloom.method import register
from fedloom.methods.optimisation.fedavg import FedAvg
from fedloom.models.adapters import lora
from fedloom.task import Classification
from fedloom.training import Adam, Solver


@register
@dataclass(frozen=True)
class FedIT(FedAvg):
    """Averaging of LoRA adapters (needs the extra `llm`).

    Args:
        rank: r of every adapter, >= 1; alpha: its scale.
        targets: names of the layers that get one, as peft takes them; () for every dense layer but the head.
        train: names of modules trained and sent whole, such as the "head" of a new classifier.
    """

    card = Card(
        id="fedit",
        title="FedIT",
        paper="Towards Building the Federated GPT: Federated Instruction Tuning",
        authors="J. Zhang, S. Vahidian, M. Kuo, C. Li, R. Zhang, T. Yu, Y. Zhou, G. Wang, Y. Chen",
        venue="ICASSP",
        year=2024,
        url="https://arxiv.org/abs/2305.05644",
        family="foundation",
        summary="FedAvg on LoRA factors over a frozen base that never travels",
        needs=frozenset({"adapters"}),
        deviations=(
            "GPT-4 scoring is replaced by held-out loss on responses",
            "no dropout in the adapters (0.05 in the paper); A is the same first draw in every run",
        ),
        claim="tuning together beats tuning alone on held-out instructions",
    )

    solver: Solver = Adam(lr=1e-3, epochs=1, batch_size=32)
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    train: tuple[str, ...] = ()

    @classmethod
    def example(cls) -> dict[str, Any]:
        method = cls(cohort=4, solver=Adam(lr=1e-2, epochs=1, batch_size=4), rank=2, train=("head",))
        return {
            "method": method,
            "task": BlackAndWhite(model="text-transformer:vocab=2,width=8,depth=1,heads=2,pad=-1"),
        }

    def module(self, net: nn.Module) -> nn.Module:
        base = sharing(net)
        return lora(base, rank=self.rank, alpha=self.alpha, targets=list(self.targets) or None, train=self.train)


def sharing(net: nn.Module) -> nn.Module:
    """A network over the very same weights, so that what becomes of its layers and flags is not seen outside."""
    memo = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in net.parameters()}
    return copy.deepcopy(net, memo)  # type: ignore[arg-type]


@dataclass(frozen=True)
class BlackAndWhite(Classification):
    """Classification of an image read as text: one token per pixel, 1 where it is above zero. For the tiny example."""

    def inputs(self, batch: Data) -> tuple[Tensor, ...]:
        return (batch.x.flatten(1).gt(0).long(),)
