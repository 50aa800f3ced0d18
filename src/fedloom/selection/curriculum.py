"""A curriculum of clients (Vahidian et al., ICCV 2023): the easiest first, and more of them from round to round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.replies import Cohort

from .history import History
from .laws import equal
from .pacing import how_many
from .policy import ByLoss


@dataclass(frozen=True)
class Curriculum(ByLoss):
    """Equal chances among the easiest clients, by their loss; in round t = 1, 2, ... the easiest share + (1 - share)
    (t - 1) / rounds.

    Args:
        share: b, of the clients in the first round, in (0, 1]; 1 is a draw with equal chances.
        rounds: until all clients are in, linearly, >= 1.
        hardest: the other way round, the paper's anti-curriculum.
        loss: "asked" (all available are sent the model and asked) or "last" (what each told when it last took part;
            those that never did come first).
    """

    share: float = 0.2
    rounds: int = 50
    hardest: bool = False
    loss: Literal["asked", "last"] = "asked"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.rounds < 1:
            raise ConfigError(f"{self} cannot be: 0 < share <= 1, rounds >= 1")
        super().__post_init__()

    def draw(self, clients: Clients, history: History, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        sign = -1 if self.hardest else 1
        ranked = sorted(ids, key=lambda i: sign * history.loss(i, unknown=-sign * math.inf))
        first = set(ranked[: max(k, self.eligible(history.round, len(ids)))])
        return equal([i for i in ids if i in first], k, rng)

    def eligible(self, round: int, n: int) -> int:
        """How many of n clients are in, in a round from 1."""
        return how_many(n, self.share, (round - 1) / self.rounds)
