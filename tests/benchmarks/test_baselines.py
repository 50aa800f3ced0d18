"""The baselines of the speed table are right: against NumPy by hand, and against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.baselines import R1, R2, longest_first, updates_of
from benchmarks.workloads import CUDA_WORKLOADS, WORKLOADS, Workload, flat, workload
from torch import Tensor, nn


class Tiny(nn.Linear):
    """3 -> 2, picklable, so that worker processes can build it too."""

    def __init__(self) -> None:
        super().__init__(3, 2)


def tiny(method: str = "fedavg", **fields: object) -> Workload:
    rng = np.random.default_rng(0)
    sizes = (5, 2, 1, 4)  # a last partial batch, a single batch, a single sample
    x = torch.from_numpy(rng.standard_normal((sum(sizes), 3)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 2, sum(sizes)))
    return Workload("tiny", "", Tiny, x, y, sizes, batch=2, lr=0.5, method=method, **fields)  # type: ignore[arg-type]


def by_hand(work: Workload, start: np.ndarray, rounds: int) -> np.ndarray:
    """FedAvg, FedProx or SCAFFOLD in float64: softmax regression's gradient is (p - onehot)^T [x, 1] / b.

    `start` and the result are `(2, 4)`: the weight with the bias as its last column.
    """
    x = np.concatenate([work.x.double().numpy(), np.ones((len(work.x), 1))], 1)
    y = np.eye(2)[work.y.numpy()]
    w, control, own = start, np.zeros_like(start), {i: np.zeros_like(start) for i in range(len(work.sizes))}
    for t in range(rounds):
        models, changes = [], []
        for i, order in zip(work.members(t), work.orders(t), strict=True):
            v, steps = w.copy(), 0
            for permutation in order.numpy():
                for at in range(0, work.sizes[i], work.batch):
                    rows = permutation[at : at + work.batch] + work.offsets[i]
                    z = np.exp(x[rows] @ v.T)
                    p = z / z.sum(1, keepdims=True)
                    g = (p - y[rows]).T @ x[rows] / len(rows) + work.mu * (v - w)
                    if work.method == "scaffold":
                        g = g + control - own[i]
                    v, steps = v - work.lr * g, steps + 1
            models.append(v)
            if work.method == "scaffold":
                new = own[i] - control + (w - v) / (steps * work.lr)
                changes.append(new - own[i])
                own[i] = new
        weights = None if work.method == "scaffold" else work.sizes
        w = np.average(models, axis=0, weights=weights)
        if changes:
            control = control + np.mean(changes, axis=0)
    return w


def as_matrix(weights: list[Tensor]) -> np.ndarray:
    weight, bias = (v.detach().double().numpy() for v in weights)
    return np.concatenate([weight, bias[:, None]], 1)


@pytest.mark.parametrize(
    ("method", "fields"),
    [("fedavg", {}), ("fedavg", {"epochs": 2}), ("fedprox", {"mu": 0.3}), ("scaffold", {})],
)
def test_r1_is_the_method(method: str, fields: dict[str, object]) -> None:
    work = tiny(method, **fields)
    loop = R1(work)
    start = as_matrix(loop.weights)
    for t in range(2):
        loop.round(work.members(t), work.orders(t))
    np.testing.assert_allclose(as_matrix(loop.weights), by_hand(work, start, 2), atol=2e-6)
    assert np.abs(as_matrix(loop.weights) - start).max() > 0.05


def test_r2_is_r1() -> None:
    """Every method in one pair of processes each; partial participation, so that clients change workers."""
    for method in ("fedavg", "fedprox", "scaffold"):
        work = tiny(method, mu=0.3 if method == "fedprox" else 0.0, cohort=3)
        one = R1(work)
        with R2(work) as two:
            for t in range(3):
                members, orders = work.members(t), work.orders(t)
                torch.testing.assert_close(
                    flat(two.round(members, orders)), flat(one.round(members, orders)), atol=1e-6, rtol=0
                )


def test_without_training() -> None:
    work = tiny("noop")
    loop = R1(work)
    start = flat(loop.weights)
    torch.testing.assert_close(flat(loop.round(work.members(0), work.orders(0))), start)
    work = tiny("sum")
    loop = R1(work)
    wanted = start + sum(
        n / 12 * flat(updates_of([w.shape for w in loop.weights], i)) for i, n in enumerate(work.sizes)
    )
    torch.testing.assert_close(flat(loop.round(work.members(0), work.orders(0))), wanted)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match=r"fedsomething.*fedavg, fedprox"):
        R1(tiny("fedsomething"))


def test_the_split_is_longest_first() -> None:
    work = tiny()  # steps 3, 1, 1, 2
    assert longest_first(work, [(0,), (1,), (2,), (3,)], 2) == [[(0,), (2,)], [(3,), (1,)]]


def test_the_workloads_are_what_they_say() -> None:
    parameters = {"leaf-cnn": 1_663_370, "small-cnn": 20_490, "mlp": 199_210, "softmax": 610}
    for name, count in parameters.items():
        assert sum(p.numel() for p in workload(name).module().parameters()) == count
    for name in WORKLOADS:
        work = workload(name)
        assert work.name == name
        assert sum(work.sizes) == len(work.x) == len(work.y)
        assert work.module()(work.x[:2]).shape == (2, 10)
        first, again = (flat(list(work.module().parameters())) for _ in range(2))
        assert torch.equal(first, again)
    assert set(CUDA_WORKLOADS) == {"cifar10"}
    with pytest.raises(KeyError, match="leaf-cnn"):
        workload("nonsense")


def test_orders_are_keyed_permutations() -> None:
    work = replace(tiny(), epochs=2)
    orders = work.orders(3)
    assert [tuple(o.shape) for o in orders] == [(2, n) for n in work.sizes]
    assert all(sorted(row.tolist()) == list(range(len(row))) for o in orders for row in o)
    assert all(torch.equal(a, b) for a, b in zip(orders, work.orders(3), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(orders, work.orders(4), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(orders, work.orders(3, seed=1), strict=True))
