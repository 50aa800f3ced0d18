"""Federations out of the data sets of other libraries: PyTorch, Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedloom.data.fields import Data
from fedloom.data.partitions import Partition
from fedloom.data.readers import column, read_dataset

if TYPE_CHECKING:
    from .federation import Federation


def from_torch(
    cls: type[Federation],
    dataset: Any,
    clients: int | None = None,
    partition: Partition | str | None = None,
    *,
    fields: Sequence[str] = ("x", "y"),
    **options: Any,
) -> Federation:
    """Clients out of a map-style PyTorch dataset, whose items are tuples (named by `fields`) or dicts. A
    `test`, `public` or `validation` that is a dataset is read the same way. Other options: `from_data`.

    Items are read once and stacked, so the tensors of all samples must have one shape and no transform
    should be random.
    """
    for key in ("test", "public", "validation"):
        if hasattr(options.get(key), "__getitem__") and not isinstance(options[key], Data | tuple | dict | str):
            options[key] = read_dataset(options[key], fields, key)
    options.setdefault("name", type(dataset).__name__)
    return cls.from_data(read_dataset(dataset, fields, "dataset"), clients, partition, **options)


def from_huggingface(
    cls: type[Federation],
    dataset: Any,
    clients: int | None = None,
    partition: Partition | str | None = None,
    *,
    x: str,
    y: str | None = None,
    group: str | None = None,
    length: int = 128,
    **options: Any,
) -> Federation:
    """Clients out of one split of a Hugging Face dataset: column `x` becomes the input, `y` the label.

    Images become float 0..1 channels first, numbers tensors, text rows of `length` UTF-8 bytes. `group`
    names a column of natural clients. Other options: `from_data` (a `test` that is a dataset is read the
    same way).
    """

    def read(d: Any) -> dict[str, Any]:
        columns = {"x": x} if y is None else {"x": x, "y": y}
        return {name: column(d, source, length) for name, source in columns.items()}

    for key in ("test", "public", "validation"):
        if hasattr(options.get(key), "column_names"):
            options[key] = read(options[key])
    if group is not None:
        options["groups"] = list(dataset[group])
    options.setdefault("name", str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "huggingface"))
    return cls.from_data(read(dataset), clients, partition, **options)
