"""What a check is, the table of all of them, and the words they are written in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.card import Card
from fedloom.errors import FedloomError
from fedloom.message import leaves
from fedloom.method import Method
from fedloom.runs import Run
from fedloom.testing.compare import difference
from fedloom.testing.trial import Trial


class ContractBroken(FedloomError, AssertionError):
    """A method does not keep the contract; says which promise, and what was seen."""


@dataclass(frozen=True, eq=False)
class Check:
    """One check of one method; call it. `id` is `fedavg-resume`."""

    name: str
    trial: Trial
    body: Callable[[Trial], None]

    @property
    def id(self) -> str:
        return f"{self.trial.cls.card.id}-{self.name}"

    @property
    def doc(self) -> str:
        """What is promised, in one sentence."""
        return (inspect.getdoc(self.body) or "").partition("\n\n")[0].replace("\n", " ")

    def __call__(self) -> None:
        self.body(self.trial)

    def __repr__(self) -> str:
        return self.id


_CHECKS: dict[str, tuple[Callable[[Trial], None], Callable[[Card], bool]]] = {}


def check(when: Callable[[Card], bool] = lambda card: True):
    """Enter a function in the suite under its name, with dashes; asked of methods whose card `when` accepts."""

    def enter(body: Callable[[Trial], None]) -> Callable[[Trial], None]:
        _CHECKS[body.__name__.replace("_", "-")] = (body, when)
        return body

    return enter


def checks(method: Method | type[Method], **overrides: Any) -> Iterator[Check]:
    """Every check of a method's card, in order; `overrides` replace hyperparameters of its example."""
    trial = Trial(method, **overrides)
    for name, (body, when) in _CHECKS.items():
        if when(trial.cls.card):
            yield Check(name, trial, body)


def names() -> list[str]:
    """All checks there are."""
    return list(_CHECKS)


def require(fine: object, text: str) -> None:
    if not fine:
        raise ContractBroken(text)


def equal(a: Any, b: Any, what: str, tolerance: float = 0.0) -> None:
    found = difference(a, b, tolerance, what)
    require(not found, found)


def lasting(run: Run) -> dict[str, Any]:
    """What the next round builds on."""
    return {"state": run.state, "memories": run.memories}


def finite(value: Any) -> bool:
    return all(
        bool(torch.isfinite(v).all()) if isinstance(v, Tensor) else not isinstance(v, float) or math.isfinite(v)
        for v in leaves(value)
    )
