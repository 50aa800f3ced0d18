"""Fedloom: heterogeneous federated learning. Methods that read like their papers, on engines that run them fast.

import fedloom as fl
federation = fl.Federation.from_arrays(x, y, clients=100, partition=fl.Dirichlet(alpha=0.1), test=(xt, yt))
run = fl.run(fl.FedAvg(cohort=10), fl.Classification(model=MyNet), federation, rounds=50, seed=0)
run.report("report.html")
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import *  # noqa: F403
    from .api import __all__ as __all__


def __getattr__(name: str) -> Any:
    """Modules, names of `fedloom.api`, and method classes (`fedloom.Scaffold`), imported when they are asked for.

    So a command that needs none of them (`fedloom --help`) does not wait for torch.
    """
    if name.startswith("__") and name != "__all__":
        raise AttributeError(name)
    if find_spec(f"fedloom.{name}"):
        return import_module(f"fedloom.{name}")
    api = import_module("fedloom.api")
    globals().update({n: getattr(api, n) for n in api.__all__}, __all__=api.__all__)
    if name in globals():
        return globals()[name]
    found = api.catalogue()
    for cls in found.values():
        if cls.__name__ == name:
            return cls
    same = [cls.__name__ for cls in found.values() if name.lower() in (cls.__name__.lower(), cls.card.id)]
    told = "".join(f"; the method is {n}" for n in same) or _nearest(name)
    raise AttributeError(f"module 'fedloom' has no attribute {name!r}{told}")


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, __dir__(), n=2, cutoff=0.7)
    return f". Did you mean {' or '.join(near)}?" if near else ""


def __dir__() -> list[str]:
    api = import_module("fedloom.api")
    return sorted({*globals(), *api.__all__, *(cls.__name__ for cls in api.catalogue().values())})
