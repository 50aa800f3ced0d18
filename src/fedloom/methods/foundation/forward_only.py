"""Training without backward passes: directions drawn from seeds, and how the loss changes along them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedloom.data.fields import Data
from fedloom.keyed import generator


def direction(seed: int, like: Tensor) -> Tensor:
    """z(seed) `(d,)`: drawn in float32 on the CPU, the same on every device."""
    return torch.randn(like.shape, generator=generator("direction", seed), dtype=torch.float32).to(like)


def undisturbed(model: Any, w: Tensor, batch: Data, extras: Any) -> Tensor:
    """The task's loss without dropout: both points must see the same network."""
    return model.eval().losses(w, batch)


def two_points(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """The direction g z(s_k), g the slope between two points on one batch; nothing is differentiated.

    extras: `seeds` of all steps, int64 `(tau,)`; `eps`, half the distance of the points; `clip`: a step whose losses
        differ by more, or are not finite, is skipped.
    carry: the g of all steps `(tau,)`, 0 for those to come.
    """
    z = direction(int(extras["seeds"][k]), w)
    high, low = f(w + extras["eps"] * z), f(w - extras["eps"] * z)
    fine = torch.isfinite(high - low) & ((high - low).abs() <= extras["clip"])
    g = torch.where(fine, (high - low) / (2 * extras["eps"]), torch.zeros_like(high))
    return g * z, torch.cat([carry[:k], g.view(1), carry[k + 1 :]])
