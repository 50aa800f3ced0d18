"""Step hooks are recognised by calling them with symbols; what is not affine is never taken for affine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedloom.training import hooks
from fedloom.training.solvers import SGD, Adam
from fedloom.training.symbols import Affine, Velocity, leaf, recognise, with_leaf

D = 4
V = torch.arange(1.0, 5.0)
LR = 0.1
PLAIN = SGD(lr=LR)


def form(step, carry=None, extras=None, solver=PLAIN):
    return recognise(step, carry, extras or {}, solver, D)


def identity(w, f, k, carry, extras):
    return f.grad(w), carry


def decayed(w, f, k, carry, extras):
    return f.grad(w) + w * extras["decay"], carry


def momentum(w, f, k, carry, extras):
    m = 0.9 * carry["m"] + f.grad(w)
    return m, {**carry, "m": m}


def nesterov(w, f, k, carry, extras):
    g = f.grad(w)
    m = 0.9 * carry + g
    return g + 0.9 * m, m


def remembers(w, f, k, carry, extras):
    g = f.grad(w)
    return g, carry + g


def uses_constant_carry(w, f, k, carry, extras):
    return f.grad(w) - carry[1], carry


# ---------------------------------------------------------------- what is affine
def test_the_plain_gradient():
    assert form(None) == form(identity) == Affine(w=1.0, gradient=-LR)


def test_fedprox():
    got = form(hooks.proximal, extras={"mu": 0.5, "anchor": V})
    assert got == Affine(w=0.95, gradient=-0.1, constants=((("extras", "anchor"), 0.05),))


def test_a_scalar_tensor_is_a_number():
    a = form(hooks.proximal, extras={"mu": torch.tensor(0.5), "anchor": V})
    b = form(hooks.proximal, extras={"mu": torch.tensor(0.25), "anchor": V})
    assert a is not None
    assert b is not None
    assert (a.w, b.w) == (0.95, 0.975)


def test_scaffold():
    assert form(hooks.shifted, extras={"shift": V}) == Affine(1.0, -0.1, ((("extras", "shift"), -0.1),))


def test_feddyn():
    got = form(hooks.dynamic, extras={"linear": V, "alpha": 0.2, "anchor": V})
    assert got is not None
    assert got.w == pytest.approx(0.98)
    assert dict(got.constants) == {("extras", "linear"): 0.1, ("extras", "anchor"): pytest.approx(0.02)}


def test_decay_in_the_hook_is_decay_in_the_solver():
    assert form(decayed, extras={"decay": 0.01}) == form(None, solver=SGD(lr=LR, weight_decay=0.01))


def test_momentum_of_the_solver():
    got = form(None, solver=SGD(lr=LR, momentum=0.9, weight_decay=0.01))
    assert got == Affine(1.0, 0.0, (), Velocity(None, 0.9, 1.0, 0.01, (), -0.1))


def test_momentum_carried_by_the_hook():
    got = form(momentum, carry={"m": V, "note": "x"})
    assert got == Affine(1.0, 0.0, (), Velocity(("carry", "m"), 0.9, 1.0, 0.0, (), -0.1))


def test_proximal_with_momentum_of_the_solver():
    got = form(hooks.proximal, extras={"mu": 0.5, "anchor": V}, solver=SGD(lr=LR, momentum=0.9))
    anchor = ("extras", "anchor")
    assert got == Affine(1.0, 0.0, (), Velocity(None, 0.9, 1.0, 0.5, ((anchor, -0.5),), -0.1))


def test_a_gradient_that_goes_both_ways():
    got = form(nesterov, carry=V)
    assert got is not None
    assert got.velocity is not None
    assert (got.gradient, got.velocity.step) == (pytest.approx(-0.1), pytest.approx(-0.09))
    kept = form(remembers, carry=V)
    assert kept == Affine(1.0, -0.1, (), Velocity(("carry",), 1.0, 1.0, 0.0, (), 0.0))


def test_a_carry_that_never_changes_is_a_constant():
    got = form(uses_constant_carry, carry=(V, V))
    assert got == Affine(1.0, -0.1, ((("carry", 1), 0.1),))


def test_extras_may_be_trees():
    def step(w, f, k, carry, extras):
        return f.grad(w) + sum(extras["pulls"]) / 2, carry

    got = form(step, extras={"pulls": [V, V]})
    assert got is not None
    assert dict(got.constants) == {("extras", "pulls", 0): -0.05, ("extras", "pulls", 1): -0.05}


def test_what_is_not_used_may_be_anything():
    assert form(identity, extras={"teacher": torch.zeros(3, 7), "names": {"a"}}) == Affine(1.0, -LR)


# ---------------------------------------------------------------- what is not
def sam(w, f, k, carry, extras):
    g = f.grad(w)
    return f.grad(w + 0.05 * g / g.norm()), carry


def elsewhere(w, f, k, carry, extras):
    return f.grad(w + extras["v"]), carry


def other_loss(w, f, k, carry, extras):
    return f.grad(w, extras["loss"]), carry


def value(w, f, k, carry, extras):
    return f(w) * f.grad(w), carry


def torch_function(w, f, k, carry, extras):
    return torch.clamp(f.grad(w), -1, 1), carry


def compared(w, f, k, carry, extras):
    return (f.grad(w) if (w > 0).all() else w), carry


def product(w, f, k, carry, extras):
    return f.grad(w) * extras["v"], carry


def offset(w, f, k, carry, extras):
    return f.grad(w) + 1.0, carry


def looks_at_batch(w, f, k, carry, extras):
    return f.grad(w) * len(f.batch), carry


def late(w, f, k, carry, extras):
    return (f.grad(w) if k < 100 else 2 * f.grad(w)), carry


def schedule(w, f, k, carry, extras):
    return f.grad(w) / (k + 1), carry


def counts(w, f, k, carry, extras):
    return f.grad(w) / carry["t"], {"t": carry["t"] + 1}


def counts_in_place(w, f, k, carry, extras):
    carry["t"] += 1
    return f.grad(w), carry


def two_buffers(w, f, k, carry, extras):
    a, b = carry
    g = f.grad(w)
    return a + b, (0.9 * a + g, 0.5 * b + g)


def last_weights(w, f, k, carry, extras):
    return f.grad(w) + w - carry, w


def tensor_closure(w, f, k, carry, extras):
    return f.grad(w) + V, carry


def broken(w, f, k, carry, extras):
    return f.gradient(w), carry


def no_pair(w, f, k, carry, extras):
    return f.grad(w)


@pytest.mark.parametrize(
    "step",
    [
        *(sam, elsewhere, other_loss, value, torch_function, compared, product, offset),
        *(looks_at_batch, late, schedule, tensor_closure, broken, no_pair),
    ],
)
def test_not_affine(step):
    assert form(step, extras={"v": V, "loss": lambda *_: None}) is None


@pytest.mark.parametrize(
    ("step", "carry"),
    [
        (counts, {"t": 1}),
        (counts_in_place, {"t": 1}),
        (two_buffers, (V, V)),
        (last_weights, V),
        (momentum, {"m": torch.ones(1)}),
    ],
)
def test_carries_that_are_not_one_velocity(step, carry):
    assert form(step, carry=carry) is None


def test_two_velocities_are_one_too_many():
    assert form(momentum, carry={"m": V}, solver=SGD(lr=LR, momentum=0.9)) is None


def test_adam_is_not_affine():
    assert form(None, solver=Adam()) is None


def test_a_vector_of_another_length_is_not_broadcast():
    assert form(hooks.shifted, extras={"shift": torch.ones(1)}) is None
    assert form(hooks.shifted, extras={"shift": torch.ones(2, D)}) is None


# ---------------------------------------------------------------- cache and paths
def test_numbers_are_part_of_the_key():
    forms = [form(hooks.proximal, extras={"mu": mu, "anchor": V}) for mu in (0.0, 0.5, 1.0, 0.5)]
    assert [f.w for f in forms if f] == [1.0, 0.95, 0.9, 0.95]
    assert forms[1] is forms[3]


def test_closures_are_told_apart():
    def scaled(by: float):
        def step(w, f, k, carry, extras):
            return by * f.grad(w), carry

        return step

    assert [form(scaled(c)).gradient for c in (1.0, 2.0, 3.0)] == pytest.approx([-0.1, -0.2, -0.3])  # type: ignore[union-attr]


def test_a_callable_object_that_cannot_be_hashed():
    class Hook(list[float]):
        def __call__(self, w, f, k, carry, extras):
            return self[0] * f.grad(w), carry

    assert form(Hook([3.0])) == Affine(1.0, pytest.approx(-0.3))


def test_paths():
    m, extras = torch.ones(2), {"a": {"b": V}}
    carry = {"x": (1, m)}
    assert leaf(("extras", "a", "b"), extras, carry) is V
    assert leaf(("carry", "x", 1), extras, carry) is m
    changed = with_leaf(carry, ("carry", "x", 1), V)
    assert isinstance(changed["x"][1], Tensor)
    assert changed["x"][1] is V
    assert carry["x"][1] is m
    assert with_leaf(m, ("carry",), V) is V
