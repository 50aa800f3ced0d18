"""Per-client tensors that train: a weight hands its gradients to a sink, a token stands for the whole vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .fold import FOLD, NotStackable, field_of
from .perclient import PerClient
from .sinks import Sink

# A first layer's input needs no gradient; this scalar puts it into the graph all the same.
GRAPH = torch.zeros((), requires_grad=True)
INNER = "the loss takes a gradient of its own, as for adversarial samples"


class Weight(PerClient):
    """A trainable per-client tensor.

    Attributes:
        block: the values of all clients `(n, *shape)`; `stack` is the prefix of those that still train.
        sink: what becomes of a gradient.
        uses: how often this step's forward passes used it: an update in place must wait for the last.
    """

    sink: Sink

    def __init__(self, name: str, block: Tensor) -> None:
        self.name = name
        self.begin(block)

    def begin(self, block: Tensor) -> None:
        """These values, and nothing of a computation that was given up half-way."""
        self.block = self.stack = block
        self.uses, self.arrived = 0, False
        self.held: list[tuple[Tensor | None, Tensor]] = []
        self.leaf: Tensor | None = None

    def value(self) -> Tensor:
        if FOLD.notes is not None:
            FOLD.notes.other.add(self.name)
        if not torch.is_grad_enabled():
            self.uses += 1  # a view of it may be met by what is differentiated
            return self.stack
        if self.leaf is None:
            # .data has a version counter of its own: the blocks of other layers, views of the same memory, change
            # in place while the backward pass still holds this one.
            self.leaf = self.stack.data.requires_grad_()
            self.uses += 1
        return self.leaf

    def pair(self, x: Tensor, g: Tensor) -> None:
        if self.uses > 1 or self.sink.hold:
            self.held.append((x, g))
        else:
            self.sink.pair(self, x, g, self.sink.beta)
            self.arrived = True

    def dense(self, grad: Tensor) -> None:
        if self.uses > 1 or self.sink.hold:
            self.held.append((None, grad))
        else:
            self.sink.dense(self, grad, self.sink.beta)
            self.arrived = True

    def collect(self) -> None:
        """After the backward pass: what came through operators without a rule."""
        if self.leaf is not None and self.leaf.grad is not None:
            self.held.append((None, self.leaf.grad))
        self.leaf = None

    def square(self) -> Tensor | None:
        """Squared norm of the held gradient per client `(k,)`, without building it where it is a single pair."""
        if not self.held:
            return None
        if len(self.held) == 1 and (x := self.held[0][0]) is not None:
            g = self.held[0][1]
            return (torch.bmm(x, x.mT) * torch.bmm(g, g.mT)).sum((1, 2))
        total = _summed(self.held)
        self.held = [(None, total)]
        return total.reshape(len(total), -1).square().sum(1)

    def flush(self, scale: Tensor | None = None) -> None:
        """Hand over what was held back, times `scale` `(k,)`; a step without any gradient still decays."""
        if self.leaf is not None:
            self.collect()
        beta = self.sink.beta
        for x, g in self.held:
            if scale is not None:
                g = g * scale.view(-1, *[1] * (g.dim() - 1))
            if x is not None:
                self.sink.pair(self, x, g, beta)
            else:
                self.sink.dense(self, g, beta)
            beta, self.arrived = 1.0, True
        if not self.arrived:
            self.sink.nothing(self)
        if self.held:
            self.held = []
        self.uses, self.arrived = 0, False


def _summed(held: list[tuple[Tensor | None, Tensor]]) -> Tensor:
    total = None
    for x, g in held:
        grad = g if x is None else torch.bmm(g.mT, x)
        total = grad if total is None else total + grad
    assert total is not None
    return total


class Token(PerClient):
    """The weight vector `(d,)` a loss hook is given: what it hands to `model(w, x)`.

    Attributes:
        matrix: the vectors `(k, d)` where they exist as such; without it only a model can use the token.
    """

    def __init__(self, size: int, like: Tensor) -> None:
        self.length, self.like = size, like
        self.matrix: Tensor | None = None
        self.leaf: Tensor | None = None

    @property
    def stack(self) -> Tensor:  # type: ignore[override]
        if FOLD.notes is not None:
            FOLD.notes.direct = True
        if self.matrix is None:
            raise NotStackable("the loss uses the weight vector itself")
        return self.matrix

    def value(self) -> Tensor:
        if not torch.is_grad_enabled():
            return self.stack
        if self.leaf is None:
            self.leaf = self.stack.data.requires_grad_()
        return self.leaf

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.length,))

    @property
    def ndim(self) -> int:
        return 1

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.like.device


def used(*weights: PerClient | Tensor | None) -> None:
    """Count one use of each weight, where a gradient will come back."""
    if FOLD.notes is not None:
        FOLD.notes.other.update(w.name for w in weights if isinstance(w, Weight))
    if torch.is_grad_enabled():
        for w in weights:
            if isinstance(w, Weight):
                w.uses += 1


def used_densely(weight: Weight, bias: Any, input: Tensor) -> None:
    """Count one use by a dense layer given `input` `(k*B*..., in)`; a survey learns how many rows a sample has."""
    if FOLD.notes is None:
        return used(weight, bias)
    own = bias.name if isinstance(bias, Weight) else None
    if bias is not None and own is None:  # a bias that does not train
        FOLD.notes.other.add(weight.name)
    at, rows = (weight.name, own), input.shape[:-1].numel() / max(FOLD.sizes)
    FOLD.notes.dense[at] = FOLD.notes.dense.get(at, 0.0) + rows
    if (name := field_of(input)) is not None:
        FOLD.notes.inputs[at] = name


def once(grads: tuple[Tensor, ...]) -> Tensor:
    """The gradient of a rule's result, where backward runs for its own sake.

    Raises:
        NotStackable: the loss is still being computed (adversarial samples), so that this is no gradient to step along;
            or it is to be differentiated again (a gradient penalty), but weights have been changed by then.
    """
    if FOLD.sizes:
        raise NotStackable(INNER)
    if torch.is_grad_enabled():
        raise NotStackable("the loss takes a gradient of a gradient")
    return grads[0]
