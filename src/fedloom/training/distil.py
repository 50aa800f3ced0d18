"""Losses that learn from another model's outputs: one value per sample; the targets are fields of the batch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def match_logits(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """Mean absolute difference to `batch.teacher` logits `(n, C)`."""
    return (model(w, *model.task.inputs(batch)) - batch.teacher).abs().mean(-1)


def match_softened(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), with `extras["temperature"]` = T > 0."""
    t = extras["temperature"]
    student = F.log_softmax(model(w, *model.task.inputs(batch)) / t, -1)
    teacher = F.log_softmax(batch.teacher / t, -1)
    return t * t * (teacher.exp() * (teacher - student)).sum(-1)
