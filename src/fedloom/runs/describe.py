"""What a run was: versions, hyperparameters and rows as plain values."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from fedloom.checked import as_python

COUNTS = ("notes", "exclusions", "seconds", "staleness")
NOT_VIEWS = (*COUNTS, "validation")
"""Tables in a row of the log that are no view of the result."""

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    out = {"python": platform.python_version()}
    for name in ("fedloom", "torch", "numpy", "scikit-learn", "safetensors"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "unknown"
    return out


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    value = as_python(value)
    return value if isinstance(value, int | float | str | bool | type(None)) else said(value)


def said(thing: Any) -> str:
    """What a thing says of itself, the same in every process: `repr` without addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the log as one of a table, in which what is of single clients or jobs has no place."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("exclusions", "staleness", "jobs"):
            continue
        view = isinstance(value, Mapping) and name not in NOT_VIEWS
        out |= _dotted(name, {k: v for k, v in value.items() if k != "clients"} if view else value)
    return out


def _dotted(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {inner: v for k in value for inner, v in _dotted(f"{name}.{k}", value[k]).items()}


def spent(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the time of a run went: client-seconds by phase, the share of them spent waiting (`idle`), joules, and how
    many replies were how stale."""
    seconds, staleness, energy = Counter[str](), Counter[str](), 0.0
    for row in rows:
        seconds.update(row.get("seconds", {}))
        staleness.update(row.get("staleness", {}))
        energy += row.get("energy", 0.0)
    total = sum(seconds.values())
    return {
        "seconds": dict(seconds),
        "idle": seconds["wait"] / total if total else None,
        "energy": energy or None,
        "staleness": dict(sorted(staleness.items(), key=lambda item: int(item[0]))),
    }


def reached(rows: Iterable[Mapping[str, Any]], figure: str) -> dict[str, dict[str, Any]]:
    """When a share of right answers was first reached on test data, by level: round, virtual and wall seconds, bytes in
    all directions. Of the global model, or where there is none, of the clients' own."""
    found: dict[str, dict[str, Any]] = {}
    if figure != "accuracy":
        return found
    for row in rows:
        view: Mapping[str, Any] = row.get("global") or row.get("personal") or {}
        for level in LEVELS:
            if str(level) not in found and view.get(figure, -1.0) >= level:
                found[str(level)] = {
                    "round": row["round"],
                    "time": row["time"],
                    "wall": row["wall"],
                    "bytes": row["bytes_up"] + row["bytes_down"] + row["bytes_peers"],
                }
    return found
