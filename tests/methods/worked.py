"""What tests of methods compare with: softmax regression in NumPy, and fixed points of local descent on quadratics.

Nothing here calls Fedloom to train: only the order of batches is taken from it, by its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fedloom as fl
from fedloom.keyed import choose, generator
from fedloom.testing.problems import Quadratics
from fedloom.training.request import Schedule

Vector = np.ndarray
TIGHT = 1e-12

# ------------------------------------------------------------------------------------------- softmax regression

SIZES = (7, 2, 5, 1)
"""Samples of four clients: none alike, one with a single sample, batches of 3 leave partial ones."""

SGD = fl.SGD(lr=0.2, epochs=2, batch_size=3)

_rng = np.random.default_rng(7)
X = [_rng.normal(i - 1.0, 1.0 + i, (n, 3)) for i, n in enumerate(SIZES)]
Y = [(np.arange(n) + i) % 3 for i, n in enumerate(SIZES)]
START = np.array([0.1, -0.2, 0.3, 0.0, 0.4, -0.1, -0.3, 0.2, 0.5, 0.05, -0.1, 0.2])
N = np.array(SIZES, dtype=float)


class Softmax(nn.Linear):
    """Three features, three classes, weights that are not zero."""

    def __init__(self) -> None:
        super().__init__(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(START[:9].reshape(3, 3)))
            self.bias.copy_(torch.from_numpy(START[9:]))


def federation(ids: Sequence[int] = range(4)) -> fl.Federation:
    """The clients, or some of them."""
    parts = [(torch.from_numpy(X[i]), torch.from_numpy(Y[i])) for i in ids]
    return fl.Federation.from_clients(parts, client_test=0.0, ordered=True, classes=3)


def run(method: fl.Method, rounds: int = 2, ids: Sequence[int] = range(4), **options: Any) -> fl.Run:
    """One by one, in float64, judged by nobody."""
    options = {"engine": "sequential", "dtype": torch.float64, "evaluate_every": 0, **options}
    return fl.run(method, fl.Classification(model=Softmax), federation(ids), rounds=rounds, **options)


def gradient(w: Vector, i: int, rows: Sequence[int] | slice = slice(None)) -> Vector:
    """Of client i's mean cross entropy over some of its samples."""
    x, y = X[i][rows], Y[i][rows]
    z = x @ w[:9].reshape(3, 3).T + w[9:]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return np.concatenate([(p.T @ x).ravel(), p.sum(0)]) / len(y)


def batches(i: int, round: int, solver: fl.Solver = SGD, steps: int | None = None, turn: int = 0) -> list[list[int]]:
    """The rows of each step of a client's `turn`-th job in a round of seed 0."""
    steps = solver.work(SIZES[i]) if steps is None else steps
    order = Schedule.epochs(SIZES[i], solver.batch_size, steps, generator(0, "order", i, round, turn))
    return [order.index[k, : order.counts[k]].tolist() for k in range(steps)]


def trained(
    w: Vector,
    i: int,
    round: int,
    solver: fl.SGD = SGD,
    steps: int | None = None,
    add: Callable[[Vector], Vector] | None = None,
    turn: int = 0,
) -> Vector:
    """Client i's model after its local work from w; `add(w)` is added to each batch gradient."""
    m = np.zeros_like(w)
    for rows in batches(i, round, solver, steps, turn):
        g = gradient(w, i, rows)
        if solver.clip:
            g = g * min(1.0, solver.clip / np.linalg.norm(g))
        m = solver.momentum * m + g + solver.weight_decay * w + (add(w) if add else 0.0)
        w = w - solver.lr * m
    return w


def cohort(round: int, k: int, n: int = 4) -> list[int]:
    """Who is drawn in a round of seed 0."""
    return choose(n, k, 0, "sample", round, 0)


def same(a: Tensor | None, b: Vector, tolerance: float = TIGHT) -> None:
    """Equal up to rounding in float64."""
    assert a is not None
    np.testing.assert_allclose(a.numpy(), b, rtol=0, atol=tolerance)


# --------------------------------------------------------------------------------------------------- quadratics


def covered(q: Quadratics, lr: float, steps: int | Sequence[int], pull: float = 0.0) -> Quadratics:
    """The problem whose optimum is where local gradient descent from one point balances.

    In K steps client i covers I - (I - lr A_i)^K of the way to b_i; that, and not A_i, is what a mean of local models
    weighs with. `pull` is that of a proximal term: the way then leads to (A_i + pull)^-1 (A_i b_i + pull x).
    """
    counts = [steps] * len(q.a) if isinstance(steps, int) else steps
    one = torch.eye(q.a.shape[1], dtype=q.a.dtype)
    shares = []
    for a, k in zip(q.a, counts):
        h = a + pull * one
        shares.append(torch.linalg.solve(h, a) @ (one - torch.linalg.matrix_power(one - lr * h, k)))
    return replace(q, a=torch.stack(shares))


def end(q: Quadratics, method: fl.Method, rounds: int, **options: Any) -> Tensor:
    """Where a method is after some rounds on quadratics."""
    options = {"engine": "sequential", "dtype": torch.float64, "evaluate_every": 0, **options}
    params = fl.run(method, q.task, q.federation, rounds=rounds, **options).params
    assert params is not None
    return params


def far(a: Tensor, b: Tensor) -> float:
    """Their distance."""
    return float((a - b).norm())
