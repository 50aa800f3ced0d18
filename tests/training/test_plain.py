"""The sequential path against numbers worked out in NumPy and against torch.optim, in float64."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.data.fields import Data
from fedloom.errors import ConfigError, NotSupported
from fedloom.model import Model
from fedloom.task import Classification, Regression
from fedloom.training import hooks
from fedloom.training.plain import train_one, train_plain
from fedloom.training.request import Schedule, Training
from fedloom.training.solvers import SGD, Adam, Solver
from fedloom.training.symbols import recognise

TIGHT = {"rtol": 0.0, "atol": 1e-12}

# Seven uneven samples, three features, three classes; steps of 3, 3 and 1 samples: the last batch is partial.
X = np.array([[1.0, 2, -1], [0, 1, 3], [-2, 0.5, 1], [4, 0, 0], [1, 1, 1], [0.3, -2, 2], [-1, -1, 5]])
Y = np.array([0, 2, 1, 1, 0, 2, 0])
ORDER = [[3, 0, 6], [1, 5, 4], [2]]
W0 = np.array([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1], [-0.3, 0.2, 0.5]])
B0 = np.array([0.05, -0.1, 0.2])
SAMPLES = Data(x=torch.from_numpy(X), y=torch.from_numpy(Y))
THETA0 = np.concatenate([W0.ravel(), B0])


def schedule() -> Schedule:
    return Schedule(torch.tensor([[3, 0, 6], [1, 5, 4], [2, 0, 0]]), [3, 3, 1])


class Softmax(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(W0))
            self.bias.copy_(torch.from_numpy(B0))


class MLP(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        self.double()


def request(model: Model | nn.Module | None = None, **changes: Any) -> Training:
    model = Model(model or Softmax(), Classification()) if not isinstance(model, Model) else model
    given: dict[str, Any] = {
        "client": 0,
        "model": model.train(),
        "start": model.initial(),
        "solver": SGD(lr=0.1, batch_size=3),
        "steps": 3,
        "data": {"": SAMPLES},
        "schedules": {"": schedule()},
        "key": (1, 2, 3),
    }
    return Training(**{**given, **changes})


def numpy_gradient(theta: np.ndarray, rows: list[int]) -> np.ndarray:
    """Of the mean cross entropy of softmax regression: (p - onehot)^T x / n."""
    w, b = theta[:9].reshape(3, 3), theta[9:]
    z = X[rows] @ w.T + b
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p[np.arange(len(rows)), Y[rows]] -= 1
    return np.concatenate([(p.T @ X[rows]).ravel(), p.sum(0)]) / len(rows)


def numpy_loss(theta: np.ndarray, rows: list[int]) -> float:
    w, b = theta[:9].reshape(3, 3), theta[9:]
    z = X[rows] @ w.T + b
    return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(rows)), Y[rows]]))


def check(out: Tensor, theta: np.ndarray) -> None:
    np.testing.assert_allclose(out.numpy(), theta, **TIGHT)


# ---------------------------------------------------------------- SGD in its forms
def test_sgd_and_its_loss():
    theta, losses = THETA0.copy(), []
    for rows in ORDER:
        losses.append(numpy_loss(theta, rows))
        theta = theta - 0.1 * numpy_gradient(theta, rows)
    out = train_one(request())
    check(out.vector, theta)
    assert out.loss == pytest.approx(np.mean(losses), abs=1e-12)
    assert (out.steps, out.lr, out.carry) == (3, 0.1, None)


def test_momentum_and_decay():
    theta, m = THETA0.copy(), np.zeros(12)
    for rows in ORDER:
        m = 0.9 * m + numpy_gradient(theta, rows) + 0.01 * theta
        theta = theta - 0.1 * m
    check(train_one(request(solver=SGD(lr=0.1, momentum=0.9, weight_decay=0.01))).vector, theta)


def test_clip():
    theta, clipped = THETA0.copy(), 0
    for rows in ORDER:
        g = numpy_gradient(theta, rows)
        clipped += np.linalg.norm(g) > 1.5
        theta = theta - 0.1 * g * min(1.0, 1.5 / np.linalg.norm(g))
    assert 0 < clipped < 3
    check(train_one(request(solver=SGD(lr=0.1, clip=1.5))).vector, theta)
    check(train_one(request(solver=SGD(lr=0.1, clip=1.5), step=as_written(None))).vector, theta)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fedprox(momentum):
    anchor = THETA0 + np.linspace(-1, 1, 12)
    theta, m = THETA0.copy(), np.zeros(12)
    for rows in ORDER:
        m = momentum * m + numpy_gradient(theta, rows) + 0.3 * (theta - anchor)
        theta = theta - 0.1 * m
    extras = {"mu": 0.3, "anchor": torch.from_numpy(anchor)}
    out = train_one(request(step=hooks.proximal, extras=extras, solver=SGD(lr=0.1, momentum=momentum)))
    check(out.vector, theta)


def test_scaffold_and_feddyn():
    shift, linear = np.linspace(0, 1, 12), np.linspace(1, -3, 12)
    theta = THETA0.copy()
    for rows in ORDER:
        theta = theta - 0.1 * (numpy_gradient(theta, rows) + shift)
    check(train_one(request(step=hooks.shifted, extras={"shift": torch.from_numpy(shift)})).vector, theta)
    theta = THETA0.copy()
    for rows in ORDER:
        theta = theta - 0.1 * (numpy_gradient(theta, rows) - linear + 0.2 * (theta - THETA0))
    extras = {"linear": torch.from_numpy(linear), "alpha": 0.2, "anchor": torch.from_numpy(THETA0)}
    check(train_one(request(step=hooks.dynamic, extras=extras)).vector, theta)


def averaged(w, f, k, carry, extras):
    m = 0.8 * carry["m"] + 0.2 * f.grad(w)
    return m, {"m": m, "tag": carry["tag"]}


def test_a_carried_moment_comes_back():
    m = np.linspace(-1, 2, 12)
    theta, given = THETA0.copy(), {"m": torch.from_numpy(m.copy()), "tag": "a"}
    for rows in ORDER:
        m = 0.8 * m + 0.2 * numpy_gradient(theta, rows)
        theta = theta - 0.1 * m
    out = train_one(request(step=averaged, carry=given))
    check(out.vector, theta)
    check(out.carry["m"], m)
    assert out.carry["tag"] == "a"
    np.testing.assert_array_equal(given["m"].numpy(), np.linspace(-1, 2, 12))


# ---------------------------------------------------------------- general steps
def as_written(step: Callable[..., Any] | None) -> Callable[..., Any]:
    """The same step, hidden from recognition: it asks for the loss, which no symbol has."""

    def asking(w, f, k, carry, extras):
        if f(w) != f(w) and k < 0:
            raise AssertionError
        return step(w, f, k, carry, extras) if step is not None else (f.grad(w), carry)

    return asking


def averaged_in_place(w, f, k, carry, extras):
    carry["m"].mul_(0.8).add_(f.grad(w), alpha=0.2)
    return carry["m"].clone(), carry


def test_a_hook_that_writes_into_its_carry_leaves_the_caller_s_alone():
    """A training is repeated where ways to compute it are compared: it begins with the same carry each time."""
    given = {"m": torch.zeros(12, dtype=torch.float64), "tag": "a"}
    expected = train_one(request(step=averaged, carry=given))
    for _ in range(2):
        out = train_one(request(step=averaged_in_place, carry=given))
        torch.testing.assert_close(out.vector, expected.vector, **TIGHT)
        torch.testing.assert_close(out.carry["m"], expected.carry["m"], **TIGHT)
    assert not given["m"].any()


def nesterov(w, f, k, carry, extras):
    g = f.grad(w)
    m = 0.9 * carry + g
    return g + 0.9 * m, m


@pytest.mark.parametrize(
    ("step", "carry", "extras"),
    [
        (None, None, {}),
        (hooks.proximal, None, {"mu": 0.4, "anchor": torch.from_numpy(W0.repeat(2)[:12])}),
        (hooks.shifted, None, {"shift": torch.from_numpy(X.ravel()[:12].copy())}),
        (averaged, {"m": torch.from_numpy(X.ravel()[:12].copy()), "tag": 1}, {}),
        (nesterov, torch.from_numpy(X.ravel()[:12].copy()), {}),
    ],
)
@pytest.mark.parametrize("solver", [SGD(lr=0.1), SGD(lr=0.05, weight_decay=0.1, clip=0.7), SGD(lr=0.1, momentum=0.5)])
def test_fused_equals_as_written(step, carry, extras, solver):
    assert recognise(as_written(step), carry, extras, solver, 12) is None
    a = train_one(request(step=step, carry=carry, extras=extras, solver=solver))
    b = train_one(request(step=as_written(step), carry=carry, extras=extras, solver=solver))
    torch.testing.assert_close(a.vector, b.vector, **TIGHT)
    torch.testing.assert_close(a.carry, b.carry, **TIGHT)
    assert a.loss == pytest.approx(b.loss, abs=1e-12)


def test_sam():
    def sharpness_aware(w, f, k, carry, extras):
        g = f.grad(w)
        return f.grad(w + extras["rho"] * g / g.norm()), carry

    theta = THETA0.copy()
    for rows in ORDER:
        g = numpy_gradient(theta, rows)
        theta = theta - 0.1 * numpy_gradient(theta + 0.05 * g / np.linalg.norm(g), rows)
    check(train_one(request(step=sharpness_aware, extras={"rho": 0.05})).vector, theta)


def test_adam_is_adamw_of_torch():
    net = MLP()
    ref = copy.deepcopy(net)
    optimiser = torch.optim.AdamW(ref.parameters(), lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for rows in ORDER:
        optimiser.zero_grad()
        F.cross_entropy(ref(SAMPLES.x[rows]), SAMPLES.y[rows]).backward()
        optimiser.step()
    solver = Adam(lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    out = train_one(request(net, solver=solver))
    torch.testing.assert_close(out.vector, nn.utils.parameters_to_vector(ref.parameters()).detach(), **TIGHT)


def test_sgd_is_sgd_of_torch_on_a_deep_network():
    net = MLP()
    ref = copy.deepcopy(net)
    optimiser = torch.optim.SGD(ref.parameters(), lr=0.2, momentum=0.9, weight_decay=0.05)
    for rows in ORDER:
        optimiser.zero_grad()
        F.cross_entropy(ref(SAMPLES.x[rows]), SAMPLES.y[rows]).backward()
        nn.utils.clip_grad_norm_(ref.parameters(), 0.5)
        optimiser.step()
    out = train_one(request(net, solver=SGD(lr=0.2, momentum=0.9, weight_decay=0.05, clip=0.5)))
    # torch divides by the norm plus 1e-6, hence the tolerance
    torch.testing.assert_close(out.vector, nn.utils.parameters_to_vector(ref.parameters()).detach(), rtol=0, atol=1e-5)


def test_what_a_step_hook_sees():
    seen: list[Any] = []

    def looking(w, f, k, carry, extras):
        v = w + 0.1
        seen.append((k, w.clone(), float(f(w)), float(f(v)), f.grad(v), f.batch.y.tolist(), f.model.layout.size))
        return f.grad(w), carry

    out = train_one(request(step=looking))
    theta = THETA0.copy()
    for (_, w, here, there, grad, labels, size), rows in zip(seen, ORDER):
        check(w, theta)
        assert here == pytest.approx(numpy_loss(theta, rows), abs=1e-12)
        assert there == pytest.approx(numpy_loss(theta + 0.1, rows), abs=1e-12)
        check(grad, numpy_gradient(theta + 0.1, rows))
        assert (labels, size) == (Y[rows].tolist(), 12)
        theta = theta - 0.1 * numpy_gradient(theta, rows)
    assert [s[0] for s in seen] == [0, 1, 2]
    check(out.vector, theta)


def test_weights_a_hook_keeps_are_not_changed_later():
    def recursive(w, f, k, carry, extras):
        g, last = carry
        g = g + f.grad(w) - f.grad(last)
        return g, (g, w)

    theta = last = THETA0.copy()
    g = np.ones(12)
    for rows in ORDER:
        g = g + numpy_gradient(theta, rows) - numpy_gradient(last, rows)
        theta, last = theta - 0.1 * g, theta
    out = train_one(request(step=recursive, carry=(torch.ones(12, dtype=torch.float64), torch.from_numpy(THETA0))))
    check(out.vector, theta)
    check(out.carry[1], last)


def test_another_loss_in_a_step():
    def ridge(model, w, batch, extras):
        return extras["c"] * w.square().sum()

    def step(w, f, k, carry, extras):
        return f.grad(w) + f.grad(w, ridge), carry

    theta = THETA0.copy()
    for rows in ORDER:
        theta = theta - 0.1 * (numpy_gradient(theta, rows) + 2 * 0.3 * theta)
    check(train_one(request(step=step, extras={"c": 0.3})).vector, theta)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_f_can_be_differentiated_twice():
    """Per-FedAvg's direction, (I - a H) g(w - a g), with the Hessian-vector product by autograd and by torch.func."""

    def by_func(w, f, k, carry, extras):
        g = f.grad(w - extras["a"] * f.grad(w))
        return g - extras["a"] * torch.func.jvp(f.grad, (w,), (g,))[1], carry

    def by_autograd(w, f, k, carry, extras):
        g = f.grad(w - extras["a"] * f.grad(w))
        v = w.clone().requires_grad_()
        (hvp,) = torch.autograd.grad(f.grad(v), v, g)
        return g - extras["a"] * hvp, carry

    theta = THETA0.copy()
    for rows in ORDER:
        g = numpy_gradient(theta - 0.01 * numpy_gradient(theta, rows), rows)
        h = (numpy_gradient(theta + 1e-5 * g, rows) - numpy_gradient(theta - 1e-5 * g, rows)) / 2e-5
        theta = theta - 0.1 * (g - 0.01 * h)
    a, b = (train_one(request(step=s, extras={"a": 0.01})).vector for s in (by_func, by_autograd))
    torch.testing.assert_close(a, b, **TIGHT)
    np.testing.assert_allclose(a.numpy(), theta, atol=1e-9)


def test_a_dict_a_hook_writes_into_is_not_the_callers():
    def writes(w, f, k, carry, extras):
        carry["n"] = carry["n"] + 1
        return f.grad(w), carry

    given = {"n": 0}
    assert train_one(request(step=writes, carry=given)).carry == {"n": 3}
    assert given == {"n": 0}


# ---------------------------------------------------------------- loss hooks
def test_weights_in_the_loss():
    """The proximal term written into the loss is the proximal step."""

    def loss(model, w, batch, extras):
        return model.losses(w, batch) + 0.5 * extras["mu"] * (w - extras["anchor"]).square().sum()

    anchor = torch.linspace(-1, 1, 12, dtype=torch.float64)
    extras = {"mu": 0.3, "anchor": anchor}
    for solver in (SGD(lr=0.1), SGD(lr=0.1, clip=0.8), Adam(lr=0.1)):
        a = train_one(request(loss=loss, extras=extras, solver=solver))
        if isinstance(solver, SGD) and solver.clip is None:
            b = train_one(request(step=hooks.proximal, extras=extras, solver=solver))
            torch.testing.assert_close(a.vector, b.vector, **TIGHT)
        c = train_one(request(loss=loss, step=as_written(None), extras=extras, solver=solver))
        torch.testing.assert_close(a.vector, c.vector, **TIGHT)


def test_teachers_blocks_and_scalars():
    """Distillation: a teacher's outputs through the same model, features of a block, one number for the batch."""
    net = nn.Sequential()
    torch.manual_seed(0)
    net.add_module("body", nn.Linear(3, 4, dtype=torch.float64))
    net.add_module("act", nn.Tanh())
    net.add_module("head", nn.Linear(4, 3, dtype=torch.float64))
    model = Model(net, Classification())
    teacher = model.initial() + 0.3

    def loss(model, w, batch, extras):
        z = model[:"head"](w, batch.x)
        pull = (z - model[:"head"](extras["teacher"], batch.x)).square().mean(1)
        return (F.cross_entropy(model["head"](w, z), batch.y, reduction="none") + 0.7 * pull).mean()

    ref, other = copy.deepcopy(net), model.to_module(teacher)
    for rows in ORDER:
        x, y = SAMPLES.x[rows], SAMPLES.y[rows]
        z, t = ref.act(ref.body(x)), other.act(other.body(x)).detach()  # type: ignore[operator]
        value = F.cross_entropy(ref.head(z), y) + 0.7 * (z - t).square().mean()  # type: ignore[operator]
        grads = torch.autograd.grad(value, list(ref.parameters()))
        with torch.no_grad():
            for p, g in zip(ref.parameters(), grads):
                p.sub_(0.1 * g)
    out = train_one(request(model, loss=loss, extras={"teacher": teacher}))
    torch.testing.assert_close(out.vector, nn.utils.parameters_to_vector(ref.parameters()).detach(), **TIGHT)


def test_a_function_of_the_weights_in_the_loss():
    """A soft mask on the weights themselves: the model at w * mask, differentiable in w."""
    mask = torch.linspace(0.2, 1.0, 12, dtype=torch.float64)

    def loss(model, w, batch, extras):
        return model.losses(w * extras["mask"], batch)

    theta = THETA0.copy()
    for rows in ORDER:
        theta = theta - 0.1 * mask.numpy() * numpy_gradient(theta * mask.numpy(), rows)
    check(train_one(request(loss=loss, extras={"mask": mask})).vector, theta)


def test_a_loss_of_the_wrong_shape_is_refused():
    with pytest.raises(ConfigError, match="one value per sample"):
        train_one(request(loss=lambda model, w, batch, extras: model(w, batch.x)))


def test_a_loss_without_gradient_moves_nothing():
    out = train_one(request(loss=lambda model, w, batch, extras: torch.ones(len(batch))))
    check(out.vector, THETA0)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda w, f, k, carry, extras: f.grad(w).relu(), "returns \\(direction, carry\\)"),
        (lambda w, f, k, carry, extras: (f.grad(w)[:3], carry), "direction is a vector \\(12,\\)"),
    ],
)
def test_a_step_of_the_wrong_shape_is_refused(step, says):
    with pytest.raises(ConfigError, match=says):
        train_one(request(step=step))


def test_an_unknown_solver_is_refused():
    class Newton(Solver):
        pass

    with pytest.raises(NotSupported, match="Newton"):
        train_one(request(solver=Newton()))


# ---------------------------------------------------------------- what may move
ONLY = {
    "bias": torch.arange(12) >= 9,  # whole pieces: fused
    "some": torch.arange(12) % 3 == 1,  # parts of pieces: explicit
}


@pytest.mark.parametrize("which", ONLY)
@pytest.mark.parametrize("solver", [SGD(lr=0.1, momentum=0.9, weight_decay=0.2), Adam(lr=0.1, weight_decay=0.2)])
def test_only(which, solver):
    """As if the rest were constants: a reference that optimises the chosen entries alone."""
    only = ONLY[which]
    free = torch.from_numpy(THETA0)[only].clone().requires_grad_()
    rest = torch.from_numpy(THETA0)
    make = torch.optim.SGD if isinstance(solver, SGD) else torch.optim.AdamW
    options = {"momentum": 0.9} if isinstance(solver, SGD) else {}
    optimiser = make([free], lr=0.1, weight_decay=0.2, **options)
    for rows in ORDER:
        theta = rest.index_put((only.nonzero().flatten(),), free)
        z = SAMPLES.x[rows] @ theta[:9].view(3, 3).T + theta[9:]
        optimiser.zero_grad()
        F.cross_entropy(z, SAMPLES.y[rows]).backward()
        optimiser.step()
    out = train_one(request(solver=solver, only=only)).vector
    torch.testing.assert_close(out[only], free.detach(), **TIGHT)
    assert torch.equal(out[~only], rest[~only])


@pytest.mark.parametrize("which", ONLY)
def test_only_with_clip_hooks_and_a_carried_moment(which):
    only = ONLY[which]
    chosen = only.numpy()
    start = np.linspace(-1, 2, 12)
    theta, m = THETA0.copy(), start.copy()
    for rows in ORDER:
        g = numpy_gradient(theta, rows) * chosen
        g *= min(1.0, 0.4 / np.linalg.norm(g))
        m = np.where(chosen, 0.8 * m + 0.2 * g, m)
        theta = theta - 0.1 * m * chosen
    for step in (averaged, as_written(averaged)):
        carry = {"m": torch.from_numpy(start.copy()), "tag": 0}
        out = train_one(request(step=step, carry=carry, only=only, solver=SGD(lr=0.1, clip=0.4)))
        check(out.vector, theta)
        check(out.carry["m"][only], m[chosen])


def test_only_with_drift_towards_an_anchor():
    only, anchor = ONLY["bias"], np.linspace(-1, 1, 12)
    theta = THETA0.copy()
    for rows in ORDER:
        theta = theta - 0.1 * (numpy_gradient(theta, rows) + 0.3 * (theta - anchor)) * only.numpy()
    extras = {"mu": 0.3, "anchor": torch.from_numpy(anchor)}
    check(train_one(request(step=hooks.proximal, extras=extras, only=only)).vector, theta)


def test_only_nothing_and_only_wrong():
    out = train_one(request(only=torch.zeros(12, dtype=torch.bool), solver=SGD(lr=0.1, clip=1.0, weight_decay=0.1)))
    check(out.vector, THETA0)
    with pytest.raises(ConfigError, match="boolean vector of the model's 12 numbers"):
        train_one(request(only=torch.ones(5, dtype=torch.bool)))
    with pytest.raises(ConfigError, match="boolean"):
        train_one(request(only=torch.ones(12)))


@pytest.mark.parametrize("which", ONLY)
def test_only_holds_even_where_numbers_are_not_finite(which):
    only = ONLY[which]
    for solver in (SGD(lr=0.1, momentum=0.5), Adam()):
        extras = {"shift": torch.full((12,), math.nan)}
        out = train_one(request(step=hooks.shifted, extras=extras, only=only, solver=solver))
        assert torch.equal(out.vector[~only], torch.from_numpy(THETA0)[~only])
        assert torch.isnan(out.vector[only]).all()


def test_a_mask_changed_in_place_is_a_new_mask():
    net = Model(Softmax(), Classification())
    only = torch.zeros(12, dtype=torch.bool)
    check(train_one(request(net, only=only)).vector, THETA0)
    only[9:] = True
    assert not torch.equal(train_one(request(net, only=only)).vector[9:], torch.from_numpy(B0))


def test_frozen_parameters_are_shared_and_stay():
    net = MLP()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.detach().clone()
    model = Model(net, Classification())
    out = train_one(request(model, solver=SGD(lr=0.1, weight_decay=0.5)))
    assert out.vector.shape == (5 + 15 + 3,)
    assert not torch.equal(out.vector, model.initial())
    assert torch.equal(net[0].weight, before)


def test_a_parameter_the_loss_does_not_see_only_decays():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = Softmax(), Softmax()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    for step in (None, as_written(None)):
        out = train_one(request(Two(), step=step, solver=SGD(lr=0.1, weight_decay=0.5))).vector
        check(out[12:], THETA0 * 0.95**3)


# ---------------------------------------------------------------- running statistics
class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=0.25, dtype=torch.float64)
        self.out = Softmax()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x))


WIDE = Schedule(torch.tensor([[3, 0, 6], [1, 5, 4], [2, 0, 1]]), [3, 3, 3])


def sam(w, f, k, carry, extras):
    g = f.grad(w)
    return f.grad(w + 0.05 * g / g.norm()), carry


@pytest.mark.parametrize("step", [None, as_written(None), sam, hooks.proximal])
def test_statistics_are_written_by_the_forward_pass_alone(step):
    model = Model(Normed(), Classification(), buffers="vector")
    assert model.layout.size == model.layout.trainable + 6
    mean, var = np.zeros(3), np.ones(3)
    for rows in WIDE.index.tolist():
        mean = 0.75 * mean + 0.25 * X[rows].mean(0)
        var = 0.75 * var + 0.25 * X[rows].var(0, ddof=1)
    extras = {"mu": 0.5, "anchor": model.initial() - 1}
    solver = SGD(lr=0.1, weight_decay=0.3, momentum=0.5)
    asked = request(model, schedules={"": WIDE}, step=step, extras=extras, solver=solver)
    out = train_one(asked).vector
    check(out[-6:-3], mean)
    check(out[-3:], var)
    assert torch.equal(train_one(asked).vector, out)


def test_statistics_outside_only_stay():
    model = Model(Normed(), Classification(), buffers="vector")
    only = ~model.layout.where("norm.*")
    start = model.initial()
    out = train_one(request(model, schedules={"": WIDE}, only=only)).vector
    assert torch.equal(out[~only], start[~only])
    assert not torch.equal(out[only], start[only])


@pytest.mark.parametrize("rule", ["batch", "frozen"])
def test_other_rules_for_statistics(rule):
    net = Normed()
    model = Model(net, Classification(), buffers=rule)
    out = train_one(request(model, schedules={"": WIDE})).vector
    ref = copy.deepcopy(net)
    ref.norm.train(rule == "batch")
    for rows in WIDE.index.tolist():
        grads = torch.autograd.grad(F.cross_entropy(ref(SAMPLES.x[rows]), SAMPLES.y[rows]), list(ref.parameters()))
        with torch.no_grad():
            for p, g in zip(ref.parameters(), grads):
                p.sub_(0.1 * g)
    torch.testing.assert_close(out, nn.utils.parameters_to_vector(ref.parameters()).detach(), **TIGHT)
    assert torch.equal(net.norm.running_mean, torch.zeros(3, dtype=torch.float64))  # type: ignore[arg-type]


def test_other_buffers_do_not_leak_from_job_to_job():
    class Counting(Softmax):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
            self.register_buffer("last", torch.zeros(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1  # in place
            out = super().forward(x) * self.calls + self.last
            self.last = out.detach().mean(0)  # replaced
            return out

    model = Model(Counting(), Classification())
    assert torch.equal(train_one(request(model)).vector, train_one(request(model)).vector)


# ---------------------------------------------------------------- data
def test_streams_make_a_dict():
    other = Data(x=torch.from_numpy(X[::-1].copy()) * 2)

    def loss(model, w, batch, extras):
        return model.losses(w, batch["own"]).mean() + model(w, batch["more"].x).square().mean()

    pick = Schedule.given(torch.tensor([[0, 1], [4, 6], [2, 2]]))
    out = train_one(
        request(loss=loss, data={"own": SAMPLES, "more": other}, schedules={"own": schedule(), "more": pick})
    )
    ref = Softmax()
    for rows, more in zip(ORDER, pick.index.tolist()):
        value = F.cross_entropy(ref(SAMPLES.x[rows]), SAMPLES.y[rows]) + ref(other.x[more]).square().mean()
        grads = torch.autograd.grad(value, list(ref.parameters()))
        with torch.no_grad():
            for p, g in zip(ref.parameters(), grads):
                p.sub_(0.1 * g)
    torch.testing.assert_close(out.vector, nn.utils.parameters_to_vector(ref.parameters()).detach(), **TIGHT)


def test_long_jobs_cross_gathering_windows():
    """300 steps are gathered in several windows, and the mean loss is still that of all steps."""
    order = torch.randint(7, (300, 3), generator=torch.Generator().manual_seed(0))
    out = train_one(request(steps=300, schedules={"": Schedule.given(order)}))
    theta, losses = THETA0.copy(), []
    for rows in order.tolist():
        losses.append(numpy_loss(theta, rows))
        theta = theta - 0.1 * numpy_gradient(theta, rows)
    np.testing.assert_allclose(out.vector.numpy(), theta, rtol=0, atol=1e-11)
    assert out.loss == pytest.approx(np.mean(losses), abs=1e-11)


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.e, self.l = nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 3)
        self.double()

    def forward(self, t: Tensor) -> Tensor:
        return self.l(self.e(t).tanh().mean(1))


def pulled(model, w, batch, extras):
    return model.losses(w, batch) + 0.1 * w.square().sum()


@pytest.mark.parametrize("solver", [SGD(lr=0.1, momentum=0.9), SGD(lr=0.1, clip=0.01), Adam(lr=0.1)])
@pytest.mark.parametrize("hooks", [{}, {"step": sam}, {"loss": pulled}], ids=["bare", "sam", "pulled"])
def test_sparse_gradients_are_gradients(solver, hooks):
    data = Data(x=torch.tensor([[0, 1], [1, 1], [2, 3], [5, 0], [3, 3], [4, 2], [0, 5]]), y=SAMPLES.y)
    sparse, dense = (
        train_one(request(Words(kind), solver=solver, data={"": data}, **hooks)).vector for kind in (True, False)
    )
    torch.testing.assert_close(sparse, dense, **TIGHT)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_network_that_cannot_be_copied_is_refused():
    with pytest.raises(ConfigError, match=r"keeps '0\.weight'.*parametrizations\.weight_norm"):
        Model(nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3))), Classification())
    train_one(request(nn.Sequential(nn.utils.parametrizations.weight_norm(Softmax()))))


def test_no_steps():
    r = request(steps=0)
    out = train_one(r)
    check(out.vector, THETA0)
    assert out.vector.data_ptr() != r.start.data_ptr()
    assert math.isnan(out.loss)
    assert out.steps == 0


def test_one_sample():
    theta = THETA0 - 0.1 * numpy_gradient(THETA0, [4])
    one = Schedule.epochs(1, 3, 1, torch.Generator())
    check(train_one(request(steps=1, data={"": SAMPLES.slice(4, 5)}, schedules={"": one})).vector, theta)


def test_regression_by_hand():
    net = nn.Linear(3, 1, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
        net.bias.fill_(0.25)
    w, b, y = np.array([0.5, -1.0, 2.0]), 0.25, X[:, 0] * 2 + 1
    for rows in ORDER:
        e = 2 * (X[rows] @ w + b - y[rows]) / len(rows)
        w, b = w - 0.01 * e @ X[rows], b - 0.01 * e.sum()
    data = Data(x=SAMPLES.x, y=torch.from_numpy(y))
    out = train_one(request(Model(net, Regression()), data={"": data}, solver=SGD(lr=0.01)))
    check(out.vector, np.append(w, b))


# ---------------------------------------------------------------- nothing is shared, nothing leaks
def test_start_is_never_changed_and_results_are_fresh():
    model = Model(Softmax(), Classification())
    start = model.initial()
    steps = [None, hooks.proximal, sam, as_written(None)]
    extras = {"mu": 0.5, "anchor": start}
    outs = train_plain([request(model, start=start, step=s, extras=extras) for s in steps])
    check(start, THETA0)
    assert len({o.vector.data_ptr() for o in outs}) == len(outs)
    kept = [o.vector.clone() for o in outs]
    train_one(request(model, start=start + 1))
    assert all(torch.equal(o.vector, k) for o, k in zip(outs, kept))
    assert not any(o.vector.requires_grad for o in outs)


def test_a_start_that_requires_grad():
    model = Model(Softmax(), Classification())
    out = train_one(request(model, start=model.initial().requires_grad_()))
    assert not out.vector.requires_grad


def test_single_precision():
    model = Model(Softmax(), Classification(), dtype=torch.float32)
    single = Data(x=SAMPLES.x.float(), y=SAMPLES.y)
    out = train_one(request(model, data={"": single})).vector
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), train_one(request()).vector.numpy(), atol=1e-6)


def test_a_loss_that_is_not_finite_is_no_error():
    bad = Data(x=SAMPLES.x * float("nan"), y=SAMPLES.y)
    for solver in (SGD(lr=0.1), SGD(lr=0.1, clip=1.0), Adam()):
        out = train_one(request(data={"": bad}, solver=solver))
        assert torch.isnan(out.vector).all()
        assert math.isnan(out.loss)


def test_two_threads_at_once():
    model = Model(MLP(), Classification())
    requests = [request(model, start=model.initial() + 0.01 * i) for i in range(40)]
    alone = [train_one(r).vector for r in requests]
    found: dict[int, Tensor] = {}

    def work(part: range) -> None:
        for i in part:
            found[i] = train_one(requests[i]).vector

    threads = [threading.Thread(target=work, args=(range(s, 40, 2),)) for s in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(found[i], alone[i]) for i in range(40))


# ---------------------------------------------------------------- randomness
class Dropped(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.double()


def test_dropout_is_keyed_and_leaves_the_generator_alone():
    model = Model(Dropped(), Classification())
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    a = train_one(request(model, key=(7,))).vector
    b = train_one(request(model, key=(8,))).vector
    c = train_one(request(model, key=(7,))).vector
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(a, c)
    assert not torch.equal(a, b)


def test_a_teacher_in_evaluation_mode_drops_nothing():
    model = Model(Dropped(), Classification())
    teacher = model.initial()
    answers: list[Tensor] = []

    def loss(model, w, batch, extras):
        answers.append(model.eval()(extras["teacher"], SAMPLES.x))
        return model.losses(w, batch)

    train_one(request(model, loss=loss, extras={"teacher": teacher}))
    assert all(torch.equal(a, model(teacher, SAMPLES.x)) for a in answers)


def test_all_evaluations_of_a_step_see_one_dropout_and_every_step_another():
    model = Model(Dropped(), Classification())
    still, whole = model.initial(), Schedule(torch.arange(7).repeat(3, 1), [7] * 3)
    drawn: list[Tensor] = []

    def thrice(w, f, k, carry, extras):
        first, value = f.grad(still), f(still)
        drawn.append(torch.randn(3))
        (followed,) = torch.autograd.grad(f(at := still.clone().requires_grad_()), at)
        assert torch.equal(f.grad(still), first)
        assert torch.equal(f(still), value)
        torch.testing.assert_close(followed, first)
        return first, [*carry, first]

    steps = train_one(request(model, step=thrice, carry=[], schedules={"": whole})).carry
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[1], steps[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_randomness_in_a_hook_is_keyed():
    def noisy(w, f, k, carry, extras):
        return f.grad(w) + torch.randn(w.shape, dtype=w.dtype), carry

    a, b, c = (train_one(request(step=noisy, key=(key,))).vector for key in (1, 2, 1))
    assert torch.equal(a, c)
    assert not torch.equal(a, b)


def test_randomness_that_begins_late_is_keyed_all_the_same():
    """The first job of this kind draws nothing; a later one does."""

    def sometimes(w, f, k, carry, extras):
        noise = torch.randn(w.shape, dtype=w.dtype) if extras["draw"] else 0.0
        return f.grad(w).clone() + noise, carry

    def run(draw: bool, key: int) -> Tensor:
        return train_one(request(step=sometimes, extras={"draw": draw}, key=(key,))).vector

    run(False, 0)
    torch.manual_seed(5)
    first = run(True, 1)
    torch.manual_seed(6)
    assert torch.equal(run(True, 1), first)
    assert not torch.equal(run(True, 2), first)


def test_dropout_in_two_threads():
    model = Model(Dropped(), Classification())
    requests = [request(model, key=(i,)) for i in range(30)]
    alone = [train_one(r).vector for r in requests]
    found: dict[int, Tensor] = {}

    def work(part: range) -> None:
        for i in part:
            found[i] = train_one(requests[i]).vector

    threads = [threading.Thread(target=work, args=(range(s, 30, 2),)) for s in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(found[i], alone[i]) for i in range(30))
