"""What a method reduces to, by its card."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedloom.message import leaves
from fedloom.method import catalogue
from fedloom.runs.options import configure, written
from fedloom.runs.recipe import pairs
from fedloom.testing.trial import Trial

from .suite import check, equal


@check(lambda c: any(_reduction(s, i) for s, i in c.reduces))
def reductions(trial: Trial) -> None:
    """With the settings its card names, the method gives the run of the method it reduces to."""
    m = trial.method
    for setting, other in m.card.reduces:
        found = _reduction(setting, other)
        if found is None:
            continue  # told in words; the method's own test has it
        options, cls = found
        special = configure(type(m), {**written(m), **options})
        shared = {k: v for k, v in written(m).items() if k.partition(".")[0] in cls.__dataclass_fields__}
        plain = configure(cls, shared)
        a, b = (_vector(trial.run(method=x).state) for x in (special, plain))
        equal(a, b, f"the vector of {m.card.id} with {setting} and of {other}", 1e-9)


def _vector(state: Any) -> Tensor:
    """`params`, or the first real tensor of a state (k = 1 models are one model)."""
    params = getattr(state, "params", None)
    real = (t for t in leaves(state) if isinstance(t, Tensor) and t.is_floating_point())
    return (params if isinstance(params, Tensor) else next(real)).flatten()


def _reduction(setting: str, other: str) -> tuple[dict[str, Any], type[Any]] | None:
    """The card's words as options and a method, where they are `name=value, ...` and an id."""
    cls = catalogue().get(other.strip())
    parts = [p.strip().replace(" ", "") for p in setting.split(",")]
    if cls is None or not all(
        p.count("=") == 1 and p.partition("=")[0].replace(".", "_").isidentifier() for p in parts
    ):
        return None
    return dict(pairs(parts)), cls
