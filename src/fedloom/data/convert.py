"""From what users hold to checked tensors: dtype rules, the checks at the door, text as bytes,
standardising.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedloom.errors import ConfigError, DataError

from .fields import IGNORE, Data

RESERVED = frozenset(name for name in (*dir(Data), "train", "val", "test") if not name.startswith("_"))


def tensor(values: Any, name: str, floats: type[np.floating] = np.float32) -> Tensor:
    """Any array, list, frame or tensor as a CPU tensor that models accept.

    NumPy floats become `floats` and integers int64, booleans stay (labels `y` become int64); bytes of three
    and more axes are images and become float32 in 0..1. Float tensors of PyTorch keep their precision.

    Raises:
        DataError: the values are not numbers, or too large.
    """
    if isinstance(values, Tensor):
        if values.is_complex() or values.layout is not torch.strided:
            kind = values.dtype if values.is_complex() else values.layout
            raise DataError(f"field {name!r} is {kind}, and samples are dense real numbers; {_REAL}")
        t = values.detach().cpu()
    else:
        array = _array(values, name)
        if array.dtype.kind not in "fiub":
            raise DataError(f"field {name!r} holds {_held(array)}, and tensors hold numbers; {_instead(array, name)}")
        t = torch.from_numpy(_fitted(array, name, floats))
    if t.dtype is torch.uint8 and t.dim() >= 3 and name != "y":
        return t.float() / 255
    if not t.is_floating_point() and (t.dtype is not torch.bool or name == "y"):
        return t.long()
    return t


def _fitted(array: np.ndarray, name: str, floats: type[np.floating]) -> np.ndarray:
    """A copy in the processor's order of bytes, floats as `floats`."""
    if array.dtype.kind != "f":
        if array.dtype.kind == "u" and array.itemsize == 8 and (array > np.iinfo(np.int64).max).any():
            raise DataError(
                f"field {name!r} holds {array.max()}, and whole numbers end at 2^63 - 1, the largest of int64"
            )
        return np.array(array, dtype=array.dtype.newbyteorder("="))
    try:
        with np.errstate(over="raise"):
            return np.array(array, dtype=floats)
    except FloatingPointError:
        raise DataError(
            f"field {name!r} holds numbers beyond {np.finfo(floats).max:.2g}, the largest of {floats.__name__}; scale "
            f"them, or give torch.tensor(values), whose 64 bits stay"
        ) from None


def _array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.utils.data.Dataset):
        raise DataError(f"field {name!r} is a PyTorch dataset; clients out of one: Federation.from_torch(dataset)")
    if (hidden := np.ma.getmask(values)) is not np.ma.nomask and hidden.any():
        raise DataError(
            f"field {name!r} is a masked array, {int(hidden.sum())} values hidden; fill them, as in values.filled(0)"
        )
    try:
        array = np.asarray(values)
        # numbers of several kinds in one table are objects: [1, 2.5, True]
        array = np.asarray(array.tolist()) if array.dtype.kind == "O" and array.ndim else array
    except ValueError:
        raise DataError(
            f"field {name!r} is not one array: its entries differ in shape. Several inputs are fields of their own: "
            f"Federation.from_data({{'x': a, 'z': b, 'y': y}}), with a task whose inputs(batch) returns them all"
        ) from None
    # text of HDF5 and NPZ files comes as bytes
    return np.char.decode(array, "utf-8", "backslashreplace") if array.dtype.kind == "S" else array


_REAL = "give x.to_dense(), or real and imaginary part as two channels (torch.view_as_real)"


def _held(array: np.ndarray) -> str:
    """What an array of no numbers holds, in words."""
    if array.dtype.kind != "O":
        return str(array.dtype)
    odd = next((v for v in array.flat if not isinstance(v, int | float | np.number)), None)
    return f"{type(odd).__name__} objects" if odd is not None else "empty entries (None)"


def _instead(array: np.ndarray, name: str) -> str:
    if hasattr(array.item() if array.size == 1 else None, "toarray"):
        return "give values.toarray()"
    if name == "y" and array.dtype.kind == "U":
        return "labels become numbers by `names, y = np.unique(y, return_inverse=True)`, for all clients at once"
    return "encode it first, or use Federation.from_pandas, which makes categories one-hot"


def codes(values: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Group names (or numbers) as integers 0..g-1 in sorted order, int64 `(n,)`, and their names as text."""
    array = _array(values.cpu() if isinstance(values, Tensor) else values, "groups")
    if array.ndim != 1:
        raise DataError(f"groups are one name or number per sample; given an array of shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"groups: {int((~np.isfinite(array)).sum())} of {len(array)} are NaN or infinite")
    if array.dtype.kind in "OUM":
        _refuse_missing(values, "groups")
        array = array.astype(str)
    names, index = np.unique(array, return_inverse=True)
    return torch.from_numpy(index.astype(np.int64)), tuple(map(as_text, names))


def as_text(value: Any) -> str:
    """A name or category as text: numbers beside empty cells are read as floats, and 3.0 and 3 are one."""
    return str(int(value)) if isinstance(value, float | np.floating) and value.is_integer() else str(value)


def label_names(labels: Any) -> tuple[str, ...]:
    """The different labels in sorted order where they are text, one per sample; () where they are numbers or none."""
    if labels is None or isinstance(labels, Tensor):
        return ()
    array = _array(labels, "y")
    if array.ndim == 1 and array.dtype.kind in "OU":
        _refuse_missing(labels, "labels y")
    return tuple(np.unique(array).tolist()) if array.ndim == 1 and array.dtype.kind == "U" else ()


def _refuse_missing(names: Any, what: str) -> None:
    """Looks at what was given, as NumPy makes texts of missing ones: "nan", a name like any other."""
    import pandas as pd

    gone = pd.isna(np.asarray(names, dtype=object))
    if gone.any():
        raise DataError(f"{what}: {int(gone.sum())} of {len(gone)} are missing (first: sample {gone.argmax()})")


def label_numbers(labels: Any, names: Sequence[str], where: str) -> np.ndarray:
    """The position of each label among `names`, int64 `(n,)`.

    Raises:
        DataError: labels that are none of them.
    """
    given = _array(labels, "y").astype(str)
    found = np.searchsorted(names, given).clip(max=len(names) - 1)
    if (odd := np.asarray(names)[found] != given).any():
        few = np.unique(given[odd])[:5].tolist()
        raise DataError(f"{where}: {int(odd.sum())} labels are none of {list(names)[:20]}: {few}")
    return found


def as_fields(given: Any, where: str) -> dict[str, Any]:
    """The fields of what a user gave, by name: Data, a mapping of fields, `(x, y)`, inputs alone, or a PyTorch dataset.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(given, Mapping):
        return {str(name): given[name] for name in given}
    if isinstance(given, tuple) and len(given) == 2:
        return dict(zip("xy", given))
    if isinstance(given, Tensor | np.ndarray):
        return {"x": given}
    if isinstance(given, Dataset | DataLoader):
        from .readers import read_dataset  # which makes arrays with what is here

        return read_dataset(given, ("x", "y"), where)  # pyright: ignore[reportUnknownArgumentType]
    tables = (
        "; tables, each a client's: Federation.from_pandas(pd.concat([a.assign(site='a'), ...]), target, group='site')"
    )
    raise DataError(
        f"{where}: expected Data(x=..., y=...), a dict of arrays, (x, y), or a PyTorch dataset; given "
        f"{type(given).__name__}" + (tables if hasattr(given, "columns") else "")
    )


def as_data(given: Any, where: str) -> Data:
    """A `Data` of what a user gave, as in `as_fields`.

    Raises:
        DataError: fields of different length, not numeric, or with a reserved name.
    """
    named = as_fields(given, where)
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
        ConfigError: fewer than 1 class.
        DataError: naming the field, how many entries are bad, and the first bad sample.
    """
    if classes is not None and classes < 1:
        raise ConfigError(f"there are 1 or more classes; given classes={classes} (none: they are counted)")
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
    return max([n for n in largest if n > 0], default=None)


def standardised(data: Data, columns: Tensor, train: Data, dtype: torch.dtype = torch.float32) -> Data:
    """`data` with the given columns of `x` `(n, d)` shifted and scaled to mean 0 and standard deviation 1 on
    `train`. Missing entries (NaN) become the mean; a column that is constant on `train` is only shifted."""
    return Data(**{**data, "x": scale(data["x"], columns, moments(train["x"], columns), dtype)})


def moments(x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (population) per column, float64 `(k,)`, over entries that are not NaN."""
    picked = x[:, columns].double()
    mean = torch.nan_to_num(picked.nanmean(0))
    std = (picked - mean).square().nanmean(0).sqrt()
    return mean, torch.where((std > 0) & std.isfinite(), std, torch.ones_like(std))


def scale(x: Tensor, columns: Tensor, by: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """`x` as `dtype`, with columns shifted and scaled by `moments`; NaN becomes 0, the mean."""
    out, picked = x.to(dtype, copy=True), x[:, columns].double()
    out[:, columns] = torch.where(picked.isnan(), 0.0, (picked - by[0]) / by[1]).to(dtype)
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
