"""How evenly a round's sub-models cover the network: the figures that decide convergence (Zhou et al., NeurIPS 2023).

|N_j|     clients that returned entry j in this round
Gamma     min_j |N_j|, the coverage index; 0: some entry was trained by nobody
noise     max_i ||w - w (.) m_i||^2 / ||w||^2, what the smallest sub-model leaves out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.message import Covered


@dataclass(frozen=True)
class Coverage:
    """Attributes: holders: |N_j| `(d,)`, whole numbers; noise: the reduction noise delta^2, in [0, 1]."""

    holders: Tensor
    noise: float

    @property
    def gamma(self) -> int:
        """Gamma_min of this round."""
        return int(self.holders.min())

    @property
    def histogram(self) -> dict[int, int]:
        """k -> entries that k clients held, for every k that occurs."""
        return dict(enumerate(self.holders.bincount().tolist())) if len(self.holders) else {}

    @property
    def notes(self) -> dict[str, float]:
        """For the round's log: `gamma_min`, `reduction_noise`, and the share of entries held by k as `held_by_k`."""
        shares = {f"held_by_{k}": n / len(self.holders) for k, n in self.histogram.items() if n}
        return {"gamma_min": self.gamma, "reduction_noise": self.noise, **shares}


def coverage(params: Tensor, sent: Sequence[Tensor], got: Covered | None = None) -> Coverage:
    """The coverage of one exchange.

    Args:
        params: the network `(d,)` the sub-models were cut from; `sent` the entries of each.
        got: the sum of what came back, weight 1 each; without it all that were sent are counted.
    """
    places = [torch.empty(0, dtype=torch.long), *(index.cpu() for index in sent)]
    held = torch.cat(places).bincount(minlength=len(params))
    whole = float(params.square().sum())
    least = min((float(params[index].square().sum()) for index in sent), default=whole)
    return Coverage(held if got is None else got.held.round().long(), 1 - least / whole if whole else 0.0)
