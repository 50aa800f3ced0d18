"""How much an update still counts that was computed from an old model: s(tau), with s(0) = 1."""

from __future__ import annotations

from typing import Literal

from fedloom.errors import ConfigError, unknown

Staleness = Literal["constant", "polynomial", "hinge"]


def discount(kind: Staleness, tau: int, a: float = 0.5, b: float = 4.0) -> float:
    """s(tau) of FedAsync: 1; (1 + tau)^-a; 1 up to b, then 1 / (a (tau - b) + 1).

    Raises:
        ConfigError: an unknown kind, or a or b below 0.
    """
    if a < 0 or b < 0:
        raise ConfigError(f"a staleness discount has a, b >= 0; given a={a}, b={b}")
    if kind == "constant":
        return 1.0
    if kind == "polynomial":
        return (1.0 + tau) ** -a
    if kind == "hinge":
        return 1.0 if tau <= b else 1.0 / (a * (tau - b) + 1.0)
    raise unknown("staleness rule", kind, ("constant", "polynomial", "hinge"))
