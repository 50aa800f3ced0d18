"""Where two values differ: states, memories, logs. Paths make the message, so that a failed check says what moved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fedloom.runs import Run


def outcome(run: Run) -> dict[str, Any]:
    """Everything a run leaves behind but wall time."""
    host = run.host
    return {
        "state": host.state,
        "memories": host.memories,
        "books": host.books,
        "ledger": host.ledger,
        "spent": host.spent,
        "holds": host.holds,
        "now": host.now,
        "rounds": host.version,
        "outstanding": host.dispatch.jobs,
        "log": [{k: v for k, v in row.items() if k != "wall"} for row in run.rows],
    }


def difference(a: Any, b: Any, tolerance: float = 0.0, at: str = "") -> str:
    """The first place where two values differ, in words; "" where they are equal.

    Args:
        tolerance: numbers x, y are equal when |x - y| <= tolerance * (1 + |y|); 0: bit for bit (NaN equals NaN).
    """
    at = at or "the value"
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return _tensors(a, b, tolerance, at)
    if isinstance(a, bool | int | float) and isinstance(b, bool | int | float):
        same = a == b or (a != a and b != b) or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
        return "" if same else f"{at}: {a!r} and {b!r}"
    if type(a) is not type(b):
        return f"{at}: {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, Mapping):
        if set(a) != set(b):
            return f"{at}: keys {sorted(map(str, a))} and {sorted(map(str, b))}"
        parts = [(f"{at}[{k!r}]", a[k], b[k]) for k in a]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{at}: {len(a)} and {len(b)} entries"
        parts = [(f"{at}[{k}]", x, y) for k, (x, y) in enumerate(zip(a, b))]
    elif dataclasses.is_dataclass(a):
        parts = [(f"{at}.{f.name}", getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    else:
        return "" if a == b else f"{at}: {a!r} and {b!r}"
    return next((d for where, x, y in parts if (d := difference(x, y, tolerance, where))), "")


def _tensors(a: Any, b: Any, tolerance: float, at: str) -> str:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return f"{at}: {type(a).__name__} and {type(b).__name__}"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{at}: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
    if torch.equal(a, b):
        return ""
    x, y = a.detach().double(), b.detach().double()
    gap = (x - y).abs() / (1 + y.abs())
    both = x.isnan() & y.isnan()
    worst = float(gap.masked_fill(both, 0).nan_to_num(math.inf).max()) if gap.numel() else 0.0
    return "" if worst <= tolerance else f"{at}: differs by {worst:.2e}, allowed {tolerance:.0e}"
