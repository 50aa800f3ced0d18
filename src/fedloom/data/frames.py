"""Tables and columns as tensors: numbers, one-hot categories, labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedloom.errors import ConfigError, DataError, FedloomWarning, unknown

from .convert import RESERVED, as_text
from .fields import Data


@dataclass(frozen=True)
class Encoding:
    """How a frame becomes `x` float64 `(n, d)`, numbers as they are, then categories one-hot; and `y`.

    The categories are those of the whole frame, so that the width of `x` does not depend on a split; they are
    names, not statistics. Numbers are scaled later, with the train samples alone, and become float32 only then: large
    ones that differ little (times, positions) would become one before.
    """

    target: str
    labels: tuple[str, ...] | None  # None: regression
    numeric: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    keep: Mapping[str, tuple[str, ...]]
    missing: str

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        target: str,
        group: str | None = None,
        task: str | None = None,
        categorical: Sequence[str] = (),
        keep: Sequence[str] = (),
        drop: Sequence[str] = (),
        missing: str = "error",
    ) -> Encoding:
        """The encoding of a frame; arguments as in `Federation.from_pandas`.

        Raises:
            ConfigError: an unknown column, task or way with missing numbers, or a kept column with a reserved name.
            DataError: columns that are neither numbers nor categories.
        """
        frame = plain(frame)
        for name, columns in (("categorical", categorical), ("keep", keep), ("drop", drop)):
            if isinstance(columns, str):
                raise ConfigError(f"{name} is a list of columns: {name}=[{columns!r}]")
        if clash := sorted({"x", "y", *RESERVED} & set(keep)):
            raise ConfigError(
                f"keep={list(keep)!r} cannot be: a kept column becomes a field of its name, and {clash[0]!r} is taken; "
                f"rename it, as in frame.rename(columns={{{clash[0]!r}: {clash[0] + '_'!r}}})"
            )
        for name in (target, *([] if group is None else [group]), *categorical, *keep, *drop):
            if name not in frame.columns:
                raise unknown("column", name, frame.columns)
        if missing not in ("error", "mean"):
            raise unknown("way with missing numbers", missing, ("error", "mean"))
        if task not in (None, "classification", "regression"):
            raise unknown("task", task, ("classification", "regression"))
        features = frame.drop(columns=list({target, *drop} | ({group} if group else set())))
        if not len(features.columns):
            raise DataError("no columns are left as features")
        numeric = [c for c in features if c not in categorical and pd.api.types.is_numeric_dtype(features[c].dtype)]
        others = [c for c in features if c not in numeric]
        for column in others:
            _check_categories(features[column], column, column in categorical)
        if odd := [c for c in numeric if pd.api.types.is_complex_dtype(features[c].dtype)]:
            raise DataError(f"column {odd[0]!r} holds complex numbers; give real and imaginary part as two columns")
        _check_target(frame[target], target, task)
        return cls(
            target=target,
            labels=_names(frame[target]) if _is_classes(frame[target], task) else None,
            numeric=tuple(numeric),
            categories={c: _names(features[c]) for c in others},
            keep={c: _names(frame[c]) for c in keep},
            missing=missing,
        )

    @property
    def classes(self) -> int | None:
        return None if self.labels is None else len(self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of `x`."""
        return (*self.numeric, *(f"{c}={value}" for c, values in self.categories.items() for value in values))

    @property
    def numeric_columns(self) -> Tensor:
        return torch.arange(len(self.numeric))

    def data(self, frame: pd.DataFrame, where: str) -> Data:
        """`x`, `y` and the kept columns of a frame; missing numbers are NaN where `missing` is "mean".

        Raises:
            DataError: a column is missing, numbers are missing or infinite, or a label is not one of the
                encoding's.

        Warns:
            FedloomWarning: values that are none of the encoding's categories; all their columns are 0.
        """
        frame = plain(frame)
        if not len(frame):
            raise DataError(f"{where}: the table has no rows")
        wanted = (*self.numeric, *self.categories, *self.keep, self.target)
        if gone := [c for c in wanted if c not in frame.columns]:
            raise DataError(f"{where}: no column {gone[0]!r}; the table has {', '.join(frame.columns)}")
        numbers = frame[list(self.numeric)].to_numpy(dtype=np.float64, na_value=np.nan).reshape(len(frame), -1)
        self._check(numbers, where)
        hot = [_one_hot(frame[c], values, f"{where}: column {c!r}") for c, values in self.categories.items()]
        fields = {"x": torch.from_numpy(np.concatenate([numbers, *hot], 1)), "y": self._targets(frame, where)}
        for c, values in self.keep.items():
            fields[c] = torch.from_numpy(_positions(frame[c], values).astype(np.int64))
        return Data(**fields)

    def _check(self, numbers: np.ndarray, where: str) -> None:
        for bad, word in ((np.isnan(numbers), "missing"), (np.isinf(numbers), "infinite")):
            if bad.any() and (word == "infinite" or self.missing == "error"):
                at = {c: int(k) for c, k in zip(self.numeric, bad.sum(0)) if k}
                raise DataError(f"{where}: {int(bad.sum())} {word} numbers, by column: {at}{_FILL[word]}")

    def _targets(self, frame: pd.DataFrame, where: str) -> Tensor:
        column_: Any = frame[self.target]
        if column_.isna().any():
            raise DataError(f"{where}: the target {self.target!r} is missing in {int(column_.isna().sum())} rows")
        if self.labels is None:
            values = np.asarray(pd.to_numeric(column_, errors="coerce"), dtype=np.float64)
            if (odd := ~(np.abs(values) <= np.finfo(np.float32).max)).any():
                raise DataError(
                    f"{where}: the target {self.target!r} is no finite number in {int(odd.sum())} of {len(odd)} rows "
                    f'(first: {column_[odd].tolist()[0]!r}); for labels, task="classification"'
                )
            return torch.from_numpy(values.copy())
        found = _positions(column_, self.labels)
        if (found < 0).any():
            odd = sorted(set(column_[found < 0].astype(str)))
            raise DataError(f"{where}: {int((found < 0).sum())} labels are none of {list(self.labels)}: {odd[:5]}")
        return torch.from_numpy(found.astype(np.int64))


_FILL = {
    "missing": '; missing="mean" fills them with the mean of their column (behind the name of a file: ,missing=mean)',
    "infinite": "",
}


def _is_classes(values: Any, task: str | None) -> bool:
    if task is not None:
        return task == "classification"
    if pd.api.types.is_float_dtype(values.dtype):
        return False
    return not pd.api.types.is_integer_dtype(values.dtype) or values.nunique() <= _FEW


def _names(values: Any) -> tuple[str, ...]:
    """The different values in their own order (numbers as numbers), as text; empty is a value of its own,
    last."""
    present = [as_text(v) for v in sorted(values.dropna().astype(object).unique(), key=_order)]
    return tuple(dict.fromkeys([*present, *(["missing"] if values.isna().any() else [])]))  # 1 and "1" are one


def _order(value: Any) -> tuple[bool, Any]:
    number = isinstance(value, int | float | np.number)
    return (not number, value if number else str(value))


def _positions(values: Any, names: tuple[str, ...]) -> np.ndarray:
    """The index of each value among the names; -1 where it is none of them."""
    place = {name: i for i, name in enumerate(names)}
    return values.map(lambda v: "missing" if pd.isna(v) else as_text(v)).map(place).fillna(-1).to_numpy(np.int64)


def _one_hot(values: Any, names: tuple[str, ...], where: str) -> np.ndarray:
    found = _positions(values, names)
    if (odd := found < 0).any():
        few = sorted(set(values[odd].map(as_text)))[:5]
        message = (
            f"{where}: {int(odd.sum())} of {len(odd)} values are none of its categories, such as {few}; they are 0"
        )
        warnings.warn(message, FedloomWarning, stacklevel=2)
    return (found[:, None] == np.arange(len(names))).astype(np.float64)


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its columns named by text, each once, and numbers as numbers also where they came as objects."""
    if frame.columns.nlevels > 1:
        raise DataError("columns have names of several levels; flatten them, as in frame.columns.map('_'.join)")
    frame = frame.rename(columns=str).infer_objects()
    if not frame.columns.is_unique:
        raise DataError(f"several columns are called {frame.columns[frame.columns.duplicated()][0]!r}; name each once")
    return frame


_FEW, _MANY = 20, 1000
"""Different values up to which a column may be categories, and from which on it is none unless it is said to be one."""


def _check_categories(values: Any, name: str, named: bool) -> None:
    """Refuse (`DataError`) columns that are not one of a few values: times, lists, identifiers, free text."""
    if _are_times(values):
        raise DataError(
            f"column {name!r} holds times; make numbers of what matters of them, as in frame[{name!r}].dt.dayofyear, "
            f"or leave it out: drop=[{name!r}]"
        )
    different = _different(values, f"column {name!r}", "leave it out")
    if not named and (len(different) > _MANY or _are_names(different, len(values))):
        raise DataError(
            f"column {name!r} has {_told(different, len(values))}: identifiers, free text, or numbers with "
            f"some text among them. Leave it out: drop=[{name!r}]; make each a column: categorical=[{name!r}]; or make "
            f"it numbers: pd.to_numeric(frame[{name!r}], errors='coerce') and missing='mean' (behind the name of a "
            f"file: ,na=TEXT,missing=mean)"
        )


def _check_target(values: Any, name: str, task: str | None) -> None:
    """Refuse (`DataError`) a target that is neither numbers nor labels, or in doubt something else than labels."""
    if _are_times(values):
        raise DataError(f"the target {name!r} holds times; make a number of them, as in frame[{name!r}].dt.dayofyear")
    if task is None and not pd.api.types.is_numeric_dtype(values.dtype):
        different = _different(values, f"the target {name!r}", "a target is a number or a label")
        if _are_names(different, len(values)):
            raise DataError(
                f"the target {name!r} has {_told(different, len(values))}: if each is a label, "
                f"task='classification'; if they are numbers, pd.to_numeric(frame[{name!r}], errors='coerce')"
            )


def _are_times(values: Any) -> bool:
    return pd.api.types.is_datetime64_any_dtype(values.dtype) or pd.api.types.is_timedelta64_dtype(values.dtype)


def _different(values: Any, what: str, advice: str) -> Any:
    try:
        return pd.Series(values.dropna().astype(object).unique(), dtype=object)
    except TypeError:
        raise DataError(f"{what} holds {type(values.dropna().iloc[0]).__name__} objects; {advice}") from None


def _are_names(different: Any, rows: int) -> bool:
    """Whether values are likely no categories: nearly one for each row, or numbers for the most part."""
    return len(different) > _FEW and (len(different) > rows / 2 or bool(_no_numbers(different).mean() < 0.5))


def _no_numbers(different: Any) -> Any:
    found: Any = pd.to_numeric(different, errors="coerce")
    return found.isna()


def _told(different: Any, rows: int) -> str:
    odd = different[_no_numbers(different)]
    example = str((odd if len(odd) else different).iloc[0])[:40]
    return f"{len(different)} different texts in {rows} rows, such as {example!r}"
