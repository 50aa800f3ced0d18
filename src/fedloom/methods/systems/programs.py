"""Server-side programs: vectors other than a network's weights that are learned on data of the server's own.

A weight program makes the weights of one network out of those of another: each tensor is convolved with a filter of its
own, without padding, so that a large one becomes a small one; the transposed convolution makes a large one of it again.

    filter = size * direction / |direction|,   as long as the sizes differ plus one, along outputs and inputs
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.data.fields import Data
from fedloom.training import Adam
from fedloom.training.request import Schedule
from fedloom.vector import Layout


def learn(
    vector: Tensor, loss: Callable[[Tensor, Data], Tensor], data: Data, solver: Adam, rng: torch.Generator
) -> Tensor:
    """Where Adam's steps on `loss(vector, batch)` lead, a number that is differentiable in `vector` (any shape).

    Batches are epochs of shuffled `data`; a solver without steps gives the vector back.
    """
    v = vector.clone().requires_grad_()
    adam = torch.optim.AdamW([v], lr=solver.lr, betas=solver.betas, eps=solver.eps, weight_decay=solver.weight_decay)
    steps = solver.work(len(data))
    schedule = Schedule.epochs(len(data), solver.batch_size, steps, rng)
    for rows, count in zip(schedule.index[:steps], schedule.counts):
        with torch.enable_grad():
            (v.grad,) = torch.autograd.grad(loss(v, data.rows(rows[:count])), (v,))
        if solver.clip is not None:
            torch.nn.utils.clip_grad_norm_([v], solver.clip)
        adam.step()
    return v.detach()


# ---------------------------------------------------------------- weights out of weights


def program(big: Layout, small: Layout) -> Layout:
    """The filters between two networks of one kind: for a tensor of so many kernel positions (1 unless it convolves)
    a `direction` `(positions, outputs, inputs)` and a `size` `(positions,)`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in big.shapes.items():
        (m, n, positions), (a, b, _) = _planes(shape), _planes(small.shapes[name])
        shapes[f"{name}.direction"] = (positions, m - a + 1, n - b + 1)
        shapes[f"{name}.size"] = (positions,)
    return Layout(shapes)


def first_of(filters: Layout, like: Tensor) -> Tensor:
    """The program that keeps the first outputs and inputs of every tensor, and puts them back there."""
    vector = like.new_zeros(filters.size)
    for piece in filters.tree(vector).values():
        piece[..., *[0] * (piece.dim() - 1)] = 1.0
    return vector


def compressed(vector: Tensor, w: Tensor, big: Layout, small: Layout) -> Tensor:
    """The small network's vector, differentiable in the program and in `w`."""
    return _applied(F.conv2d, vector, w, program(big, small), big, small)


def dilated(vector: Tensor, w: Tensor, big: Layout, small: Layout) -> Tensor:
    """The large network's vector out of a small one's, differentiable in the program and in `w`."""
    return _applied(F.conv_transpose2d, vector, w, program(big, small), small, big)


def _applied(
    convolve: Callable[..., Tensor], vector: Tensor, w: Tensor, filters: Layout, before: Layout, after: Layout
) -> Tensor:
    parts, made = filters.tree(vector), {}
    for name, piece in before.tree(w).items():
        outputs, inputs, positions = _planes(piece.shape)
        planes = piece.reshape(outputs, inputs, positions).permute(2, 0, 1)
        direction = parts[f"{name}.direction"]
        norm = direction.flatten(1).norm(dim=1)
        kernel = direction * (parts[f"{name}.size"] / norm).view(-1, 1, 1)
        out = convolve(planes.unsqueeze(0), kernel.unsqueeze(1), groups=positions)[0]
        made[name] = out.permute(1, 2, 0).reshape(after.shapes[name])
    return after.vector(made)


def _planes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Outputs, inputs, and kernel positions of a tensor; a bias has one input, a number one output, too."""
    outputs, inputs, *kernel = (*shape, 1, 1)[: max(2, len(shape))]
    return outputs, inputs, math.prod(kernel)
