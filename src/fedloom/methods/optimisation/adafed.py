"""AdaFed (Tan et al., TNSE 2022): weights that adapt to how often each client took part, with sum 1 in every round.

    w_k = (a_k / pi_k) / sum_{j in S} a_j / pi_j;    x <- x + server_lr * sum_{k in S} w_k (y_k - x)

pi_k is the share of rounds a client has been there in so far. It is inverse availability made a mean: less variance,
and a bias that shrinks as more clients are there. Equal pi_k make it FedAvg over those that are there.
Sent: x and a number down, y_k - x and the number up. Kept at clients: nothing; at the server who was there how often.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedloom.card import Card
from fedloom.clients import Clients
from fedloom.message import Message
from fedloom.method import register
from fedloom.replies import Cohort

from .inverseavailability import InverseAvailability
from .shares import given


@register
@dataclass(frozen=True)
class AdaFed(InverseAvailability):
    """Adaptive weights of those that are there, a mean of their updates."""

    card = Card(
        id="adafed",
        title="AdaFed",
        paper="AdaFed: Optimizing Participation-Aware Federated Learning with Adaptive Aggregation Weights",
        authors="L. Tan, X. Zhang, Y. Zhou, X. Che, M. Hu, X. Chen, D. Wu",
        venue="IEEE Transactions on Network Science and Engineering",
        year=2022,
        url="https://ieeexplore.ieee.org/document/9762058",
        family="optimisation",
        summary="updates weighed by one over participation, made a mean in every round",
        down="4*d + 8",
        up="4*d + 8",
        reduces=(("everybody there equally often", "fedavg"),),
        deviations=(
            "everybody who is there takes part unless a cohort is set; the paper's optimisation of who does and how "
            "much is left out, as in the comparison of the CA-Fed paper",
        ),
        claim="where clients with unlike data are there unlike often, it ends at a lower loss on everybody's data than "
        "FedAvg over those that are there",
    )

    def combined(self, clients: Clients, cohort: Cohort, shares: dict[int, float], params: Tensor) -> Message:
        """The mean of updates weighed by shares."""
        got = clients.mean(self.local, cohort, weight="share", each=given(shares), params=params)
        return got.replace(weight=1.0)
