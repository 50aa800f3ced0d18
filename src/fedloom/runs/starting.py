"""A method's first state: fresh, or made of an earlier run's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_type_hints

from torch import Tensor

from fedloom.clients import Clients
from fedloom.errors import ConfigError
from fedloom.message import is_mapping, leaves
from fedloom.method import Method, State


def started(method: Method, clients: Clients, before: Any, fresh: Any) -> Any:
    """What `method.start` makes of an earlier run's state.

    Args:
        before: that state, which must be one the method can start from: its own, or another's with the fields that its
            `start` reads.
        fresh: what the method starts with where there is no earlier run.

    Raises:
        ConfigError: the method cannot start from that state, would start afresh in spite of it, or the run was one of
            another network or other settings.
    """
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
    for other in _differences(fresh, state):
        raise ConfigError(
            f"{name} cannot start from the {given} of an earlier run: {other}. Give the network, the number of "
            f"classes, the dtype and the settings of that run, or leave before out"
        )
    return state


def _differences(fresh: Any, state: Any, name: str = "") -> Iterator[str]:
    """What this run has and a state does not hold, or holds in another shape or type."""
    if isinstance(fresh, Tensor) and isinstance(state, Tensor):
        if fresh.shape != state.shape:
            yield f"its {name} is {tuple(state.shape)}, and this run's {tuple(fresh.shape)}"
        elif fresh.dtype != state.dtype:
            yield f"its {name} is {state.dtype}, and this run's {fresh.dtype}"
    elif is_mapping(fresh) and is_mapping(state):
        for key in fresh:
            if key in state:
                yield from _differences(fresh[key], state[key], f"{name}[{key!r}]")
            else:
                yield f"its {name} holds {list(state)}, and this run's also {key!r}"
    elif isinstance(fresh, State) and isinstance(state, State):
        for field, value in vars(fresh).items():
            yield from _differences(value, getattr(state, field, None), f"{name}.{field}".lstrip("."))


def _kind_of_state(method: Method) -> type | None:
    """What `start` is annotated to return; None where that is not said, or no class."""
    try:
        kind = get_type_hints(type(method).start).get("return")
    except NameError:  # a name that only type checkers know
        return None
    return kind if isinstance(kind, type) else None
