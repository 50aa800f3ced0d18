"""How a mean weights its replies: by training samples, as most papers do, or equally."""

from __future__ import annotations

from typing import Literal

from fedloom.errors import unknown

Weight = Literal["samples", "uniform"]


def weight_of(rule: Weight) -> float | None:
    """The `weight` of `clients.mean` for a rule.

    Raises:
        ConfigError: no such rule.
    """
    rules: dict[str, float | None] = {"samples": None, "uniform": 1.0}
    if rule not in rules:
        raise unknown("weight", rule, rules)
    return rules[rule]
