"""FedDisco: distances and weights by hand, rounds in NumPy, its reductions, and what it may stand around."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from orders import overheard
from worked import SGD, START, N, Softmax, X, Y, cohort, federation, run, same, trained

import fedloom as fl
from fedloom.errors import NotSupported
from fedloom.selection import Oort

INNER = fl.FedAvg(cohort=3, solver=SGD)
TASK = fl.Classification(model=Softmax)
P = [np.bincount(y, minlength=3) / len(y) for y in Y]
KL = np.array([sum(q * math.log(3 * q) for q in p if q) for p in P])


def worked_out(rounds: int, a: float, b: float, distances: np.ndarray, k: int = 3) -> np.ndarray:
    """With a = b = 0 this is FedAvg: its weights are n."""
    x, known = START, set()
    for r in range(rounds):
        chosen = cohort(r, k) if k < 4 else list(range(4))
        n, d = N[chosen] / N[chosen].sum(), distances[chosen] / distances[chosen].sum()
        w = np.maximum(0, n - a * d + b)
        w = w / w.sum() if w.sum() else n
        moves = [trained(x, i, r, turn=int(i not in known)) - x for i in chosen]  # turn 0 was the question
        known |= set(chosen)
        x = x + w @ np.array(moves)
    return x


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.1), (2.0, 0.0), (0.0, 0.3), (0.0, 0.0)])
def test_rounds(a, b):
    same(run(fl.FedDisco(inner=INNER, a=a, b=b), rounds=4).params, worked_out(4, a, b, KL))


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("l1", [np.abs(p - 1 / 3).sum() for p in P]),
        ("l2", [np.sqrt(((p - 1 / 3) ** 2).sum()) for p in P]),
        ("cosine", [1 - p.sum() / (np.sqrt((p**2).sum()) * np.sqrt(3)) for p in P]),
    ],
)
def test_distances(name, by_hand):
    done = run(fl.FedDisco(inner=fl.FedAvg(cohort=4, solver=SGD), distance=name), rounds=2)
    assert [done.state.distances[i] for i in range(4)] == pytest.approx(by_hand, abs=1e-12)
    same(done.params, worked_out(2, 0.5, 0.1, np.array(by_hand), k=4))


def test_weights():
    sizes, d = np.array([40.0, 30.0, 20.0, 10.0]), np.array([0.0, 1.0, 2.0, 7.0])
    w = fl.FedDisco(a=0.5, b=0.1).weights(sizes, d)
    raw = np.array([0.4 + 0.1, 0.3 - 0.05 + 0.1, 0.2 - 0.1 + 0.1, 0.0])
    np.testing.assert_allclose(w, raw / raw.sum())
    np.testing.assert_allclose(fl.FedDisco(a=9.0, b=0.0).weights(np.ones(3), np.ones(3)), np.full(3, 1 / 3))
    steps = [fl.FedDisco().weights(np.ones(2), np.array([1.0, far]))[1] for far in (0.0, 0.5, 1.0, 4.0)]
    assert steps == sorted(steps, reverse=True)
    assert fl.FedDisco().weights(np.ones(1), np.zeros(1)).tolist() == [1.0]


def test_a_number_is_told_once_and_no_counts_leave():
    _, heard = overheard(fl.FedDisco(inner=INNER), TASK, federation(), rounds=4)
    told = [h for h in heard if set(h.reply) == {"distance"}]
    assert len({(h.client, h.round) for h in told}) == len({h.client for h in told})
    assert all(h.payload == {} and isinstance(h.reply.distance, float) for h in told)
    assert all(set(h.reply) == {"delta", "weighed"} for h in heard if h not in told)


def test_a_run_that_starts_from_another_hears_of_its_own_samples():
    turned = fl.Federation.from_clients(
        [(torch.from_numpy(X[i]), torch.from_numpy(Y[3 - i][np.arange(len(Y[i])) % len(Y[3 - i])])) for i in range(4)],
        client_test=0.0,
        classes=3,
    )
    first = run(fl.FedDisco(inner=INNER), rounds=4)
    options = {"dtype": torch.float64, "evaluate_every": 0}
    again, alone = (fl.run(fl.FedDisco(inner=INNER), TASK, turned, 4, before=b, **options) for b in (first, None))
    assert again.state.distances == alone.state.distances != first.state.distances


def test_around_server_momentum_and_inside_a_selection():
    x, m, inner = START, np.zeros(12), fl.FedAvgM(cohort=4, momentum=0.6, solver=SGD)
    for r in range(3):
        w = fl.FedDisco().weights(N, KL)
        m = 0.6 * m + w @ np.array([trained(x, i, r, turn=int(r == 0)) - x for i in range(4)])
        x = x + m
    same(run(fl.FedDisco(inner=inner), rounds=3).params, x)
    chosen = fl.Selected(inner=fl.FedDisco(inner=inner), policy=Oort())
    done = run(chosen, rounds=3)
    same(done.params, x)
    assert done.state.history.of(0).loss is not None
    assert done.state.distances.keys() == {0, 1, 2, 3}


def test_pairs_that_would_do_nothing_or_harm_are_refused():
    with pytest.raises(NotSupported, match="SCAFFOLD weighs its mean by 1"):
        run(fl.FedDisco(inner=fl.Scaffold(cohort=2, solver=SGD)))
    for inner, why in (
        (fl.Ida(cohort=2, solver=SGD), "IDA reads single replies"),
        (fl.FedBuff(concurrency=2, solver=SGD), "FedBuff weighs replies itself as they arrive"),
        (fl.DFedAvgM(solver=SGD), "DFedAvgM takes sums"),
        (fl.FedDisco(inner=INNER), "FedDisco reads single replies"),
    ):
        with pytest.raises(NotSupported, match=f"FedDisco weighs means by samples anew, but {why}"):
            run(fl.FedDisco(inner=inner))
    with pytest.raises(fl.FedloomError, match="the other way round: Oort"):
        fl.FedDisco(inner=fl.Oort())
    with pytest.raises(NotSupported, match="single replies"):
        run(fl.FedDisco(inner=INNER), channel=fl.DP(clip=1.0, noise=1.0))


def test_a_method_inside_may_have_a_share_of_its_own():
    inner = fl.LocalGhbm(cohort=3, solver=fl.SGD(lr=0.1, batch_size=99))  # who is asked first draws other batches
    same(run(fl.FedDisco(inner=inner, a=0.0, b=0.0), rounds=3).params, run(inner, rounds=3).params)


def test_data_without_classes():
    from fedloom.testing.problems import quadratics

    q = quadratics()
    with pytest.raises(fl.FedloomError, match="no classes to count"):
        fl.run(fl.FedDisco(inner=INNER), q.task, q.federation, rounds=1)


@pytest.mark.parametrize("wrong", [{"a": -1}, {"b": -0.1}, {"distance": "far"}])
def test_wrong_options(wrong):
    with pytest.raises(fl.FedloomError):
        fl.FedDisco(**wrong)
