"""A model is a vector: all of a network's trainable parameters (and, where asked, its buffers) in one flat tensor."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .errors import unknown


class Layout:
    """Names and shapes of the pieces of a flat vector `(d,)`, in canonical order.

    `layout.tree(v)` gives named views (no copies), `layout.vector(tree)` the way back, `layout.where("*lora_A*")` a
    boolean selection. The first `trainable` entries take gradients; the rest are buffers (running statistics), which
    training writes but no gradient moves.
    """

    __slots__ = ("_key", "offsets", "shapes", "size", "trainable")

    def __init__(self, shapes: Mapping[str, Iterable[int]], buffers: Mapping[str, Iterable[int]] | None = None) -> None:
        self.shapes = {n: torch.Size(s) for n, s in (*shapes.items(), *(buffers or {}).items())}
        self.offsets: dict[str, int] = {}
        at = 0
        for name, shape in self.shapes.items():
            self.offsets[name] = at
            at += math.prod(shape)
        self.size = at
        self.trainable = sum(math.prod(self.shapes[n]) for n in shapes)
        self._key = (self.trainable, *self.shapes.items())

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    def span(self, name: str) -> slice:
        """Where a piece lies in the vector.

        Raises:
            ConfigError: no such piece, with the nearest names.
        """
        if name not in self.shapes:
            raise unknown("parameter", name, self.shapes)
        at = self.offsets[name]
        return slice(at, at + math.prod(self.shapes[name]))

    def view(self, vector: Tensor, name: str) -> Tensor:
        """One named piece of `(..., d)` as `(..., *shape)`, sharing memory."""
        return vector[..., self.span(name)].view((*vector.shape[:-1], *self.shapes[name]))

    def tree(self, vector: Tensor) -> dict[str, Tensor]:
        """Named views of a vector `(..., d)`; each is `(..., *shape)`."""
        lead = vector.shape[:-1]
        pieces = torch.split(vector, [math.prod(s) for s in self.shapes.values()], dim=-1)
        return {n: p.view((*lead, *s)) for (n, s), p in zip(self.shapes.items(), pieces)}

    def vector(self, tree: Mapping[str, Tensor]) -> Tensor:
        """The flat vector of named tensors `(*shape)`, copied."""
        return torch.cat([tree[n].reshape(-1) for n in self.shapes])

    def keep_statistics(self, moved: Tensor, mean: Tensor) -> Tensor:
        """`moved` `(d,)` with the running statistics of `mean` `(d,)`.

        A server's step, its momentum or its moments are for weights. Statistics are averaged and nothing else: carried
        on along their last way, a variance becomes negative.
        """
        if self.trainable == self.size:
            return moved
        return torch.cat([moved[: self.trainable], mean[self.trainable :]])

    def mean_statistics(
        self, moved: Tensor, before: Tensor, models: Iterable[Tensor], shares: Iterable[float]
    ) -> Tensor:
        """`moved` `(d,)` with running statistics between those of `before` and of `models`, all `(d,)`.

        From `before` they go towards each model by its share, >= 0, and by less where shares add up to more than 1. So
        they remain a mean, whatever the weights of a step and however old what its clients began with.
        """
        if self.trainable == self.size:
            return moved
        old, weights = before[self.trainable :], list(shares)
        whole = max(1.0, sum(weights))
        ways = [share / whole * (model[self.trainable :] - old) for model, share in zip(models, weights)]
        return torch.cat([moved[: self.trainable], sum(ways, old)])

    def where(self, *patterns: str) -> Tensor:
        """Boolean `(d,)`: entries of the pieces whose name matches any shell pattern (`"*.bias"`, `"head.*"`).

        Raises:
            ConfigError: a pattern matches no name.
        """
        chosen = torch.zeros(self.size, dtype=torch.bool)
        for pattern in patterns:
            names = [n for n in self.shapes if fnmatch.fnmatchcase(n, pattern)]
            if not names:
                raise unknown("parameter pattern", pattern, self.shapes)
            for name in names:
                chosen[self.span(name)] = True
        return chosen

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def key(self) -> tuple[object, ...]:
        return self._key

    def __repr__(self) -> str:
        return f"Layout({len(self.shapes)} tensors, {self.size:,} numbers)"


def joined(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """A vector `(d,)` whose entries under a boolean mask are `inside` `(m,)` and the others `outside` `(d - m,)`."""
    whole = inside.new_empty(mask.shape)
    whole[mask], whole[~mask] = inside, outside
    return whole


def zeros(like: Tensor) -> Tensor:
    """A zero vector of this shape that takes no memory: what a client holds before it holds anything."""
    return like.new_zeros(1).expand_as(like)
