"""Federations out of samples that have no owner yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedloom.data.arrange import by_client, client_names, contents, hold_out, train_mask
from fedloom.data.convert import (
    as_data,
    as_fields,
    check,
    codes,
    label_count,
    label_names,
    label_numbers,
    standardised,
    tensor,
)
from fedloom.data.fields import Data
from fedloom.data.partitions import Partition, numbers, parse_partition
from fedloom.data.population import Rows
from fedloom.errors import DataError

if TYPE_CHECKING:
    from .federation import Federation

Shared = Any
"""Data for the server: `Data`, `(x, y)`, a dict of arrays; a fraction held out before the partition; or
None."""


def from_arrays(
    cls: type[Federation],
    x: Any,
    y: Any = None,
    clients: int | None = None,
    partition: Partition | str | None = None,
    **options: Any,
) -> Federation:
    """Clients out of arrays: `Federation.from_arrays(x, y, clients=100, partition=Dirichlet(0.1),
    test=(xt, yt))`.

    Args:
        x: inputs `(n, ...)`: NumPy, PyTorch or lists. float64 of NumPy becomes float32; byte images 0..1.
        y: targets: integer labels 0..C-1, text (its values in sorted order become 0..C-1, their names
            `federation.info["labels"]`), or floats to regress; None for inputs alone.
        clients: how many; None: what the partition finds in the data, or else 100.
        partition: who holds which sample, as an object or text ("dirichlet:0.1"); None: each of `groups` is a client,
            or "iid" without groups.
        **options: those of `from_data`.
    """
    options.setdefault("name", "arrays")
    return cls.from_data({"x": x} if y is None else (x, y), clients, partition, **options)


def from_data(
    cls: type[Federation],
    data: Any,
    clients: int | None = None,
    partition: Partition | str | None = None,
    *,
    groups: Any = None,
    test: Shared | str = None,
    public: Shared = None,
    validation: Shared = None,
    val: float = 0.0,
    client_test: float = 0.2,
    seed: int = 0,
    name: str = "data",
    classes: int | None = None,
    standardise: bool = False,
    ordered: bool = False,
    info: Mapping[str, Any] | None = None,
) -> Federation:
    """Clients out of samples with any named fields.

    Args:
        data: `Data`, a dict of arrays, or `(x, y)`.
        clients: how many; None: what the partition finds in the data, or else 100.
        partition: who holds which sample, as an object or text ("dirichlet:0.1"); None: each of `groups` is a client,
            or "iid" without groups.
        groups: a name or number per sample `(n,)`: speaker, subject, hospital, domain.
        test, public, validation: data for the server; or a fraction of the samples held out before the
            partition.
            For `test` also the name of a group that no client gets (leave-one-domain-out).
        val, client_test: fractions of each client's samples, 0 <= val + client_test < 1.
        seed: of the hold-out, the partition, and the order of samples within a client.
        classes: labels must lie in 0..classes-1; None: counted.
        standardise: scale the columns of `x` `(n, d)` by mean and standard deviation of all TRAIN
            samples.
        ordered: keep each client's samples in the order given (series: later samples are its test set).

    Raises:
        DataError: NaN or infinite values, different lengths, labels out of range, too few samples.
        ConfigError: impossible fractions, partitions or numbers of clients.
    """
    fields, shared = as_fields(data, name), {"test": test, "public": public, "validation": validation}
    if labels := label_names(fields.get("y")):
        numbered = partial(_numbered, labels=labels)
        fields, shared = numbered(fields, name), _changed(shared, numbered)
        info = {"labels": list(labels), **(info or {})}
    dtype = getattr(fields.get("x"), "dtype", None)
    dtype = dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32
    if standardise:
        fields, shared = _exact(fields, name), _changed(shared, _exact)
    whole = as_data(fields, name)
    check(whole, name, classes)
    columns = None
    if standardise:
        if "x" not in whole or whole["x"].dim() != 2:
            raise DataError("standardise=True scales the columns of a table `x` (n, d); this data has none")
        columns = torch.arange(whole["x"].shape[1])
    group, group_names = (None, ()) if groups is None else codes(groups)
    partition = partition or ("iid" if groups is None else "natural")
    return cls.assemble(
        whole, columns, clients=clients, partition=partition, group=group, group_names=group_names, val=val,
        client_test=client_test, seed=seed, name=name, classes=classes, ordered=ordered, info=info, dtype=dtype,
        **shared,
    )  # fmt: skip


def _changed(shared: dict[str, Shared], change: Callable[..., dict[str, Any]]) -> dict[str, Shared]:
    """Shared data with `change(fields, where)` of its fields; anything but data as it is."""
    return {
        key: part if part is None or isinstance(part, Real | str) else change(as_fields(part, key), key)
        for key, part in shared.items()
    }


def _numbered(fields: dict[str, Any], where: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """Labels, which are text, as numbers."""
    return {**fields, "y": label_numbers(fields["y"], labels, where)} if "y" in fields else fields


def _exact(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Floats in `x` in 64 bits, to be scaled before they are rounded: large ones that differ little become one."""
    if "x" not in fields:
        return fields
    x = tensor(fields["x"], "x", floats=np.float64)
    return {**fields, "x": x.double() if x.is_floating_point() else x}


def assemble(
    cls: type[Federation],
    whole: Data,
    columns: Tensor | None,
    *,
    clients: int | None,
    partition: Partition | str,
    group: Tensor | None,
    group_names: tuple[str, ...],
    val: float,
    client_test: float,
    seed: int,
    name: str,
    classes: int | None,
    ordered: bool,
    info: Mapping[str, Any] | None,
    dtype: torch.dtype = torch.float32,
    **shared: Any,
) -> Federation:
    """The one road from samples to clients: hold out, partition, put in client order, change, scale, check.

    Arguments as in `from_data`; `group` holds indices of `group_names`; `columns` of `x` (int64 positions, or
    None) are scaled by mean and standard deviation of all TRAIN samples, where NaN counts as the mean; then `x` is of
    `dtype`.
    """
    partition = parse_partition(partition)
    if group is not None and len(group) != len(whole):
        raise DataError(f"{name}: {len(group)} groups for {len(whole)} samples; one group per sample")
    left, held = hold_out(whole, shared, group, group_names, seed, ordered)
    kept = whole if len(left) == len(whole) else whole.rows(torch.from_numpy(left))
    group = None if group is None else group[left]
    keyed = kept if group is None else kept.replace(group=group)
    clients = partition.natural(keyed) or 100 if clients is None else clients
    owner = partition(keyed, clients, numbers(seed, "partition"))
    index, offsets = by_client(owner.numpy(), clients, None if ordered else numbers(seed, "order"))
    table, record = partition.change(kept.rows(index), owner[index], clients, numbers(seed, "change"))
    parts: dict[str, Data | None] = {"table": table, **held}
    if columns is not None:
        train = table.rows(train_mask(offsets, val, client_test))
        parts = {key: part and standardised(part, columns, train, dtype) for key, part in parts.items()}
    for key, part in parts.items():
        if part is not None and (key != "table" or columns is not None):  # a table as given is checked already
            check(part, key, classes)
    table = parts.pop("table")
    assert table is not None
    return cls(
        Rows(table, offsets),
        val=val,
        client_test=client_test,
        test=parts["test"],
        public=parts["public"],
        validation=parts["validation"],
        name=name,
        classes=classes or label_count([table, *parts.values()]),
        names=None if group is None else client_names(group[index].numpy(), group_names, offsets),
        info={
            "partition": str(partition),
            "seed": seed,
            **contents(table, offsets),
            **record,
            **(info or {}),
        },
    )
