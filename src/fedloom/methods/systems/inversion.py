"""Local training as a function of its data, and the way back: samples that would have led to a given update.

A guess is made of inputs and soft labels; both are moved until training on them gives the update. This is what an
attacker reconstructs clients' data with: a server that uses it sees more than sums, and must be trusted with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.errors import NotSupported
from fedloom.method import State
from fedloom.model import Model


@dataclass(frozen=True)
class Guess(State):
    """x: inputs `(m, ...)`; y: scores `(m, classes)` whose softmax are the labels."""

    x: Tensor
    y: Tensor


def first_guess(model: Model, w: Tensor, m: int, rng: torch.Generator) -> Guess:
    """`m` random inputs without a label.

    Raises:
        NotSupported: inputs that cannot be moved, such as tokens.
    """
    example = None if model.example is None else model.example[0]
    if example is None or not example.is_floating_point():
        raise NotSupported("gradient inversion moves inputs, so they are real numbers, and one is known to the model")
    x = torch.randn(m, *example.shape[1:], generator=rng, dtype=w.dtype).to(w.device)
    return Guess(x, w.new_zeros(m, model(w, x[:1]).shape[-1]))


def trained_on(model: Model, w: Tensor, guess: Guess, lr: float, steps: int) -> Tensor:
    """w `(d,)` after that many full gradient steps on the guess; differentiable in the guess."""
    labels = guess.y.softmax(1)
    w = w.detach().requires_grad_()
    for _ in range(steps):
        loss = -(labels * model(w, guess.x).log_softmax(1)).sum(1).mean()
        w = w - lr * torch.autograd.grad(loss, w, create_graph=True)[0]
    return w


def inverted(
    model: Model, w: Tensor, delta: Tensor, guess: Guess, lr: float, steps: int, keep: float, search: int, rate: float
) -> Guess:
    """The guess after `search` steps of Adam (`rate`, falling to 0) towards `trained_on(w, guess) - w = delta`.

    Args:
        delta: the update `(d,)` that training from w gave; the share `keep` of its largest entries is compared.
    """
    x, y = guess.x.clone().requires_grad_(), guess.y.clone().requires_grad_()
    largest = delta.abs().topk(max(1, round(keep * len(delta)))).indices
    adam = torch.optim.Adam([x, y], lr=rate)
    for k in range(search):
        adam.param_groups[0]["lr"] = rate * (1 - k / search)
        gap = (trained_on(model, w, Guess(x, y), lr, steps) - w - delta)[largest].abs().sum()
        x.grad, y.grad = torch.autograd.grad(gap, (x, y))
        adam.step()
    return Guess(x.detach(), y.detach())


def unique(delta: Tensor, fresh: Sequence[Tensor]) -> bool:
    """Whether an update is further from its nearest fresh one than these are, on average, from theirs (cosine)."""
    if len(fresh) < 2:
        return True
    f = F.normalize(torch.stack(list(fresh)), dim=1)
    among = (1 - f @ f.T).fill_diagonal_(math.inf)
    return bool((1 - f @ F.normalize(delta, dim=0)).min() > among.min(1).values.mean())
