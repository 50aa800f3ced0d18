"""What a claim says, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedloom.data import Federation
from fedloom.errors import ConfigError, unknown
from fedloom.method import Method
from fedloom.task import Task

from .measures import UNITS, Measure
from .verdict import Beats, Verdict


@dataclass(frozen=True)
class Setting:
    """What all arms share for one seed.

    Args:
        task, federation: clients need validation samples (`val > 0`) where there is a grid.
        rounds: server steps, unless the budget ends a run before.
        options: further arguments of `Experiment` (world, evaluate_every, ...).
    """

    task: Task
    federation: Federation
    rounds: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A method with options of its own: `Arm(FedAvg(), channel="topk:0.01")`, `Arm(FedBuff(), rounds=400)`."""

    method: Method
    options: Mapping[str, Any]

    def __init__(self, method: Method, **options: Any) -> None:
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "options", options)


@dataclass(frozen=True)
class Claim:
    """An experiment with its verdict's rule.

    Args:
        method: the id whose card makes the claim.
        statement: the direction that is tested, one sentence.
        setting: `setting(seed, quick) -> Setting`: what all arms share; `quick` may be tiny.
        arms: name -> method or `Arm`.
        measure: the figure of a run.
        rule: one `Beats` or several (reproduced when all are, not reproduced when none is more than that).
        grid: dotted option -> values, tried for every arm that has the option, chosen on validation data.
        budget: unit ("round", "time", "bytes") and amount equal for all arms; None: the setting's rounds.
        seeds: how many are judged; with 3 the interval is twice as wide as with 5.
        notes: differences from the paper's experiment, for the reader.
    """

    method: str
    statement: str
    setting: Callable[[int, bool], Setting]
    arms: Mapping[str, Method | Arm]
    measure: Measure
    rule: Beats | tuple[Beats, ...]
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    budget: tuple[str, float] | None = None
    seeds: int = 5
    notes: str = ""

    def __post_init__(self) -> None:
        for rule in self.rules:
            for name in (rule.arm, rule.than):
                if name not in self.arms:
                    raise unknown("arm", name, self.arms)
        unit = self.budget[0] if self.budget else "round"
        if unit not in UNITS:
            raise unknown("unit of a budget", unit, UNITS)
        measured = getattr(self.measure, "unit", unit)
        if measured != unit:
            raise ConfigError(
                f"measured in {measured}s, so arms must have an equal budget of that: budget=({measured!r}, ...)"
            )

    @property
    def rules(self) -> tuple[Beats, ...]:
        return self.rule if isinstance(self.rule, tuple) else (self.rule,)


@dataclass(frozen=True)
class Result:
    """What a claim came to; `content` is what is written as JSON."""

    name: str
    content: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        return self.content["verdict"]

    @property
    def lines(self) -> list[str]:
        """The verdict's reasons, for a terminal."""
        arms = [f"{n}: {a['mean']:.4g} +- {a['std']:.2g}  {a['chosen'] or ''}" for n, a in self.content["arms"].items()]
        return [f"measured: {self.content['measure']}", *arms, *(c["text"] for c in self.content["comparisons"])]
