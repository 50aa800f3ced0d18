"""Problems with known answers, for tests of theory: heterogeneous quadratics, one per client.

problem = quadratics(clients=5, dim=3)
run = fl.run(FedAvg(cohort=5, solver=SGD(lr=0.1, steps=4)), problem.task, problem.federation, dtype=torch.float64)
run.params - problem.optimum
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.data import Data, Federation
from fedloom.keyed import generator
from fedloom.message import Message
from fedloom.task import Metric, Task


class Point(nn.Module):
    """A network whose parameters are a point `w` `(dim,)` and whose output is that point, one row per sample."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


@dataclass(frozen=True)
class Mean(Metric):
    """The mean objective over the samples, as `loss`."""

    def count(self, scores: Tensor, batch: Data) -> Message:
        return Message(n=float(len(batch)), loss=float(quadratic(scores, batch).sum()))

    def finish(self, total: Message) -> dict[str, float]:
        return {"loss": total.loss / max(total.n, 1.0)}


@dataclass(frozen=True)
class QuadraticTask(Task):
    """The loss of a sample (A, b) at w is `0.5 (w - b)^T A (w - b)`."""

    metrics: tuple[Metric, ...] = (Mean(),)
    higher: str = "loss"

    def losses(self, scores: Any, batch: Data) -> Tensor:
        return quadratic(scores, batch)

    def check(self, data: Data) -> None:
        return None

    @property
    def headline(self) -> tuple[str, int]:
        return "loss", -1


def quadratic(w: Tensor, batch: Data) -> Tensor:
    """`0.5 (w - b)^T A (w - b)` per sample: w `(n, dim)`, x holds b `(n, dim)`, a holds A `(n, dim, dim)`."""
    gap = w - batch.x
    return 0.5 * torch.einsum("ni,nij,nj->n", gap, batch.a, gap)


@dataclass(frozen=True, eq=False)
class Quadratics:
    """f_i(w) = 0.5 (w - b_i)^T A_i (w - b_i) at client i, which holds `samples[i]` copies of (A_i, b_i).

    Attributes:
        a: `(clients, dim, dim)`, symmetric, eigenvalues in a known range; b: `(clients, dim)`.
        samples: copies held, the client's weight where methods weight by samples.
        start: the initial point `(dim,)`.
    """

    a: Tensor
    b: Tensor
    samples: tuple[int, ...]
    start: Tensor

    @cached_property
    def optimum(self) -> Tensor:
        """The minimiser `(dim,)` of the mean of f_i weighted with samples: where FedAvg of one step ends."""
        return self.minimiser(torch.tensor(self.samples, dtype=self.a.dtype))

    @cached_property
    def unweighted_optimum(self) -> Tensor:
        """The minimiser of the plain mean of f_i."""
        return self.minimiser(torch.ones(len(self.samples), dtype=self.a.dtype))

    def minimiser(self, weights: Tensor) -> Tensor:
        """Of `sum_i weights_i f_i`: `(sum w_i A_i)^-1 sum w_i A_i b_i`."""
        left = torch.einsum("n,nij->ij", weights, self.a)
        right = torch.einsum("n,nij,nj->i", weights, self.a, self.b)
        return torch.linalg.solve(left, right)

    def gradient(self, client: int, w: Tensor) -> Tensor:
        """Of f_client at w."""
        return self.a[client] @ (w - self.b[client])

    def value(self, w: Tensor) -> float:
        """The objective whose minimiser is `optimum`."""
        share = torch.tensor(self.samples, dtype=self.a.dtype)
        gap = w - self.b
        each = 0.5 * torch.einsum("ni,nij,nj->n", gap, self.a, gap)
        return float((share / share.sum()) @ each)

    @property
    def task(self) -> QuadraticTask:
        return QuadraticTask(model=Point(self.start))

    @cached_property
    def federation(self) -> Federation:
        clients = [
            Data(x=b.expand(n, -1).contiguous(), a=a.expand(n, -1, -1).contiguous())
            for a, b, n in zip(self.a, self.b, self.samples)
        ]
        return Federation.from_clients(clients, test=Data.cat(clients), client_test=0.0, name="quadratics")


def quadratics(
    clients: int = 5,
    dim: int = 3,
    *,
    samples: tuple[int, ...] | None = None,
    curvature: tuple[float, float] = (0.5, 2.0),
    spread: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Quadratics:
    """Random quadratics whose Hessians and minimisers differ from client to client.

    Args:
        samples: copies each client holds; default 1, 2, 3, ... (unequal weights).
        curvature: (mu, L): every A_i has these as its smallest and largest eigenvalue (dim >= 2).
        spread: standard deviation of the minimisers b_i; 0 makes the clients agree on theirs.
    """
    rng = generator(seed, "quadratics")
    low, high = curvature
    eigenvalues = torch.linspace(low, high, dim, dtype=dtype)
    a = []
    for _ in range(clients):
        q, _r = torch.linalg.qr(torch.randn(dim, dim, generator=rng, dtype=dtype))
        a.append(q @ torch.diag(eigenvalues) @ q.T)
    b = 1.0 + spread * torch.randn(clients, dim, generator=rng, dtype=dtype)  # not centred: signs would cancel
    return Quadratics(torch.stack(a), b, samples or tuple(range(1, clients + 1)), torch.zeros(dim, dtype=dtype))
