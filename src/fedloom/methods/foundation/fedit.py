"""FedIT (Zhang et al., ICASSP 2024): federated instruction tuning; FedAvg on LoRA factors over a frozen base.

    W = W_0 + (alpha / r) B A;   clients train A and B with AdamW;   A <- sum_k p_k A_k,  B <- sum_k p_k B_k

Sent: A and B both ways. W_0 is frozen: it is not in the vector, is one object in memory for all, and never travels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedloom.card import Card
from fedloom.method import register
from fedloom.methods.optimisation.fedavg import FedAvg
from fedloom.models.adapters import lora
from fedloom.training import Adam, Solver


@register
@dataclass(frozen=True)
class FedIT(FedAvg):
    """Averaging of LoRA adapters (needs the extra `llm`).

    Args:
        rank: r of every adapter, >= 1; alpha: its scale.
        targets: names of the layers that get one, as peft takes them; () for every dense layer but the head.
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
        deviations=("GPT-4 scoring is replaced by held-out loss on responses",),
        claim="tuning together beats tuning alone on held-out instructions",
    )

    solver: Solver = Adam(lr=1e-3, epochs=1, batch_size=32)
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()

    def module(self, net: nn.Module) -> nn.Module:
        return lora(net, rank=self.rank, alpha=self.alpha, targets=list(self.targets) or None)
