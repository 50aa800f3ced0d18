"""From what users hold to checked tensors: dtype rules, the checks at the door, text as bytes,
standardising.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import DataError

from .fields import IGNORE, Data

RESERVED = frozenset(name for name in (*dir(Data), "train", "val", "test") if not name.startswith("_"))


def tensor(values: Any, name: str) -> Tensor:
    """Any array, list, frame or tensor as a CPU tensor that models accept.

    NumPy floats become float32 and integers int64, booleans stay (labels `y` become int64); bytes of three
    and more axes are images and become float32 in 0..1. Float tensors of PyTorch keep their precision.

    Raises:
        DataError: the values are not numbers.
    """
    if isinstance(values, Tensor):
        t = values.detach().cpu()
    else:
        array = _array(values, name)
        if array.dtype.kind not in "fiub":
            raise DataError(
                f"field {name!r} holds {array.dtype}, and tensors hold numbers; encode it first, or use "
                f"Federation.from_pandas, which makes categories one-hot"
            )
        t = torch.from_numpy(np.array(array, dtype=np.float32 if array.dtype.kind == "f" else None))
    if t.dtype is torch.uint8 and t.dim() >= 3 and name != "y":
        return t.float() / 255
    if not t.is_floating_point() and (t.dtype is not torch.bool or name == "y"):
        return t.long()
    return t


def _array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.utils.data.Dataset):
        raise DataError(f"field {name!r} is a PyTorch dataset; clients out of one: Federation.from_torch(dataset)")
    try:
        return np.asarray(values)
    except ValueError:
        raise DataError(
            f"field {name!r} is not one array: its entries differ in shape. Several inputs are fields of their own: "
            f"Federation.from_data({{'x': a, 'z': b, 'y': y}}), with a task whose inputs(batch) returns them all"
        ) from None


def codes(values: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Group names (or numbers) as integers 0..g-1 in sorted order, int64 `(n,)`, and their names as text."""
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 1:
        raise DataError(f"groups are one name or number per sample; given an array of shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"groups: {int((~np.isfinite(array)).sum())} of {len(array)} are NaN or infinite")
    if array.dtype.kind == "O":
        import pandas as pd

        empty = pd.isna(array)
        if empty.any():
            raise DataError(f"groups: {int(empty.sum())} of {len(array)} are missing (first: sample {empty.argmax()})")
        array = array.astype(str)
    names, index = np.unique(array, return_inverse=True)
    return torch.from_numpy(index.astype(np.int64)), tuple(str(name) for name in names)


def as_data(given: Any, where: str) -> Data:
    """A `Data` of what a user gave: Data, a mapping of fields, `(x, y)`, or inputs alone.

    Raises:
        DataError: fields of different length, not numeric, or with a reserved name.
    """
    if isinstance(given, Mapping):
        named = {str(name): given[name] for name in given}
    elif isinstance(given, tuple) and len(given) == 2:
        named = dict(zip("xy", given))
    elif isinstance(given, Tensor | np.ndarray):
        named = {"x": given}
    else:
        raise DataError(
            f"{where}: expected Data(x=..., y=...), a dict of arrays, or (x, y); given {type(given).__name__}"
        )
    if clash := sorted(RESERVED & set(named)):
        raise DataError(f"{where}: {clash[0]!r} is a word of Data itself; call the field otherwise")
    fields = {name: tensor(values, name) for name, values in named.items()}
    if scalars := [name for name, t in fields.items() if t.dim() == 0]:
        raise DataError(f"{where}: field {scalars[0]!r} is a single number; a field has one entry per sample")
    sizes = {name: len(t) for name, t in fields.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{where}: fields differ in length: {sizes}; each holds one entry per sample")
    return Data(**fields)


def check(data: Data, where: str, classes: int | None = None, empty: bool = False) -> None:
    """Refuses what no model can train on.

    Args:
        data: the samples.
        where: what they are, for the message ("train", "client 3").
        classes: labels must lie in 0..classes-1; None: only negative ones are refused.
        empty: whether no samples at all are legal.

    Raises:
        DataError: naming the field, how many entries are bad, and the first bad sample.
    """
    if not len(data) and not empty:
        raise DataError(f"{where}: no samples")
    for name, t in data.items():
        if t.is_floating_point():
            finite = torch.isfinite(t)
            if not finite.all():
                raise DataError(f"{where}: field {name!r} has {_count(~finite)} that are NaN or infinite")
    if "y" in data and not data["y"].is_floating_point():
        _check_labels(data["y"], where, classes)


def _check_labels(y: Tensor, where: str, classes: int | None) -> None:
    if y.dim() == 2 and y.shape[1] == 1:
        raise DataError(f"{where}: labels have shape {tuple(y.shape)}; pass y.squeeze(1), one label per sample")
    negative = (y < 0) & (y != IGNORE) if y.dim() > 1 else y < 0
    if negative.any():
        raise DataError(f"{where}: field 'y' has {_count(negative)} below 0; labels are 0..classes-1")
    if classes is not None and (beyond := y >= classes).any():
        raise DataError(
            f"{where}: field 'y' has {_count(beyond)} outside 0..{classes - 1} (largest {int(y.max())}); "
            f"labels are 0..classes-1, and classes={classes}"
        )


def _count(bad: Tensor) -> str:
    rows = bad.flatten(1).any(1) if bad.dim() > 1 else bad
    first = int(torch.nonzero(rows)[0])
    return f"{int(bad.sum())} values in {int(rows.sum())} of {len(bad)} samples (first: sample {first})"


def label_count(parts: Iterable[Data | None]) -> int | None:
    """One more than the largest integer label of any part; None without integer labels."""
    largest = [
        int(p["y"].max()) + 1 for p in parts if p and "y" in p and not p["y"].is_floating_point() and p["y"].numel()
    ]
    return max(largest, default=None)


def standardised(data: Data, columns: Tensor, train: Data) -> Data:
    """`data` with the given columns of `x` `(n, d)` shifted and scaled to mean 0 and standard deviation 1 on
    `train`. Missing entries (NaN) become the mean; a column that is constant on `train` is only shifted."""
    return Data(**{**data, "x": scale(data["x"], columns, moments(train["x"], columns))})


def moments(x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (population) per column, float64 `(k,)`, over entries that are not NaN."""
    picked = x[:, columns].double()
    mean = torch.nan_to_num(picked.nanmean(0))
    std = (picked - mean).square().nanmean(0).sqrt()
    return mean, torch.where((std > 0) & std.isfinite(), std, torch.ones_like(std))


def scale(x: Tensor, columns: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """`x` with columns shifted and scaled by `moments`; NaN becomes 0, the mean."""
    out = x.clone()
    out[:, columns] = torch.where(x[:, columns].isnan(), 0.0, (x[:, columns].double() - by[0]) / by[1]).to(x.dtype)
    return out


# ------------------------------------------------------------------------------------------------------ text

END = 0
"""The byte that ends a text and fills what is left of a row."""


def text_rows(texts: Sequence[str], length: int) -> Tensor:
    """Texts as rows of UTF-8 bytes int64 `(n, length)`, cut or filled with `END`."""
    rows = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in zip(rows, texts):
        data = text.encode()[:length]
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return torch.from_numpy(rows)


def answered(pairs: Sequence[tuple[str, str]], length: int) -> Data:
    """Prompts with responses as next-byte prediction.

    Each row is prompt + response + END; a row that is too long loses the beginning of its prompt, then the
    end of its response. Returns `x` int64 `(n, length)`: the bytes read; `y`: the byte that follows each,
    `IGNORE` outside the response; `mask` bool: where `y` is a byte of the response (or its END).
    """
    rows = np.zeros((len(pairs), length + 1), dtype=np.int64)
    mask = np.zeros((len(pairs), length + 1), dtype=bool)
    for i, (prompt, response) in enumerate(pairs):
        answer = (response.encode() + bytes([END]))[:length]  # one byte or more of the prompt stays
        question = (prompt.encode() or b"\n")[-(length + 1 - len(answer)) :]
        whole = np.frombuffer(question + answer, np.uint8)
        rows[i, : len(whole)] = whole
        mask[i, len(question) : len(whole)] = True
    y = np.where(mask, rows, IGNORE)[:, 1:]
    return Data(
        x=torch.from_numpy(rows[:, :-1].copy()),
        y=torch.from_numpy(y),
        mask=torch.from_numpy(mask[:, 1:].copy()),
    )
