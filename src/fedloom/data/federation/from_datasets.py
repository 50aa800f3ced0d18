"""Federations out of the data sets of other libraries: PyTorch, Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedloom.data.fields import Data
from fedloom.data.partitions import Partition
from fedloom.data.readers import column, read_dataset, rows_of
from fedloom.errors import ConfigError

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

    Items are read once and stacked, so the tensors of all samples must have one shape and no transform should be
    random. Images of Pillow become float 0..1 channels first, or, as `y`, the class of each pixel.
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

    Images become float 0..1 channels first (in `y` the class of each pixel), numbers tensors, text in `x` rows of
    `length` UTF-8 bytes; labels that are text are numbered. `group` names a column of natural clients. Other options:
    `from_data` (a `test` that is a dataset is read the same way).
    """
    if length < 1:
        raise ConfigError(f"text is cut to length=1 or more bytes; given {length}")

    def read(d: Any) -> dict[str, Any]:
        return {"x": column(d, x, length)} | ({} if y is None else {"y": column(d, y, 0)})

    for key in ("test", "public", "validation"):
        if hasattr(options.get(key), "column_names"):
            options[key] = read(options[key])
    if group is not None:
        options["groups"] = rows_of(dataset, group)
    names = getattr((getattr(dataset, "features", None) or {}).get(y), "names", None)  # of a ClassLabel
    if names:
        options.setdefault("classes", len(names))
        options["info"] = {"labels": list(names), **(options.get("info") or {})}
    options.setdefault("name", str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "huggingface"))
    return cls.from_data(read(dataset), clients, partition, **options)
