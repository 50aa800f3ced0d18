"""What tests of methods compare with: softmax regression worked out in NumPy, and quadratics with known optima.

Nothing here calls Fedloom to train: only the order of batches is taken from it, by the documented keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fedloom as fl
from fedloom.keyed import choose, generator
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


class Point(nn.Module):
    """Its parameters are the point; what it gives for a row (curvature, centre) is the value there."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(d, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        a, c = x[:, 0], x[:, 1]
        return 0.5 * (a * (self.point - c) ** 2).sum(-1)


@dataclass(frozen=True)
class Value(fl.Task):
    """The loss is what the network gives."""

    def losses(self, scores: Tensor, batch: fl.Data) -> Tensor:
        return scores


class Quadratics:
    """Clients with f_i(x) = 1/2 sum_j a_ij (x_j - c_ij)^2 whose curvatures and centres differ.

    Attributes:
        a, c: `(n, d)`.
        p: weights of the clients in the sum, `(n,)`; client i has `samples[i]` equal samples.
        optimum: the minimiser of sum_i p_i f_i.
    """

    def __init__(self, n: int, d: int = 3, samples: Sequence[int] | None = None) -> None:
        rng = np.random.default_rng(n)
        self.a, self.c = rng.uniform(0.5, 2.0, (n, d)), rng.normal(0, 3, (n, d))
        self.samples = list(samples or [1] * n)
        self.p = np.array(self.samples) / sum(self.samples)
        self.optimum = self.minimiser(self.a)

    def minimiser(self, pull: Vector) -> Vector:
        """Where sum_i p_i pull_i (x - c_i) = 0, elementwise."""
        return (self.p[:, None] * pull * self.c).sum(0) / (self.p[:, None] * pull).sum(0)

    def covered(self, lr: float, steps: Vector | int) -> Vector:
        """The share of the way to c_i that gradient descent covers in that many steps, `(n, d)`."""
        return 1 - (1 - lr * self.a) ** np.broadcast_to(steps, len(self.a))[:, None]

    def run(self, method: fl.Method, rounds: int, **options: Any) -> fl.Run:
        parts = []
        for a, c, n in zip(self.a, self.c, self.samples):
            rows = torch.from_numpy(np.stack([a, c])).expand(n, 2, -1).clone()
            parts.append({"x": rows, "y": torch.zeros(n, dtype=torch.float64)})
        d = self.a.shape[1]
        data = fl.Federation.from_clients(parts, client_test=0.0, ordered=True)
        options = {"engine": "sequential", "dtype": torch.float64, "evaluate_every": 0, **options}
        return fl.run(method, Value(model=lambda: Point(d)), data, rounds=rounds, **options)

    def distance(self, method: fl.Method, rounds: int) -> float:
        """How far from the optimum a method ends."""
        params = self.run(method, rounds).params
        assert params is not None
        return float(np.linalg.norm(params.numpy() - self.optimum))
