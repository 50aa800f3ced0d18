"""Repeated steps are the steps they repeat, to the bit; what need not be the same every time is not repeated."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_stacked import Attention, broad, cnn, cohort, dynamic, heavy_ball, mlp, model_of, no_bias, prox, shifted, wide
from torch import Tensor, nn

from fedloom.training.plain import train_plain
from fedloom.training.request import Training
from fedloom.training.solvers import SGD
from fedloom.training.stacked import affine, lazy, repeat, train_stacked
from fedloom.training.stacked.forward import Forward
from fedloom.training.stacked.twin import twin_of

SIZES = [30, 30, 21, 13, 12, 4, 3, 1]  # stop one after the other, in partial batches
MORE = [[17, 9, 9, 2], [30, 28, 27, 26, 25, 24, 23, 22], [8, 8, 8]]


def softmax() -> nn.Module:
    return nn.Linear(6, 3)


class Conjugate(nn.Module):
    """Some operators give back the same memory, read otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(self.a(x).view(len(x), 3, 2))
        return torch.view_as_real(z * z.conj() + z).sum(2) + z.conj().imag


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        return z if float(x.detach().sum()) > 0 else 2 * z


class Drops(nn.Module):
    """A layer that is left out now and then, by Python's own dice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) if random.random() < 0.99 else x)


class Alternates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.calls = nn.Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.a(x)) if self.calls % 2 else self.a(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.calls = nn.Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.a(x) * (1 + self.calls / 100)


class Stranger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale = nn.Linear(6, 3), [torch.ones(3)]

    def forward(self, x: Tensor) -> Tensor:
        self.scale[0] = self.scale[0] * 1.01
        return self.a(x) * self.scale[0]


class Squeezed(nn.Module):
    """A tensor takes another shape, and is then viewed in its first."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.a(x)).clone()
        z.unsqueeze_(1)
        return z.view(-1, 6)


class Ramp(nn.Module):
    """A buffer counts its steps, and its output grows with them."""

    def __init__(self, replaced: bool) -> None:
        super().__init__()
        self.a, self.replaced = nn.Linear(6, 3), replaced
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.replaced:
            self.steps = self.steps + 1
        else:
            self.steps += 1
        return self.a(x) * (1 + self.steps / 4)


def rounds(model: Any, **options: Any) -> list[tuple[Tensor, float]]:
    """All trained vectors and losses of some cohorts, the first one twice."""
    out = []
    for sizes in (SIZES, SIZES, *MORE):
        requests = cohort(model, sizes=sizes, **options)
        out += [(t.vector.clone(), t.loss) for t in train_stacked(requests)]
    return out


def repeated(requests: list[Training]) -> Any:
    return twin_of(requests[0].model, requests[0].start).repeated


ONCE = SGD(lr=0.05, epochs=1, batch_size=4)  # few rows: large layers are kept as sums of products
CASES = {
    "softmax": (softmax, {}),
    "prox": (softmax, {"step": prox, "shared": {"anchor": None}}),
    "shift": (softmax, {"step": shifted, "own": ("shift",)}),
    "dynamic": (mlp, {"step": dynamic, "own": ("shift",), "shared": {"anchor": None}}),
    "mlp": (mlp, {}),
    "attention": (Attention, {"kind": "tokens"}),
    "cnn": (cnn, {"kind": "image"}),
    "momentum": (mlp, {"solver": SGD(lr=0.05, epochs=2, batch_size=4, momentum=0.9)}),
    "decay": (mlp, {"solver": SGD(lr=0.05, epochs=2, batch_size=4, weight_decay=0.1)}),
    "clip": (mlp, {"solver": SGD(lr=0.05, epochs=2, batch_size=4, clip=0.5)}),
    "velocity": (softmax, {"step": heavy_ball}),
    "both": (
        softmax,
        {
            "step": shifted,
            "own": ("shift",),
            "solver": SGD(lr=0.05, epochs=2, batch_size=4, momentum=0.9, weight_decay=0.1),
        },
    ),
    "conjugate": (Conjugate, {}),
    "starts": (mlp, {"starts": True}),
    "lazy": (wide, {"solver": ONCE}),
    "lazy, no bias": (no_bias, {"solver": ONCE}),
    "lazy prox": (wide, {"solver": ONCE, "step": prox, "shared": {"anchor": None}}),
    "lazy shift": (wide, {"solver": ONCE, "step": shifted, "own": ("shift",)}),
    "lazy dynamic": (wide, {"solver": ONCE, "step": dynamic, "own": ("shift",), "shared": {"anchor": None}}),
    "lazy ahead": (broad, {"solver": ONCE, "step": shifted, "own": ("shift",), "kind": "image"}),
    "lazy momentum": (wide, {"solver": SGD(lr=0.05, epochs=1, batch_size=4, momentum=0.9)}),
    "lazy clip": (wide, {"solver": SGD(lr=0.05, epochs=1, batch_size=4, clip=0.5)}),
    "many": (softmax, {"solver": SGD(lr=0.05, epochs=2, batch_size=20)}),  # some losses are long, some short
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_the_bit(case, dtype, monkeypatch):
    net, options = CASES[case]
    if case == "velocity":
        size = model_of(net, dtype).layout.size
        options = {**options, "carry": {"m": torch.zeros(size, dtype=dtype)}}
    with monkeypatch.context() as without:
        without.setattr(affine, "LARGEST", -1)
        wanted = rounds(model_of(net, dtype), **options)
    got = rounds(model_of(net, dtype), **options)
    for (vector, loss), (its, other) in zip(got, wanted, strict=True):
        assert torch.equal(vector, its)
        assert loss == other


@pytest.mark.parametrize("case", ["softmax", "shift", "mlp", "momentum", "clip", "starts"])
def test_no_forward_pass_is_made_again(case, monkeypatch):
    net, options = CASES[case]
    model, made = model_of(net), []
    train_stacked(cohort(model, sizes=SIZES, **options))
    assert not any(r.refused for r in repeated(cohort(model, **options)).values())
    honest = Forward.losses
    monkeypatch.setattr(Forward, "losses", lambda *args: (made.append(1), honest(*args))[1])
    train_stacked(cohort(model, sizes=SIZES, **options))
    train_stacked(cohort(model, sizes=[30, 29, 20, 10, 9, 2], **options))  # numbers of clients seen, and in between
    assert len(made) <= 2  # of the full cohort, at most: it is cut by nobody's end


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("lazy")])
def test_each_step_of_lazy_layers_is_a_kind_of_its_own(case, monkeypatch):
    net, options = CASES[case]
    model, made = model_of(net), []
    for sizes in (SIZES, SIZES, [21, 13, 4, 3], SIZES):  # 8 to 1 and 4 to 1 clients go on
        train_stacked(cohort(model, sizes=sizes, **options))
    known = repeated(cohort(model, **options))
    assert len(known) == 8
    assert not any(r.refused for r in known.values())
    honest = Forward.losses
    monkeypatch.setattr(Forward, "losses", lambda *args: (made.append(1), honest(*args))[1])
    train_stacked(cohort(model, sizes=SIZES, **options))
    train_stacked(cohort(model, sizes=[29, 29, 19, 12, 10, 2], **options))
    assert not made


def test_lazy_layers_whose_memory_grows_are_not_repeated(monkeypatch):
    requests = cohort(model_of(wide), sizes=[30, 30], solver=ONCE)
    honest = affine.lazy_layers
    monkeypatch.setattr(affine, "lazy_layers", lambda *args: dict.fromkeys(honest(*args), 12))  # of 32 rows
    monkeypatch.setattr(lazy, "_room", lambda old, n, rank, width, like: like.new_empty(n, rank, width))  # every time
    got = [[t.vector.clone() for t in train_stacked(requests)] for _ in range(4)]
    assert all(torch.equal(a, b) for vectors in got for a, b in zip(vectors, got[0]))
    assert any("had to grow" in r.refused for r in repeated(requests).values())


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)), "not the same at every step"),
        (Branch, "not the same at every step"),
        (Drops, "draws random numbers"),
        (Alternates, "one step is not like another"),
        (Counts, "one step is not like another"),
        (Stranger, "comes from outside"),
        (Squeezed, "not the same at every step"),
    ],
)
def test_what_need_not_be_the_same_is_not_repeated(net, why, monkeypatch):
    model = model_of(net)
    requests = cohort(model, sizes=[40, 40, 40])
    made = []
    honest = Forward.losses
    monkeypatch.setattr(Forward, "losses", lambda *args: (made.append(1), honest(*args))[1])
    train_stacked(requests)
    assert [why in r.refused for r in repeated(requests).values()] == [True]
    assert len(made) >= requests[0].steps


@pytest.mark.parametrize("replaced", [True, False])
def test_a_buffer_that_counts_steps_goes_on_counting(replaced):
    model = model_of(lambda: Ramp(replaced))
    for requests in [cohort(model, sizes=sizes) for sizes in (SIZES, SIZES, *MORE)]:
        for out, alone in zip(train_stacked(requests), train_plain(requests), strict=True):
            torch.testing.assert_close(out.vector, alone.vector, atol=1e-11, rtol=1e-11)


def test_another_batch_size_is_another_step():
    model = model_of(softmax)
    for batch in (4, 5, 4):
        solver = SGD(lr=0.05, epochs=2, batch_size=batch)
        (out,) = train_stacked(cohort(model, sizes=[20], solver=solver))
        (alone,) = train_stacked(cohort(model_of(softmax), sizes=[20], solver=solver))
        assert torch.equal(out.vector.clone(), alone.vector.clone())


def test_learning_rates_are_not_mixed_up():
    model = model_of(softmax)
    for lr in (0.1, 0.01, 0.1):
        solver = SGD(lr=lr, epochs=3, batch_size=4)
        out = train_stacked(cohort(model, sizes=[20, 20], solver=solver))
        alone = train_stacked(cohort(model_of(softmax), sizes=[20, 20], solver=solver))
        assert all(torch.equal(a.vector.clone(), b.vector.clone()) for a, b in zip(out, alone))


def test_steps_that_do_not_come_again_are_not_looked_at(monkeypatch):
    """As where the step size falls from round to round, and so few kinds are remembered."""
    monkeypatch.setattr(repeat, "_KINDS", 16)
    monkeypatch.setattr(repeat, "_Recorder", None)
    model = model_of(wide)
    for k in range(5):
        requests = cohort(model, sizes=[30, 30], solver=replace(ONCE, lr=0.1 / (k + 1)))
        train_stacked(requests)
        assert len(repeated(requests)) <= 16


def test_no_compiler_is_imported_for_it():
    code = """
import sys, fedloom as fl
from fedloom.testing import Trial
Trial(fl.FedAvg()).run(engine="stacked", rounds=3)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
