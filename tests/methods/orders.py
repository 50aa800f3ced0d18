"""Orders of batches by the documented keys, spies on messages, and networks with several blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fedloom as fl
from fedloom.keyed import generator
from fedloom.testing import Spy
from fedloom.training.request import Schedule


def rows(n: int, solver: fl.Solver, *key: Any, training: int = 0, seed: int = 0) -> list[list[int]]:
    """The rows of each step of the `training`-th training of the job with this key (client, round, turn)."""
    purpose = ("order", "", training) if training else ("order",)
    order = Schedule.epochs(n, solver.batch_size, solver.work(n), generator(seed, *purpose, *key))
    return [order.index[k, : order.counts[k]].tolist() for k in range(len(order.counts))]


def overheard(method: fl.Method, task: fl.Task, federation: fl.Federation, rounds: int = 2, **options: Any):
    """A run one by one in float64, and a spy that heard every payload and reply."""
    spy = Spy()
    options = {"engine": "sequential", "dtype": torch.float64, "evaluate_every": 0, **options}
    behave = dict.fromkeys(range(len(federation)), spy)
    return fl.run(method, task, federation, rounds=rounds, behave=behave, **options), spy.heard


class Blocks(nn.Module):
    """x (n, 3) -> features (n, 2) -> head (n, 3), all linear; weights differ and are not zero."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(3, 2, dtype=torch.float64), nn.Linear(2, 3, dtype=torch.float64)
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(scale * torch.sin(torch.arange(p.numel(), dtype=torch.float64) + k).view(p.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))
