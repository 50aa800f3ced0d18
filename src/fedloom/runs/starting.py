"""A method's first state: fresh, or made of an earlier run's."""

from __future__ import annotations

from typing import Any, get_type_hints

from torch import Tensor

from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import leaves
from fedloom.method import Method, State


def started(method: Method, clients: Clients, before: Any = None) -> Any:
    """What `method.start` gives.

    Args:
        before: an earlier run's state, which must be one the method can start from: its own, or another's with the
            fields that its `start` reads. None: there was none.

    Raises:
        ConfigError: the method cannot start from that state, or would start afresh in spite of it.
    """
    if before is None:
        return method.start(clients)
    name, given = type(method).__name__, type(before).__name__
    try:
        state = method.start(clients, before)
    except AttributeError as e:
        if not isinstance(e.obj, State):
            raise
        raise ConfigError(
            f"{name} cannot start from the {given} of an earlier run: {type(e.obj).__name__} has no {e.name!r}. Give "
            f"before=run of a run of {name}"
        ) from e
    own = _kind_of_state(method)
    if state is before and own is not None and not isinstance(state, own):
        raise ConfigError(
            f"{name} cannot start from the {given} of an earlier run: it goes on with a {own.__name__}. Give "
            f"before=run of a run of {name}"
        )
    if not any(isinstance(value, Tensor) for value in leaves(state)):
        raise ConfigError(
            f"{name} cannot start from an earlier run: what it learns lies at its clients, and no state holds it. "
            f"Leave before out"
        )
    return state


def _kind_of_state(method: Method) -> type | None:
    """What `start` is annotated to return; None where that is not said, or no class."""
    try:
        kind = get_type_hints(type(method).start).get("return")
    except NameError:  # a name that only type checkers know
        return None
    return kind if isinstance(kind, type) else None
