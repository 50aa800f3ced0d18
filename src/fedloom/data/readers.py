"""PyTorch datasets, files and columns of Hugging Face datasets as arrays."""

from __future__ import annotations

import csv
import gzip
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fedloom.errors import ConfigError, DataError, MissingExtra, unknown

from .convert import text_rows

if TYPE_CHECKING:
    import pandas as pd


def read_dataset(dataset: Any, fields: Sequence[str], where: str) -> dict[str, Any]:
    if getattr(type(dataset), "__getitem__", None) is TensorDataset.__getitem__:  # items are rows, as they lie there
        return dict(zip(_enough(fields, len(dataset.tensors), where), dataset.tensors))
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and len(dataset)):
        raise DataError(
            f"{where}: needs a map-style dataset (with len and [i]) that is not empty; given {type(dataset).__name__} "
            f"(a DataLoader's dataset is loader.dataset)"
        )
    items = [_parts(dataset[i]) for i in range(len(dataset))]
    if odd := next((i for i, item in enumerate(items) if item.keys() != items[0].keys()), 0):
        raise DataError(f"{where}: item {odd} has the parts {[*items[odd]]}, and item 0 {[*items[0]]}")
    named = {key: [item[key] for item in items] for key in items[0]}
    if all(isinstance(key, int) for key in named):
        named = dict(zip(_enough(fields, len(named), where), named.values()))
    return {str(name): _stack(values, str(name), where) for name, values in named.items()}


def _parts(item: Any) -> Mapping[Any, Any]:
    """What an item of a dataset holds: by name, or by place."""
    if isinstance(item, Mapping):
        return item
    return dict(enumerate(item if isinstance(item, tuple | list) else (item,)))


def _enough(fields: Sequence[str], n: int, where: str) -> Sequence[str]:
    if len(fields) < n or len(set(fields)) < len(fields):
        raise ConfigError(
            f"{where}: items have {n} parts, and fields={tuple(fields)}; name each, e.g. fields=('x', 'mask', 'y')"
        )
    return fields[:n]


def _stack(values: Sequence[Any], name: str, where: str) -> Any:
    try:
        if isinstance(values[0], Tensor):
            return torch.stack(list(values))
        return np.stack([_array(value, label=name == "y") for value in values])
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{where}: the items' {name!r} do not stack into one array: {error}") from error


def _array(value: Any, label: bool) -> np.ndarray:
    """A value of an item as an array; an image of Pillow channels first and in the colours it shows, or, where it is
    the label, the class of each pixel."""
    if label or not hasattr(value, "getbands"):
        return np.asarray(value)
    if value.mode in ("1", "P"):  # stored as bits, or as places in a palette
        value = value.convert("L" if value.mode == "1" else "RGB")
    pixels = np.asarray(value)
    if pixels.dtype == np.uint16:
        pixels = (pixels / 65535).astype(np.float32)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def read_frame(path: Path, kind: str, empty: Sequence[str] = ()) -> pd.DataFrame:
    """A table; in a CSV file `empty` are texts of cells that are empty. It is without the row numbers that pandas
    writes into such a file as a first column that has no name, and without what follows where rows, or the header, end
    in a comma.

    Raises:
        DataError: it is no such table, or damaged, or its rows differ in length.
    """
    import pandas as pd

    try:
        if kind == "parquet":
            return pd.read_parquet(path)
        frame = _read_csv(path, empty)
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", "reading Parquet files") from error
    except (OSError, ValueError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{path.name!r} is not a readable {kind} table: {error}") from error
    frame = frame.iloc[:, 1:] if frame.columns[0] == "Unnamed: 0" else frame
    blank = frame.columns[frame.isna().all()]
    return frame.drop(columns=[c for c in blank if str(c).startswith("Unnamed: ")])


def _read_csv(path: Path, empty: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    # each column of one type, however long the file is: 007 is a text where another row holds A7
    read = partial(pd.read_csv, path, skipinitialspace=True, low_memory=False, na_values=list(empty))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return read(index_col=False)
    except pd.errors.ParserWarning:  # rows are longer than the header: by names of rows, or by a last comma
        frame = read()
        if frame.iloc[:, -1].isna().all():
            return frame.reset_index().iloc[:, :-1].set_axis(frame.columns, axis=1)
        _check_lengths(path)
        return frame


def _check_lengths(path: Path) -> None:
    """Refuse rows of several lengths: pandas names each by its first cell where only the first has a cell too many."""
    unpacked = gzip.open if path.suffix.lower() == ".gz" else open
    with unpacked(path, "rt", encoding="utf-8-sig", newline="") as file:
        header, *rows = (len(row) for row in csv.reader(file, skipinitialspace=True) if row)
    if odd := next((i for i, cells in enumerate(rows) if cells != rows[0]), 0):
        raise DataError(
            f"the header names {header} columns, row 1 has {rows[0]} cells, and row {odd + 1} has {rows[odd]}"
        )


def column(dataset: Any, name: str, length: int) -> Any:
    """One column of a Hugging Face dataset as an array: images channels first 0..1, text as `length` bytes, numbers;
    for length 0 labels: text as it is, and an image as the class of each pixel.

    Raises:
        ConfigError: there is no such column.
        DataError: rows are missing, or differ in shape.
    """
    rows = rows_of(dataset, name)
    if not rows:
        raise DataError(f"column {name!r} has no rows")
    if empty := [i for i, row in enumerate(rows) if row is None]:
        raise DataError(
            f"column {name!r} is empty in {len(empty)} of {len(rows)} rows (first: row {empty[0]}); leave them out: "
            f"dataset.filter(lambda row: row[{name!r}] is not None)"
        )
    if isinstance(rows[0], str):
        return text_rows(rows, length) if length else np.array(rows)
    try:
        values = np.stack([_array(row, label=not length) for row in rows])
    except ValueError as error:
        raise DataError(f"column {name!r}: the rows do not stack into one array: {error}") from error
    if values.dtype == object:
        raise ConfigError(f"column {name!r} holds {type(rows[0]).__name__}; choose a column of numbers, images or text")
    return values


def rows_of(dataset: Any, name: str) -> list[Any]:
    """One column of one split of a Hugging Face dataset.

    Raises:
        ConfigError: it is no such split, or there is no such column.
    """
    if not hasattr(dataset, "column_names"):
        raise ConfigError(
            f"from_huggingface takes one split of a Hugging Face dataset; given {type(dataset).__name__}. Arrays: "
            f"Federation.from_arrays(x, y), frames: from_pandas, files: from_file"
        )
    if isinstance(dataset, Mapping):
        splits = ", ".join(map(str, dataset))
        raise ConfigError(f"this dataset has splits ({splits}); give one of them, dataset[{next(iter(dataset), '')!r}]")
    if name not in dataset.column_names:
        raise unknown("column", name, dataset.column_names)
    return list(dataset[name])


def read_npz(file: Any, name: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file (a path or a file object), never unpickling.

    Raises:
        DataError: it is no such file, is damaged, or holds Python objects.
    """
    try:
        arrays = np.load(file, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise DataError(f"{name!r} is a single array; several by name are np.savez(path, x=x, y=y)")
        with arrays:
            return {key: arrays[key] for key in arrays.files}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name!r} is not a readable .npz of plain arrays: {error}") from error
