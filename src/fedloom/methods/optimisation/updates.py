"""A server's memory of every client's last update, and the mean of all of them kept up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.client import settled
from fedloom.method import State
from fedloom.replies import Replies


@dataclass(frozen=True)
class Updates(State):
    """The last update of each client, zero for those that sent none.

    Attributes:
        of: update `(d,)` by client: 4d bytes for each that was ever heard.
        mean: `sum_i weight_i of[i]` `(d,)`, kept in O(|S| d) a round.
    """

    of: Mapping[int, Tensor]
    mean: Tensor

    @staticmethod
    def none(like: Tensor) -> Updates:
        """Nobody has sent anything."""
        return Updates({}, torch.zeros_like(like))

    def among(self, ids: Sequence[int]) -> Updates:
        """Those of these clients, in the mean over them alone, where all count alike."""
        of = {i: self.of[i] for i in ids if i in self.of}
        return Updates(of, sum(of.values(), torch.zeros_like(self.mean)) / max(len(ids), 1))

    def get(self, id: int) -> Tensor:
        """A client's last update."""
        return self.of.get(id, torch.zeros_like(self.mean))

    def heard(self, got: Replies, weights: Mapping[int, float], field: str = "delta") -> Updates:
        """With this field of these replies in the place of the ones before.

        Args:
            weights: of the clients heard, in the mean over all clients.
        """
        new, mean = {r.id: settled(getattr(r, field)) for r in got}, self.mean
        for i, update in new.items():
            mean = mean + weights[i] * (update - self.get(i))
        return Updates({**self.of, **new}, mean)
