"""FedLD: rounds with the projections written out in NumPy, each half alone, and what the aggregation leaves alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, START, X, batches, cohort, gradient, run, same

import fedloom as fl
from fedloom.methods.optimisation.fedld import principal
from fedloom.vector import Layout

PENALTY = 0.7
TENSORS = (slice(0, 9), slice(9, 12))  # the weight and the bias of the softmax regression


def margin_gradient(w: np.ndarray, i: int, rows: list[int], on: str) -> np.ndarray:
    """Of the mean over a batch of log(1 + ||v||^2), v the probabilities or the logits."""
    x = X[i][rows]
    z = x @ w[:9].reshape(3, 3).T + w[9:]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    s = (p**2).sum(1, keepdims=True)
    d = 2 * p * (p - s) / (1 + s) if on == "softmax" else 2 * z / (1 + (z**2).sum(1, keepdims=True))
    return np.concatenate([(d.T @ x).ravel(), d.sum(0)]) / len(rows)


def trained(w: np.ndarray, i: int, round: int, penalty: float, on: str) -> np.ndarray:
    m = np.zeros_like(w)
    for rows in batches(i, round):
        g = gradient(w, i, rows) + penalty * margin_gradient(w, i, rows, on)
        m = 0.5 * m + g + 0.01 * w
        w = w - SGD.lr * m
    return w


def projected(g: np.ndarray, k: int) -> np.ndarray:
    """The paper's steps one after the other, for one tensor: g (S, d_l)."""
    e, s, _ = np.linalg.svd(g @ g.T / len(g))
    new = np.zeros_like(g)
    for j in range(k):
        w = g.T @ e[:, j]
        for i in range(len(g)):
            on_w = (g[i] @ w) / (w @ w) * w
            new[i] += on_w / np.linalg.norm(on_w) * s[j] / s.sum() * np.linalg.norm(g[i])
    return new.mean(0)


@pytest.mark.parametrize(("on", "directions", "k"), [("softmax", 0.8, 2), ("logits", 0.2, 1), ("softmax", 1.0, 3)])
def test_three_rounds(on, directions, k):
    x = START
    for r in range(3):
        moved = np.array([trained(x, i, r, PENALTY, on) - x for i in cohort(r, 3)])
        update = moved.mean(0)
        if r > 0:
            update = np.concatenate([projected(moved[:, at], k) for at in TENSORS])
        x = x + update
    solver = replace(SGD, momentum=0.5, weight_decay=0.01)
    same(run(fl.FedLD(3, solver, PENALTY, on, directions), rounds=3).params, x, 1e-10)


def test_without_both_it_is_fedavg():
    plain = run(fl.FedAvg(cohort=3, solver=SGD, weight="uniform"), rounds=3).params.numpy()
    same(run(fl.FedLD(3, SGD, penalty=0.0, directions=None), rounds=3).params, plain)
    assert np.abs(run(fl.FedLD(3, SGD, penalty=0.0), rounds=3).params.numpy() - plain).max() > 1e-3
    assert np.abs(run(fl.FedLD(3, SGD, directions=None), rounds=3).params.numpy() - plain).max() > 1e-3


UPDATES = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.3


def test_clients_that_agree_get_what_they_sent():
    g = UPDATES[0].expand(4, 7)
    torch.testing.assert_close(principal(g, 3), UPDATES[0])
    torch.testing.assert_close(principal(g.float(), 3), UPDATES[0].float())
    torch.testing.assert_close(principal(UPDATES[:1], 1), UPDATES[0])


def test_it_does_not_depend_on_the_order_of_clients():
    torch.testing.assert_close(principal(UPDATES[[3, 0, 4, 2, 1]], 4), principal(UPDATES, 4))


def test_it_turns_with_the_updates():
    turn, _ = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    torch.testing.assert_close(principal(UPDATES @ turn, 4), principal(UPDATES, 4) @ turn)


def test_it_grows_with_the_updates():
    torch.testing.assert_close(principal(100 * UPDATES, 4), 100 * principal(UPDATES, 4))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_updates_of_16_bits_are_projected_in_32(kind):
    updates = (100 * UPDATES).to(kind)
    torch.testing.assert_close(principal(updates, 4), principal(updates.float(), 4))
    layout = Layout({"weight": (7,)})
    update = fl.FedLD().combined(updates, layout)
    torch.testing.assert_close(update, principal(updates, 4).to(kind))


def test_who_points_elsewhere_is_turned_and_not_shortened():
    """Three along one axis and a short one along another: the single direction carries the lengths of all."""
    g = torch.tensor([[2.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0], [0.1, 0.1, 0]], dtype=torch.float64)
    got = principal(g, 1)
    share = float(torch.linalg.eigvalsh(g @ g.T)[-1] / (g * g).sum())
    assert float(got.norm()) == pytest.approx(share * float(g.norm(dim=1).mean()))
    assert got[0] > 0


def test_those_who_stood_still_or_are_at_right_angles():
    assert torch.equal(principal(torch.zeros(3, 4), 2), torch.zeros(4))
    apart = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # along each direction there is one client
    torch.testing.assert_close(principal(apart, 2), torch.tensor([3 * 0.9 / 2, 0.1 / 2], dtype=torch.float64))


def test_statistics_and_single_numbers_take_the_mean():
    layout = Layout({"weight": (2, 2), "scale": (1,)}, buffers={"running_mean": (2,)})
    update = fl.FedLD(directions=1.0).combined(UPDATES, layout)
    torch.testing.assert_close(update[4:], UPDATES.mean(0)[4:])
    torch.testing.assert_close(update[:4], principal(UPDATES[:, :4], 5))


@pytest.mark.parametrize("wrong", [{"penalty": -1.0}, {"directions": 0.0}, {"directions": 1.5}, {"on": "margins"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match=r"FedLD|softmax"):
        fl.FedLD(**wrong)
