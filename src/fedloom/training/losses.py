"""Losses that return one value per sample, so that clients can be folded into the batch axis."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.data.fields import IGNORE


class _ShortCrossEntropy(torch.autograd.Function):
    """Cross entropy over few classes: classes first, because softmax over a short last axis is not vectorised."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, target: Tensor) -> Tensor:
        log_p = torch.log_softmax(scores.t().contiguous(), 0)
        row = target.unsqueeze(0)
        ctx.save_for_backward(log_p, row)
        return log_p.gather(0, row).neg_().view(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        log_p, row = ctx.saved_tensors
        d = log_p.exp()
        d.scatter_add_(0, row, d.new_full((1, 1), -1.0).expand(1, d.shape[1]))
        return d.mul_(grads[0]).t(), None


def cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """Per-sample cross entropy: scores `(n, classes)` or `(n, length, classes)`, target `(n,)` or `(n, length)`; a
    sequence's loss is the mean over its positions but those marked `IGNORE` (a prompt, padding)."""
    if scores.dim() == 2 and _worth_it(scores) and not _transformed(scores):
        return _ShortCrossEntropy.apply(scores, target)  # type: ignore[no-any-return]
    if scores.dim() == 2:
        return F.cross_entropy(scores, target, reduction="none")
    each = F.cross_entropy(scores.flatten(0, -2), target.flatten(), reduction="none").view(target.shape).flatten(1)
    return each.sum(1) / (target != IGNORE).flatten(1).sum(1).clamp(min=1)


def _worth_it(scores: Tensor) -> bool:
    """Few classes and many rows, on CPU: below about 96 rows the call costs more than it saves."""
    return scores.shape[1] <= 64 and len(scores) >= 96 and scores.device.type == "cpu"


def _transformed(x: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(x)  # type: ignore[attr-defined]
