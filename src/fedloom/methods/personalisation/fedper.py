"""FedPer (Arivazhagan et al., 2019): a shared body, and a head of each client's own.

    (body, head_i) <- SGD on f_i, together;   body <- sum_i n_i body_i / sum_i n_i;   head_i stays

Sent: the body both ways. Kept at a client: its head.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedloom.card import Card
from fedloom.method import register
from fedloom.model import Model

from .partial import Partial


@register
@dataclass(frozen=True)
class FedPer(Partial):
    """Personal layers.

    Args:
        personal: patterns of names that stay: ("head.*",) is the last layer, K_P = 1 in the paper; () leaves FedAvg and
            ("*",) local training. Statistics of batch norm belong to the body unless named.
    """

    card = Card(
        id="fedper",
        title="FedPer",
        paper="Federated Learning with Personalization Layers",
        authors="M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary",
        venue="arXiv",
        year=2019,
        url="https://arxiv.org/abs/1912.00818",
        family="personalisation",
        summary="a shared body under a head of each client's own",
        down="4*shared",
        up="4*shared",
        keeps="its personal layers",
        needs=frozenset({"memory"}),
        reduces=(("no personal layers", "fedavg"), ("all layers personal", "local training")),
        claim="beats one global model at the clients when each holds few of the classes",
    )

    personal: tuple[str, ...] = ("head.*",)

    def private(self, model: Model) -> Tensor:
        return model.layout.where(*self.personal)
