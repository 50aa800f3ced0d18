"""What a reader sees: the card, the docstrings, the hyperparameters."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

from fedloom.method import catalogue
from fedloom.runs.options import configure, written
from fedloom.testing.trial import Trial

from .suite import check, equal, require

_SHARED = {"cohort", "solver", "server_lr"}  # mean the same everywhere

LONGEST = 170
"""Lines of a method's file that a reader can hold in the head."""


@check()
def card(trial: Trial) -> None:
    """Registered, a complete card, a docstring, hyperparameters that are documented, a file one can read."""
    cls, c = trial.cls, trial.cls.card
    for name in ("title", "paper", "authors", "venue", "family", "summary", "claim"):
        require(getattr(c, name).strip(), f"the card of {c.id} lacks {name!r}")
    require(1950 < c.year < 2100, f"year {c.year}")
    own = cls.__doc__ or ""
    require(own and not own.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring")
    doc = "".join(base.__doc__ or "" for base in cls.__mro__ if base is not object)
    for f in getattr(cls, "__dataclass_fields__", {}):
        require(f in _SHARED or f in doc, f"{cls.__name__}'s docstring does not explain the hyperparameter {f!r}")
    if cls.__module__.startswith("fedloom.methods."):
        require(catalogue().get(c.id) is cls, f"{c.id} is not in the catalogue")
        path = Path(inspect.getsourcefile(cls) or "")
        require(path.parent.name == c.family, f"family {c.family!r}, but the file lies in {path.parent.name!r}")
        module = inspect.getmodule(cls)
        require(module is not None and module.__doc__, f"{path.name} does not begin with what the method is")
        lines = len(path.read_text().splitlines())
        require(lines <= LONGEST, f"{path.name} has {lines} lines, more than {LONGEST}")


@check()
def hyperparameters(trial: Trial) -> None:
    """As text and through pickle, hyperparameters come back equal."""
    m = trial.method
    equal(configure(type(m), written(m)), m, "hyperparameters read back from text")
    equal(pickle.loads(pickle.dumps(m)), m, "hyperparameters through pickle")
