"""What early exits are trained by, one value per sample, and judged by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.clients import Clients
from fedloom.replies import Evaluation

from .depth import exits_of


def exit_losses(model: Any, scores: Tensor, batch: Any) -> Tensor:
    """The task's loss of every exit `(n, K)`, of scores `(n, K, ...)`."""
    return torch.stack([model.task.losses(one, batch) for one in scores.unbind(1)], 1)


def all_exits(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """The sum over exits of the task's loss."""
    return exit_losses(model, model["exits"](w, *model.task.inputs(batch)), batch).sum(1)


def mutual_kl(scores: Tensor) -> Tensor:
    """`1 / (K - 1) sum_i sum_{j != i} KL(p_j || p_i)` `(n,)`: every exit learns from every other, which stays as it is.

    scores: `(n, K, classes)`, or `(n, K, positions, classes)`, of which the mean over positions is taken.
    """
    student, teacher = F.log_softmax(scores, -1), F.log_softmax(scores.detach(), -1)
    gap = teacher.unsqueeze(1) - student.unsqueeze(2)  # [sample, i, j, class]
    apart = (teacher.exp().unsqueeze(1) * gap).sum((1, 2, -1)) / max(1, scores.shape[1] - 1)
    return apart.mean(1) if apart.dim() > 1 else apart


def kl_from_last(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """`T^2 KL(softmax(z_K / T) || softmax(z_j / T))` `(n, K)`: exits learn from the deepest, which stays as it is.

    scores: as of `mutual_kl`.
    """
    student = F.log_softmax(scores / temperature, -1)
    teacher = F.log_softmax(scores[:, -1:].detach() / temperature, -1)
    apart = temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)
    return apart.mean(2) if apart.dim() > 2 else apart


def exit_views(clients: Clients, params: Tensor) -> dict[str, Evaluation]:
    """Every exit of the whole network, judged by itself: "exit1" to "exitK"."""
    scores = clients.model.eval()["exits"]
    return {
        f"exit{k + 1}": clients.evaluate(lambda *x, k=k: scores(params, *x)[:, k])
        for k in range(exits_of(clients.model))
    }
