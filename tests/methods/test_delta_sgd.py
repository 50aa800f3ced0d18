"""Delta-SGD against NumPy, its bounds on quadratics, and FedAvg where neither bound acts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from worked import SGD, SIZES, START, N, batches, cohort, end, federation, gradient, run, same

import fedloom as fl
from fedloom.testing.problems import quadratics
from fedloom.training.hooks import auto_tuned, tuning

METHOD = fl.DeltaSGD(fl.FedAvg(cohort=3, solver=SGD), gamma=0.6, delta=0.1)


def tuned(w: np.ndarray, i: int, r: int, gamma: float, delta: float) -> tuple[np.ndarray, list[str]]:
    """Client i's model after its local work, and which bound each step was taken from."""
    eta, theta, before, bounds = SGD.lr, 1.0, None, []
    for rows in batches(i, r):
        g = gradient(w, i, rows)
        if before is not None:
            turned = np.linalg.norm(g - gradient(before, i, rows))
            smooth = gamma * np.linalg.norm(w - before) / (2 * turned)
            grown = math.sqrt(1 + delta * theta) * eta
            bounds.append("smooth" if smooth < grown else "grown")
            theta = min(smooth, grown) / eta
            eta = min(smooth, grown)
        before, w = w, w - eta * g
    return w, bounds


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_three_rounds(engine):
    x, seen = START, set()
    for r in range(3):
        ids = cohort(r, 3)
        found = [tuned(x, i, r, 0.6, 0.1) for i in ids]
        seen |= {b for _, bounds in found for b in bounds}
        x = np.average([y for y, _ in found], axis=0, weights=N[ids])
    assert seen == {"smooth", "grown"}
    same(run(METHOD, rounds=3, engine=engine).params, x, 1e-10)


def test_where_no_bound_acts_it_is_fedavg():
    free = replace(METHOD, gamma=math.inf, delta=0.0)
    same(run(free, rounds=3).params, run(fl.FedAvg(cohort=3, solver=SGD), rounds=3).params.numpy())


class Bowl:
    """0.5 L ||v||^2."""

    def __init__(self, curvature: float) -> None:
        self.curvature = curvature

    def grad(self, v: torch.Tensor) -> torch.Tensor:
        return self.curvature * v


@pytest.mark.parametrize("curvature", [20.0, 0.0])
def test_of_one_curvature_the_step_is_gamma_over_twice_it_and_without_any_it_only_grows(curvature):
    w = torch.tensor([1.0, -2.0], dtype=torch.float64)
    carry, etas = tuning(w, 0.2), []
    for k in range(3):
        direction, carry = auto_tuned(w, Bowl(curvature), k, carry, {"gamma": 0.5, "delta": 0.1, "lr": 0.2})
        w = w - 0.2 * direction
        etas.append(float(carry["eta"]))
    second = math.sqrt(1.1) * 0.2
    third = math.sqrt(1 + 0.1 * math.sqrt(1.1)) * second
    wanted = [0.2, 0.5 / 40, 0.5 / 40] if curvature else [0.2, second, third]
    assert etas == pytest.approx(wanted, rel=1e-12)


class Rough(Bowl):
    """A bowl whose gradient is another one in the last digits each time it is taken."""

    def grad(self, v: torch.Tensor) -> torch.Tensor:
        self.curvature *= 1 + 1e-12
        return self.curvature * v


def test_the_first_step_is_as_long_as_lr_says_where_gradients_are_not_repeatable():
    w = torch.tensor([1.0, -2.0], dtype=torch.float64)
    direction, carry = auto_tuned(w, Rough(3.0), 0, tuning(w, 0.2), {"gamma": 2.0, "delta": 0.1, "lr": 0.2})
    torch.testing.assert_close(direction, 3 * w)
    assert float(carry["eta"]) == 0.2


class Dropped(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(4)
        super().__init__(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_the_first_step_is_that_of_the_method_inside_whatever_dropout_leaves(engine):
    """Masks are no curvature: both gradients of a step are of one network."""

    def moved(method: fl.Method) -> torch.Tensor:
        done = fl.run(
            method,
            fl.Classification(model=Dropped),
            federation(),
            rounds=1,
            engine=engine,
            dtype=torch.float64,
            evaluate_every=0,
        )
        assert done.params is not None
        return done.params

    inner = fl.FedAvg(cohort=3, solver=fl.SGD(lr=0.2, epochs=1, batch_size=max(SIZES)))
    torch.testing.assert_close(moved(fl.DeltaSGD(inner)), moved(inner))


def test_it_stays_finite_on_curvatures_that_a_fixed_step_diverges_on():
    q = quadratics(clients=5, dim=3)
    steep = replace(q, a=q.a * 40)
    solver = fl.SGD(lr=0.2, steps=5, batch_size=10_000)
    far = end(steep, fl.FedAvg(cohort=5, solver=solver), 3)
    near = end(steep, fl.DeltaSGD(fl.FedAvg(cohort=5, solver=solver)), 60)
    assert steep.value(far) > 1e6
    assert steep.value(near) < steep.value(steep.start)


def pulled(w: np.ndarray, i: int, r: int, mu: float) -> np.ndarray:
    """As `tuned`, along the gradient with FedProx's term."""
    start, eta, theta, before = w, SGD.lr, 1.0, None

    def g(v: np.ndarray, rows: object) -> np.ndarray:
        return gradient(v, i, rows) + mu * (v - start)

    for rows in batches(i, r):
        here = g(w, rows)
        if before is not None:
            smooth = 0.6 * np.linalg.norm(w - before) / (2 * np.linalg.norm(here - g(before, rows)))
            new = min(smooth, math.sqrt(1 + 0.1 * theta) * eta)
            eta, theta = new, new / eta
        before, w = w, w - eta * here
    return w


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_around_fedprox_the_gradient_has_its_term(engine):
    method = replace(METHOD, inner=fl.FedProx(cohort=3, mu=0.7, solver=SGD))
    x = START
    for r in range(2):
        ids = cohort(r, 3)
        x = np.average([pulled(x, i, r, 0.7) for i in ids], axis=0, weights=N[ids])
    done = run(method, rounds=2, engine=engine)
    same(done.params, x, 1e-10)
    if engine == "stacked":
        assert all(path.startswith("stacked") for path in done.summary["choices"].values())


@pytest.mark.parametrize("inner", [fl.FedAvgM(cohort=3, solver=SGD), fl.FedAdam(cohort=3, solver=SGD)])
def test_servers_stay_as_they_are(inner):
    free = replace(METHOD, inner=inner, gamma=math.inf, delta=0.0)
    same(run(free, rounds=3).params, run(inner, rounds=3).params.numpy())
    assert (run(replace(METHOD, inner=inner), rounds=3).params - run(inner, rounds=3).params).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("inner", "why"),
    [
        (fl.Scaffold(cohort=2, solver=SGD), "SCAFFOLD has local steps of its own"),
        (fl.FedDyn(cohort=2, solver=SGD), "FedDyn has local steps of its own"),
        (fl.EF14(cohort=2, solver=SGD), "EF14 reads how long its steps were"),
        (fl.FedAvg(cohort=2, solver=fl.SGD(steps=1)), "FedAvg takes one a job"),
        (fl.FedAvg(cohort=2, solver=fl.SGD(momentum=0.9)), "FedAvg trains with SGD"),
        (fl.FedAvg(cohort=2, solver=fl.Adam()), "FedAvg trains with Adam"),
    ],
)
def test_steps_that_are_no_plain_ones_are_refused(inner, why):
    with pytest.raises(fl.FedloomError, match=rf"(?s)Delta-?SGD's steps.*{why}.*(around FedAvg|Use SGD)"):
        run(replace(METHOD, inner=inner), rounds=1)


@pytest.mark.parametrize("inner", [fl.FedNova(), fl.DeltaSGD(), fl.Selected(fl.FedNova(), policy=fl.selection.Oort())])
def test_methods_that_count_steps_of_one_size_are_refused(inner):
    with pytest.raises(fl.FedloomError, match="counts local steps of one size"):
        fl.DeltaSGD(inner)


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"delta": -0.1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="cannot be"):
        fl.DeltaSGD(**wrong)
