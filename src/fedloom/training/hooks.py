"""Step hooks several methods share: plain functions of tensors; what they need comes in `extras`.

Those that are a linear combination of vectors are recognised and fused with the update (see `symbols`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def proximal(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) + mu (w - anchor): the pull of `mu / 2 ||w - anchor||^2`."""
    return f.grad(w) + extras["mu"] * (w - extras["anchor"]), carry


def shifted(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) + shift: a constant correction of drift."""
    return f.grad(w) + extras["shift"], carry


def controlled(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) - own + control: SCAFFOLD's correction by the client's control variate and the server's."""
    return f.grad(w) - extras["own"] + extras["control"], carry


def dynamic(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) - linear + alpha (w - anchor): a proximal step with a linear term of the client's own."""
    return f.grad(w) - extras["linear"] + extras["alpha"] * (w - extras["anchor"]), carry


def sharpness_aware(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w + rho g / ||g||) with g = grad f(w): SAM (Foret et al., ICLR 2021, eq. 3). Where g is zero, w itself.

    Two gradients on one batch; what moves is w, not the point uphill. The norm is over all weights together.
    """
    g = f.grad(w)
    norm = torch.linalg.vector_norm(g).clamp(min=torch.finfo(g.dtype).tiny)
    return f.grad(w + extras["rho"] * (g / norm)), carry


def auto_tuned(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """(eta_k / lr) grad f(w), so that a solver with step size `lr` moves by eta_k (Kim et al., ICLR 2024, alg. 1):

        eta_k = min(gamma ||w - w'|| / (2 ||g - g'||), sqrt(1 + delta theta_k-1) eta_k-1),    theta_k = eta_k / eta_k-1

    with w' the weights a step ago and g' the gradient there on the SAME batch. Where g = g' or w = w' only the second
    bound is left: rounding alone may turn a gradient that was taken twice. `tuning(...)` is the carry to start from.
    """
    g = f.grad(w)
    moved = torch.linalg.vector_norm(w - carry["before"])
    turned = torch.linalg.vector_norm(g - f.grad(carry["before"]))
    smooth = torch.where((turned > 0) & (moved > 0), extras["gamma"] * moved / (2 * turned), torch.inf)
    eta = torch.minimum(smooth, torch.sqrt(1 + extras["delta"] * carry["theta"]) * carry["eta"])
    return eta / extras["lr"] * g, {"before": w.clone(), "eta": eta, "theta": eta / carry["eta"]}


def tuning(start: Tensor, eta: float) -> dict[str, Tensor]:
    """What `auto_tuned` carries before step 0: with theta 0 and no way behind it, that step is `eta` long."""
    return {"before": start, "eta": start.new_tensor(eta), "theta": start.new_tensor(0.0)}
