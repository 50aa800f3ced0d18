"""What a gradient becomes, step by step: `target <- beta * target + alpha * gradient`.

| sink | target | used for |
|---|---|---|
| `Fused` | the weights themselves: no gradient tensor is ever built | SGD, decay, proximal terms, shifts |
| `Moving` | a velocity, which moves the weights afterwards | heavy-ball momentum |
| `Explicit` | the gradient, built (`beta = 0`) | Adam, and any step hook that is not affine |

`hold` keeps gradients back until the backward pass has ended, to scale them per client (clipping). Lazy dense layers
(`lazy.py`) never build weights at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .weight import Weight


class Sink(Protocol):
    """Where gradients of per-client weights go."""

    beta: float
    hold: bool

    def pair(self, w: Weight, x: Tensor, g: Tensor, beta: float) -> None:
        """`target <- beta * target + alpha * g^T x`, per client: x `(k, m, in)`, g `(k, m, out)`."""
        ...

    def dense(self, w: Weight, grad: Tensor, beta: float) -> None:
        """`target <- beta * target + alpha * grad`, grad `(k, *shape)`."""
        ...

    def nothing(self, w: Weight) -> None:
        """No gradient reached this weight in this step."""
        ...


class Fused:
    """Into the weights, at once."""

    def __init__(self, beta: float, alpha: float, hold: bool = False) -> None:
        self.beta, self.alpha, self.hold = beta, alpha, hold

    def target(self, w: Weight) -> Tensor:
        return w.stack

    def pair(self, w: Weight, x: Tensor, g: Tensor, beta: float) -> None:
        self.target(w).baddbmm_(g.mT, x, beta=beta, alpha=self.alpha)

    def dense(self, w: Weight, grad: Tensor, beta: float) -> None:
        target = self.target(w)
        if beta != 1:
            target.mul_(beta)
        target.add_(grad, alpha=self.alpha)

    def nothing(self, w: Weight) -> None:
        if self.beta != 1:
            self.target(w).mul_(self.beta)


class Moving(Fused):
    """Into blocks beside the weights, which last from step to step.

    Args:
        blocks: by name of the weight, `(n, *shape)` each.
    """

    def __init__(self, blocks: dict[str, Tensor], beta: float, alpha: float, hold: bool = False) -> None:
        super().__init__(beta, alpha, hold)
        self.blocks = blocks

    def target(self, w: Weight) -> Tensor:
        return self.blocks[w.name][: w.stack.shape[0]]


class Explicit:
    """Into tensors of their own, overwritten at every step.

    Args:
        blocks: by name of the weight, `(n, *shape)` each.
    """

    beta = 0.0

    def __init__(self, blocks: dict[str, Tensor], hold: bool = False) -> None:
        self.blocks, self.hold = blocks, hold

    def pair(self, w: Weight, x: Tensor, g: Tensor, beta: float) -> None:
        target = self.blocks[w.name][: w.stack.shape[0]]
        if target.is_contiguous() or target[0].numel() > 8192:
            target.baddbmm_(g.mT, x, beta=beta)
        elif beta:
            target.add_(torch.bmm(g.mT, x))
        else:  # into a strided target baddbmm is a loop over clients, which small layers feel
            target.copy_(torch.bmm(g.mT, x))

    def dense(self, w: Weight, grad: Tensor, beta: float) -> None:
        target = self.blocks[w.name][: w.stack.shape[0]]
        if beta:
            target.add_(grad)
        else:
            target.copy_(grad)

    def nothing(self, w: Weight) -> None:
        self.blocks[w.name][: w.stack.shape[0]].zero_()
