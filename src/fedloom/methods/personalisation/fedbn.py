"""FedBN (Li et al., ICLR 2021): everything is averaged but the normalisation layers.

    w_i <- SGD on f_i;   every weight outside a norm layer is averaged;   scales, shifts and statistics stay

Sent: all but norm layers, both ways. Kept at a client: its norm layers, running statistics included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedloom.card import Card
from fedloom.errors import NotSupported
from fedloom.method import register
from fedloom.model import Model
from fedloom.task import Classification

from .partial import Partial

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""By type and not by name: a layer called \"bn\" may be anything."""


@register
@dataclass(frozen=True)
class FedBN(Partial):
    """Local normalisation; needs a network with norm layers (batch norm with `buffers="vector"`)."""

    card = Card(
        id="fedbn",
        title="FedBN",
        paper="FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
        authors="X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2102.07623",
        family="personalisation",
        summary="everything is averaged but the normalisation layers",
        down="4*shared",
        up="4*shared",
        keeps="its norm layers: scales, shifts, running statistics",
        needs=frozenset({"memory"}),
        deviations=("a client that never took part answers with the norm layers of the initial model",),
        claim="beats FedAvg in mean and worst domain when clients' features are shifted",
    )

    @classmethod
    def example(cls) -> dict[str, Any]:
        return {"task": Classification(model="cnn-bn:width=0.125,depth=1", buffers="vector")}

    def private(self, model: Model) -> Tensor:
        mask = model.where(*NORMS)
        if not bool(mask.any()):
            raise NotSupported(
                f"FedBN keeps normalisation layers at the clients, but {model.name!r} has none. Use one that has, "
                f"e.g. model='resnet8' (group norm), or Classification(model='cnn-bn', buffers='vector')"
            )
        return mask
