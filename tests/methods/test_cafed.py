"""CA-Fed against NumPy, the error along the greedy passes, whom it leaves out, and its end with a huge kappa."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from orders import overheard
from presence import TABLE, UNEVEN, share_of_rounds
from worked import SGD, START, N, Softmax, X, Y, federation, run, same, trained

import fedloom as fl
from fedloom.methods.optimisation.activity import Activity

METHOD = fl.CaFed(solver=SGD, kappa=0.3)
A = N / N.sum()


def loss(w: np.ndarray, i: int) -> float:
    z = X[i] @ w[:9].reshape(3, 3).T + w[9:]
    return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), Y[i]]))


def error(q, pi, f, kappa, a=A):
    p = pi * q / (pi * q).sum()
    return p @ f + kappa * (0.5 * np.abs(a - p).sum()) ** 2 * f.max()


def correlations(rounds: int, prior: float) -> np.ndarray:
    """P(there | there) + P(away | away) - 1 with pseudo counts of independence, client by client."""
    pi = np.maximum(share_of_rounds(rounds), 1 / rounds)
    found = []
    for i in range(4):
        seen = [i in TABLE[r % len(TABLE)] for r in range(rounds)]
        steps = list(itertools.pairwise(seen))
        stay, left = sum(s and t for s, t in steps), sum(s for s, _ in steps)
        away = sum(not s and not t for s, t in steps)
        stays = (stay + prior * pi[i]) / (left + prior)
        found.append(stays + (away + prior * (1 - pi[i])) / (len(steps) - left + prior) - 1)
    return np.array(found)


def worked_out(
    rounds: int, kappa: float, a: np.ndarray = A, lr: float = 1.0, floor: float = 0.02, smooth: float = 0.0
) -> tuple[np.ndarray, list[np.ndarray]]:
    x, f, qs = START, np.full(4, np.nan), []
    for r in range(rounds):
        here = TABLE[r % len(TABLE)]
        if not here:
            continue
        told = np.array([loss(x, i) for i in here])
        known = f[list(here)]
        f[list(here)] = np.where(np.isnan(known), told, smooth * known + (1 - smooth) * told)
        f = np.where(np.isnan(f), told.mean(), f)
        pi = np.maximum(share_of_rounds(r + 1), max(floor, 1 / (r + 1)))
        q = a / pi
        for order in (np.argsort(-np.abs(correlations(r + 1, 5.0)), kind="stable"), np.argsort(pi, kind="stable")):
            for k in order:
                trial = np.where(np.arange(4) == k, 0.0, q)
                if q[k] and trial.any() and error(q, pi, f, kappa, a) - error(trial, pi, f, kappa, a) > 1e-12:
                    q = trial
        x = x + lr * sum((q[i] * (trained(x, i, r) - x) for i in here), start=np.zeros_like(x))
        qs.append(q)
    return x, qs


@pytest.mark.parametrize("kappa", [0.1, 0.3, 1.0])
def test_rounds(kappa):
    x, qs = worked_out(8, kappa)
    same(run(fl.CaFed(solver=SGD, kappa=kappa), rounds=8, world=UNEVEN).params, x, 1e-10)
    if kappa < 1:
        assert any((q == 0).any() for q in qs)


def test_equal_targets_a_server_step_a_floor_and_smoothed_losses():
    x, _ = worked_out(8, 0.3, a=np.full(4, 0.25), lr=0.4, floor=0.6, smooth=0.5)
    method = fl.CaFed(solver=SGD, kappa=0.3, weight="uniform", server_lr=0.4, floor=0.6, smooth=0.5)
    same(run(method, rounds=8, world=UNEVEN).params, x, 1e-10)


def test_a_gain_that_is_too_small_leaves_nobody_out():
    a, f, always = torch.tensor([0.5, 0.5]).double(), torch.tensor([1.0, 0.8]).double(), seen("++", "++")
    gain = 0.1  # of 0.9, the mean loss, to 0.8
    kept = [fl.CaFed(kappa=0.0, least=least).allocation(a, always, f).tolist() for least in (gain - 0.01, gain + 0.01)]
    assert kept == [[0.0, 0.5], [0.5, 0.5]]


def test_a_huge_kappa_leaves_nobody_out():
    same(
        run(fl.CaFed(solver=SGD, kappa=1e6), rounds=8, world=UNEVEN).params,
        run(fl.InverseAvailability(solver=SGD), rounds=8, world=UNEVEN).params.numpy(),
    )


def seen(*patterns: str) -> Activity:
    activity = Activity.of(len(patterns))
    for moment in zip(*patterns, strict=True):
        activity = activity.seen(k for k, mark in enumerate(moment) if mark == "+")
    return activity


def test_the_error_never_rises_along_the_passes():
    rng = np.random.default_rng(3)
    for trial in range(30):
        n = 8
        activity = Activity.of(n)
        for _ in range(40):
            activity = activity.seen(np.flatnonzero(rng.random(n) < rng.random(n)).tolist())
        a = torch.from_numpy(rng.dirichlet(np.ones(n)))
        f, pi, method = torch.from_numpy(rng.random(n) * 3), activity.frequency(0.02), fl.CaFed(kappa=0.5)
        q = method.allocation(a, activity, f)
        assert q.any()
        assert float(method.error(a, pi, f, q)) <= float(method.error(a, pi, f, a / pi)) + 1e-12, trial
        for k in q.nonzero().flatten().tolist():  # the last pass ended: nobody's leaving was passed over for good
            assert q[k] == pytest.approx(float(a[k] / pi[k]))


def test_of_two_alike_the_one_that_comes_in_long_runs_is_looked_at_first():
    """Both are there half the time with the same high loss; leaving out one pays, and then the other no longer."""
    activity = seen("+-+-+--++-+--+-++-+--+", "+++++++++++-----------", "++++++++++++++++++++++")
    assert activity.correlation()[1] > abs(float(activity.correlation()[0]))
    a, f = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64), torch.tensor([1.0, 1.0, 0.7], dtype=torch.float64)
    q = fl.CaFed(kappa=1.0, prior=0.0).allocation(a, activity, f)
    assert [bool(share) for share in q] == [True, False, True]
    everybody = fl.CaFed(kappa=0.0).allocation(a, activity, f)
    assert [bool(share) for share in everybody] == [False, False, True]


def test_somebody_always_stays():
    activity = seen("+-", "-+")
    q = fl.CaFed(kappa=0.0).allocation(torch.tensor([0.5, 0.5]).double(), activity, torch.tensor([1.0, 1.0]).double())
    assert q.any()


def test_losses_are_smoothed_and_the_unheard_have_the_mean():
    method = fl.CaFed(smooth=0.25)
    first = method.heard(None, 4, [0, 2], torch.tensor([1.0, 3.0]).double())
    assert first.tolist() == [1.0, 2.0, 3.0, 2.0]
    assert method.heard(first, 4, [0, 1], torch.tensor([2.0, 4.0]).double()).tolist() == [1.75, 3.5, 3.0, 2.0]


def test_the_loss_told_is_that_of_the_model_received():
    _, heard = overheard(METHOD, fl.Classification(model=Softmax), federation(), rounds=1)
    assert {h.client: pytest.approx(h.reply.loss, rel=1e-12) for h in heard} == {i: loss(START, i) for i in range(4)}


@pytest.mark.parametrize(("pi", "lam"), [(0.9, 0.9), (0.1, 0.0), (0.1, 0.9)])
def test_markov_availability_of_that_share_and_correlation(pi, lam):
    """The chains the claim uses are those of the paper: P(there | there) = pi + lam (1 - pi)."""
    from fedloom.timing.availability import Markov, Moment

    stay = pi + lam * (1 - pi)
    chain = Markov(stay=stay, back=stay - lam)
    ids, rounds = np.arange(300), 400
    there = np.stack([chain.here(ids, Moment(r, 0.0), 5) for r in range(rounds)]).astype(float)
    assert there.mean() == pytest.approx(pi, abs=0.03)
    spread = ((there[1:] - pi) * (there[:-1] - pi)).mean() / (pi * (1 - pi))
    assert spread == pytest.approx(lam, abs=0.05)


@pytest.mark.parametrize("wrong", [{"kappa": -1}, {"smooth": 1.0}, {"floor": 0.0}, {"prior": -1}, {"least": -1}])
def test_wrong_options(wrong):
    with pytest.raises(fl.FedloomError, match="CaFed"):
        fl.CaFed(**wrong)
