"""FedLEx: masks by hand, exploration and rounds in NumPy, both ends of the mask, and its control."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import SGD, SIZES, START, N, Softmax, X, Y, cohort, gradient, run, same, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.methods.optimisation import fedlex
from fedloom.methods.optimisation.fedlex import scaled
from fedloom.training.request import Schedule
from fedloom.vector import Layout

METHOD = fl.FedLex(cohort=3, solver=SGD, scouts=0.5, explore=3, patience=1)


def loss(w, i, rows):
    z = X[i][rows] @ w[:9].reshape(3, 3).T + w[9:]
    return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(rows)), Y[i][rows]])


def explored(i: int, explore: int, patience: int) -> np.ndarray:
    """A scout's weights after its epochs of the first round."""
    w, lowest, waited = START, np.inf, 0
    for e in range(explore):
        purpose = ("order", "", e) if e else ("order",)
        steps = -(-SIZES[i] // SGD.batch_size)
        order = Schedule.epochs(SIZES[i], SGD.batch_size, steps, generator(0, *purpose, i, 0, 0))
        seen = []
        for k in range(steps):
            rows = order.index[k, : order.counts[k]].tolist()
            seen.append(loss(w, i, rows))
            w = w - SGD.lr * gradient(w, i, rows)
        told = np.mean(seen)
        waited = 0 if told < lowest else waited + 1
        lowest = min(lowest, told)
        if waited >= patience:
            break
    return w


def by_tensor(spread: np.ndarray) -> np.ndarray:
    parts = [spread[:9], spread[9:]]
    return np.concatenate([(p - p.min()) / (p.max() - p.min()) for p in parts])


def worked_out(rounds: int, explore: int, patience: int) -> tuple[np.ndarray, np.ndarray]:
    scouts = cohort(0, 2)
    mask = by_tensor(np.mean([(explored(i, explore, patience) - START) ** 2 for i in scouts], axis=0))
    x = START
    for r in range(1, rounds):
        chosen, moves = cohort(r, 3), []
        for i in chosen:
            y = x
            order = Schedule.epochs(SIZES[i], SGD.batch_size, SGD.work(SIZES[i]), generator(0, "order", i, r, 0))
            for k in range(SGD.work(SIZES[i])):
                y = y - SGD.lr * mask * gradient(y, i, order.index[k, : order.counts[k]].tolist())
            moves.append(y - x)
        x = x + (N[chosen] / N[chosen].sum()) @ np.array(moves)
    return x, mask


@pytest.mark.parametrize(("explore", "patience"), [(1, 1), (3, 1), (6, 2)])
def test_rounds(explore, patience):
    x, mask = worked_out(4, explore, patience)
    done = run(fl.FedLex(cohort=3, solver=SGD, scouts=0.5, explore=explore, patience=patience), rounds=4)
    same(done.state.mask, mask, 1e-9)
    same(done.params, x, 1e-9)


def test_the_first_round_only_explores():
    same(run(METHOD, rounds=1).params, START, 0)


@pytest.mark.parametrize(("scouts", "many"), [(0.28, 14), (0.281, 15), (0.001, 1), (1.0, 50)])
def test_a_share_of_the_clients_explores(scouts, many):
    """28 % of 50 are 14, and 0.28 * 50 is a rounding more."""
    parts = [(torch.from_numpy(X[3]), torch.from_numpy(Y[3]))] * 50
    federation = fl.Federation.from_clients(parts, client_test=0.0, classes=3)
    method, task = replace(METHOD, scouts=scouts, explore=1), fl.Classification(model=Softmax)
    done = fl.run(method, task, federation, 1, engine="sequential", dtype=torch.float64, evaluate_every=0)
    assert done.rows[0]["replies"] == many


def test_masks():
    layout = Layout({"a": (2, 2), "b": (3,), "c": (1,)}, {"running": (2,)})
    spread = torch.tensor([1.0, 3.0, 2.0, 5.0, 7.0, 7.0, 7.0, 4.0, 9.0, 8.0])
    assert scaled(layout, spread).tolist() == [0.0, 0.5, 0.25, 1.0, 1, 1, 1, 1, 1, 1]
    mixed = scaled(layout, spread, generator(3))
    assert sorted(mixed[:4].tolist()) == [0.0, 0.25, 0.5, 1.0]
    with pytest.raises(fl.FedloomError, match="scouts sent"):
        scaled(layout, spread[:4])


def test_two_scouts_spread_is_the_mean_square():
    scouts = cohort(0, 2)
    ends = [explored(i, 1, 1) for i in scouts]
    spread = ((ends[0] - START) ** 2 + (ends[1] - START) ** 2) / 2
    done = run(fl.FedLex(cohort=3, solver=SGD, scouts=0.5, explore=1, patience=1), rounds=1)
    same(done.state.mask, by_tensor(spread), 1e-9)


@pytest.mark.parametrize(("value", "expected"), [(1.0, "fedavg"), (0.0, "start")])
def test_the_ends_of_the_mask(monkeypatch, value, expected):
    monkeypatch.setattr(fedlex, "scaled", lambda layout, spread, shuffle=None: torch.full_like(spread, value))
    done = run(METHOD, rounds=3)
    x = START
    for r in (1, 2):
        chosen = cohort(r, 3)
        x = x + (N[chosen] / N[chosen].sum()) @ np.array([trained(x, i, r) - x for i in chosen])
    same(done.params, x if expected == "fedavg" else START)


def test_the_control_has_the_same_values_elsewhere():
    plain, control = (run(replace(METHOD, shuffled=s), rounds=1).state.mask for s in (False, True))
    assert not torch.equal(plain, control)
    torch.testing.assert_close(plain[:9].sort().values, control[:9].sort().values)
    torch.testing.assert_close(plain[9:].sort().values, control[9:].sort().values)


def test_the_control_is_the_same_when_it_is_run_again():
    control = replace(METHOD, shuffled=True)
    same(run(control, rounds=1).state.mask, run(control, rounds=1).state.mask.numpy(), 0)


def test_scouts_explore_by_epochs_where_the_solver_counts_steps():
    few = replace(METHOD, solver=replace(SGD, steps=1))
    same(run(few, rounds=1).state.mask, run(METHOD, rounds=1).state.mask.numpy(), 0)


def test_the_mask_is_sent_once():
    done = run(METHOD, rounds=6)
    d = 12 * 8
    assert done.host.ledger.down == (2 + 5 * 3) * d + len(done.host.holds) * d


@pytest.mark.parametrize("wrong", [{"scouts": 0.0}, {"scouts": 1.5}, {"explore": 0}, {"patience": 0}])
def test_wrong_options(wrong):
    with pytest.raises(fl.FedloomError, match="FedLex"):
        fl.FedLex(**wrong)
