"""Hyperparameters as text: typed, dotted, and written back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from fedloom.data.partitions import IID, Dirichlet, Partition
from fedloom.errors import ConfigError
from fedloom.runs.options import configure, listing, written
from fedloom.training.solvers import SGD, Adam, Solver


def double(x: float) -> float:
    return 2 * x


@dataclass(frozen=True)
class Inner:
    mu: float = 0.01
    solver: Solver = field(default_factory=SGD)


@dataclass(frozen=True)
class Everything:
    rate: float = 0.5
    cohort: int | None = None
    fast: bool = False
    kind: Literal["mean", "sum"] = "mean"
    betas: tuple[float, float] = (0.9, 0.99)
    widths: tuple[int, ...] = (1, 2)
    name: str = "a"
    inner: Inner = Inner()
    weigh: Callable[[float], float] = double
    split: Partition = field(default_factory=IID)


@dataclass(frozen=True)
class Needy:
    alpha: float
    least: int = 1


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rate", "1e-3", 1e-3),
        ("rate", 2, 2.0),
        ("cohort", "7", 7),
        ("cohort", "none", None),
        ("fast", "yes", True),
        ("fast", True, True),
        ("fast", "off", False),
        ("kind", "sum", "sum"),
        ("betas", "0.5,0.6", (0.5, 0.6)),
        ("widths", "3", (3,)),
        ("widths", "(3, 4, 5)", (3, 4, 5)),
        ("widths", "", ()),
        ("name", "true", "true"),
        ("split", "dirichlet:0.3", Dirichlet(0.3)),
        ("weigh", "math:sqrt", __import__("math").sqrt),
    ],
)
def test_a_value_is_read_as_its_field_says(key: str, text: Any, value: Any):
    read = getattr(configure(Everything, {key: text}), key)
    assert read == value
    assert type(read) is type(value)


def test_records_are_chosen_by_name_and_set_by_dotted_names():
    made = configure(Everything, {"inner.solver.lr": "0.5", "inner.solver": "adam", "inner.mu": "1"})
    assert made.inner == Inner(mu=1.0, solver=Adam(lr=0.5))
    assert configure(Everything, {"inner.solver.momentum": "0.9"}).inner.solver == SGD(momentum=0.9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inner.solver": "adam", "inner.solver.betas": "0.1,0.2", "cohort": "3", "fast": "on"},
        {"cohort": "none", "inner.solver.steps": "5", "split": "rotation:45/dirichlet:0.1", "widths": ""},
    ],
)
def test_what_is_written_reads_back(options: dict[str, str]):
    made = configure(Everything, options)
    assert configure(Everything, written(made)) == made


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (Everything, {"rat": "1"}, "Did you mean rate"),
        (Everything, {"nothing": "1"}, "cohort: a whole number or none = None"),
        (Inner, {"lr": "1"}, "Did you mean solver.lr"),
        (Inner, {"solver.learning": "1"}, "solver of Inner has no option 'learning'"),
        (Everything, {"rate": "fast"}, "rate of Everything takes a number; given 'fast'"),
        (Everything, {"rate": "nan"}, "takes a number"),
        (Everything, {"cohort": "1.5"}, "takes a whole number or none"),
        (Everything, {"fast": "maybe"}, "true or false"),
        (Everything, {"kind": "median"}, "one of mean, sum"),
        (Everything, {"betas": "0.5"}, "comma-separated"),
        (Everything, {"rate.x": "0.5"}, "no options of its own"),
        (Everything, {"inner.solver": "lbfgs"}, "sgd or adam"),
        (Everything, {"weigh": "math:nothing"}, "cannot load"),
        (Inner, {"solver.lr": "-1"}, "lr > 0"),
        (Needy, {}, "Needy needs alpha"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(cls: type, options: dict[str, str], said: str):
    with pytest.raises(ConfigError) as raised:
        configure(cls, options)
    assert said in str(raised.value)


def test_a_lambda_has_no_name_to_write():
    with pytest.raises(ConfigError, match="cannot be written as text"):
        written(Everything(weigh=lambda x: x))


def test_fields_are_listed_with_their_defaults():
    assert listing(Needy) == "alpha: a number, least: a whole number = 1"
