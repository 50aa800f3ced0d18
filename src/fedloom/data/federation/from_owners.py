"""Federations out of data that has owners already, or is made when a client is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from fedloom.data.arrange import by_client, contents, same_shape
from fedloom.data.convert import as_data, check, label_count
from fedloom.data.fields import Data
from fedloom.data.partitions import numbers
from fedloom.data.population import Made, Rows, qualified
from fedloom.errors import ConfigError, DataError

if TYPE_CHECKING:
    from .federation import Federation


def from_clients(
    cls: type[Federation],
    clients: Mapping[Any, Any] | Sequence[Any],
    *,
    test: Any = None,
    public: Any = None,
    validation: Any = None,
    val: float = 0.0,
    client_test: float = 0.2,
    seed: int = 0,
    name: str = "clients",
    classes: int | None = None,
    ordered: bool = False,
    empty: bool = False,
) -> Federation:
    """Data that already has owners: a list of `Data` or `(x, y)`, or a dict of them by name (kept as
    `names`).

    All clients have the same fields and sample shapes (for anything else use `generated`); `empty=True`
    allows clients without samples.
    """
    if not clients:
        raise DataError("a federation has 1 or more clients; given none")
    named = clients if isinstance(clients, Mapping) else dict(enumerate(clients))
    parts = [as_data(given, f"client {id!r}") for id, given in named.items()]
    for id, part in zip(named, parts):
        check(part, f"client {id!r}", classes, empty)
        same_shape(parts[0], part, f"client {id!r}")
    table = Data.cat(parts)
    sizes = np.array([len(part) for part in parts])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if not ordered:
        owner = np.repeat(np.arange(len(sizes)), sizes)
        table = table.rows(by_client(owner, len(sizes), numbers(seed, "order"))[0])
    return cls.from_offsets(
        table,
        offsets,
        test=test,
        public=public,
        validation=validation,
        val=val,
        client_test=client_test,
        name=name,
        classes=classes,
        names=tuple(map(str, named)) if isinstance(clients, Mapping) else None,
        empty=empty,
    )


def from_offsets(
    cls: type[Federation],
    data: Any,
    offsets: Any,
    *,
    test: Any = None,
    public: Any = None,
    validation: Any = None,
    val: float = 0.0,
    client_test: float = 0.2,
    name: str = "offsets",
    classes: int | None = None,
    names: tuple[str, ...] | None = None,
    empty: bool = False,
) -> Federation:
    """Rows already in client order: client i is rows `offsets[i]:offsets[i+1]` (train, then val, then
    test). Nothing is copied; a population of a million clients is 8 MB. `empty=True` allows clients
    without samples."""
    table = as_data(data, name)
    check(table, name, classes)
    population = Rows(table, np.asarray(offsets))
    hollow = int((population.totals(None) == 0).sum())
    if hollow and not empty:
        raise DataError(f"{name}: {hollow} of {len(population)} clients have no samples; empty=True allows that")
    shared = _shared(classes, test=test, public=public, validation=validation)
    for key in ("test", "validation"):
        if (part := shared[key]) is not None:
            shared_fields = {field: values for field, values in part.items() if field in table}
            same_shape(table, Data(**shared_fields), key)  # the server's own samples may say more
    return cls(
        population,
        **shared,
        val=val,
        client_test=client_test,
        name=name,
        classes=classes or label_count([table, *shared.values()]),
        names=names,
        info={"partition": "given", **contents(table, population.offsets)},
    )


def generated(
    cls: type[Federation],
    n: int,
    size: int | Sequence[int] | np.ndarray | Callable[[int], int],
    make: Callable[[int], Any],
    *,
    test: Any = None,
    public: Any = None,
    validation: Any = None,
    val: float = 0.0,
    client_test: float = 0.2,
    name: str = "generated",
    classes: int | None = None,
    names: tuple[str, ...] | None = None,
    recipe: str = "",
    keep: int = 128,
) -> Federation:
    """A population that is made when asked: `make(id)` gives all samples of client id, always the same.

    Args:
        n: number of clients; costs nothing.
        size: samples per client (train, val and test together): one number, one per client, or a function
            of id.
        make: client id -> Data, `(x, y)` or a dict; a pure function (use `fedloom.keyed`). Clients may
            differ in shapes.
        classes: number of classes, if there are any; not counted, as that would make every client.
        names: of the clients, if they have any.
        recipe: what identifies the generator in `sha256`; default: the name of `make`.
        keep: how many made clients are kept for the next call.
    """
    shared = _shared(classes, test=test, public=public, validation=validation)
    classes = classes or label_count([*shared.values()])
    population = Made(n, size, make, recipe or qualified(make), classes, keep)
    return cls(
        population,
        **shared,
        val=val,
        client_test=client_test,
        name=name,
        classes=classes,
        names=names,
        info={"partition": "generated", "recipe": population.recipe},
    )


def _shared(classes: int | None, **parts: Any) -> dict[str, Data | None]:
    """What everybody or the server holds, by name."""
    return {name: _checked(given, classes, name) for name, given in parts.items()}


def _checked(given: Any, classes: int | None, name: str) -> Data | None:
    if given is None:
        return None
    if isinstance(given, Real | str):
        raise ConfigError(f"clients already hold their samples here; give shared data as (x, y), not {given!r}")
    data = as_data(given, name)
    check(data, name, classes)
    return data
