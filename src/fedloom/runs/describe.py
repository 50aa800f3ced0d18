"""What a run was: versions, hyperparameters and rows as plain values."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any


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
    return value if isinstance(value, int | float | str | bool | type(None)) else repr(value)


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in row.items():
        if k in ("clients", "exclusions"):
            continue
        out.update(flat(v, f"{prefix}{k}.") if isinstance(v, Mapping) else {f"{prefix}{k}": v})
    return out
