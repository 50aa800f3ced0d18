"""Learning from another model's outputs: samples that everybody can name, and losses, one value per sample, whose
targets are fields of the batch."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.data.fields import Data
from fedloom.errors import NotSupported
from fedloom.keyed import choose
from fedloom.task import Regression


def named(public: Data, size: int, *key: Hashable) -> Data:
    """`size` samples (all if there are fewer), the same at whoever has this data and this key."""
    return public.rows(torch.tensor(choose(len(public), min(size, len(public)), *key)))


def in_step(n: int, steps: int, batch: int, rng: torch.Generator) -> Tensor:
    """Positions `(steps, batch)` among n samples: shuffled epochs one after the other, in batches that are all full, so
    that private and public samples can be walked through side by side."""
    epochs = -(-steps * batch // max(n, 1))
    order = [torch.randperm(max(n, 1), generator=rng) for _ in range(epochs)]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *order])[: steps * batch].view(steps, batch)


def match_logits(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """Mean absolute difference to `batch.teacher` logits `(n, ..., C)`."""
    return (model(w, *model.task.inputs(batch)) - batch.teacher).abs().flatten(1).mean(1)


def match_softened(model: Any, w: Tensor, batch: Any, extras: Any) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), with `extras["temperature"]` = T > 0.

    The mean over positions, where there are any, of logits `(n, ..., C)`.

    Raises:
        NotSupported: outputs that are real numbers, of which a softmax means nothing.
    """
    if isinstance(model.task, Regression):
        raise NotSupported(
            "what is distilled are the chances of classes, and a regression's outputs are numbers: use a method that "
            "averages weights (fedavg), or compares outputs themselves (fedmd)"
        )
    t = extras["temperature"]
    student = F.log_softmax(model(w, *model.task.inputs(batch)) / t, -1)
    teacher = F.log_softmax(batch.teacher / t, -1)
    apart = t * t * (teacher.exp() * (teacher - student)).sum(-1)
    return apart.flatten(1).mean(1) if apart.dim() > 1 else apart
