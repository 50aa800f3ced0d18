"""Step hooks several methods share: plain functions of tensors; what they need comes in `extras`.

Each is a linear combination of vectors, so it is recognised and fused with the update (see `symbols`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def proximal(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) + mu (w - anchor): the pull of `mu / 2 ||w - anchor||^2`."""
    return f.grad(w) + extras["mu"] * (w - extras["anchor"]), carry


def shifted(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) + shift: a constant correction of drift."""
    return f.grad(w) + extras["shift"], carry


def dynamic(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """grad f(w) - linear + alpha (w - anchor): a proximal step with a linear term of the client's own."""
    return f.grad(w) - extras["linear"] + extras["alpha"] * (w - extras["anchor"]), carry
