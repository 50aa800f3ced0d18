"""PyTorch datasets, files and columns of Hugging Face datasets as arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import ConfigError, DataError, MissingExtra, unknown

from .convert import text_rows

if TYPE_CHECKING:
    import pandas as pd


def read_dataset(dataset: Any, fields: Sequence[str], where: str) -> dict[str, Any]:
    tensors = getattr(dataset, "tensors", None)  # TensorDataset
    if tensors is not None:
        return dict(zip(_enough(fields, len(tensors), where), tensors))
    if not hasattr(dataset, "__len__") or not len(dataset):
        raise DataError(f"{where}: needs a map-style dataset (with len and [i]) that is not empty")
    items = [dataset[i] for i in range(len(dataset))]
    if isinstance(items[0], Mapping):
        named = {str(key): [item[key] for item in items] for key in items[0]}
    else:
        rows = [item if isinstance(item, tuple | list) else (item,) for item in items]
        named = dict(zip(_enough(fields, len(rows[0]), where), zip(*rows, strict=True)))
    return {name: _stack(values, name, where) for name, values in named.items()}


def _enough(fields: Sequence[str], n: int, where: str) -> Sequence[str]:
    if len(fields) < n:
        raise ConfigError(f"{where}: items have {n} parts; name them all, e.g. fields=('x', 'mask', 'y')")
    return fields[:n]


def _stack(values: Sequence[Any], name: str, where: str) -> Any:
    try:
        return torch.stack(list(values)) if isinstance(values[0], Tensor) else np.stack([np.asarray(v) for v in values])
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{where}: the items' {name!r} do not stack into one array: {error}") from error


def read_frame(path: Path, kind: str) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", "reading Parquet files") from error
    except (OSError, ValueError, UnicodeError) as error:
        raise DataError(f"{path.name!r} is not a readable {kind} table: {error}") from error


def column(dataset: Any, name: str, length: int) -> Any:
    """One column of a Hugging Face dataset as an array: images channels first 0..1, text as bytes, numbers.

    Raises:
        ConfigError: there is no such column.
        DataError: rows differ in shape.
    """
    if name not in dataset.column_names:
        raise unknown("column", name, dataset.column_names)
    rows = list(dataset[name])
    if not rows:
        raise DataError(f"column {name!r} has no rows")
    if isinstance(rows[0], str):
        return text_rows(rows, length)
    try:
        values = np.stack([np.asarray(row) for row in rows])
    except ValueError as error:
        raise DataError(f"column {name!r}: the rows do not stack into one array: {error}") from error
    if hasattr(rows[0], "getbands"):  # an image: rows of pixels, channels last
        values = values[:, None] if values.ndim == 3 else values.transpose(0, 3, 1, 2)
    if values.dtype == object:
        raise ConfigError(f"column {name!r} holds {type(rows[0]).__name__}; choose a column of numbers, images or text")
    return values


def read_npz(file: Any, name: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file (a path or a file object), never unpickling.

    Raises:
        DataError: it is no such file, is damaged, or holds Python objects.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name!r} is not a readable .npz of plain arrays: {error}") from error
