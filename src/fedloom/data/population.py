"""Populations of clients at 8 bytes a client or none: rows of one table, samples made when asked, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import ConfigError, DataError

from .convert import as_data, check
from .fields import Data


class Local(Data):
    """One client's TRAIN samples, as views of a larger table; `.val` and `.test` are its other samples.

    `local.base.rows(local.offset + i)` is train sample i, so batches of many clients can be gathered from one
    table. Views are made when they are asked for, as gathering needs none.
    """

    __slots__ = ("_test", "_val", "_views")

    def __init__(self, table: Data, start: int, train: int, val: int, test: int) -> None:
        self.base, self.offset, self.size = table, start, train
        self._val, self._test = val, test
        self._views: dict[str, Tensor] | None = None

    @property
    def _fields(self) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self._views is None:
            end = self.offset + self.size
            self._views = {name: t[self.offset : end] for name, t in self._table.items()}
        return self._views

    @property
    def train(self) -> Local:
        return self

    @property
    def val(self) -> Data:
        start = self.offset + self.size
        return self._table.slice(start, start + self._val)

    @property
    def test(self) -> Data:
        start = self.offset + self.size + self._val
        return self._table.slice(start, start + self._test)

    @property
    def _table(self) -> Data:
        assert self.base is not None
        return self.base

    def __reduce__(self) -> tuple[Any, ...]:
        whole = self._table.slice(self.offset, self.offset + self.size + self._val + self._test)
        return Local, (whole, 0, self.size, self._val, self._test)


# ----------------------------------------------------------------------------------------------- populations


class Population(Protocol):
    """Where clients' samples come from. `rows(id)` is a table and the span of the client in it."""

    def __len__(self) -> int: ...
    def total(self, id: int) -> int: ...
    def totals(self, ids: np.ndarray | None) -> np.ndarray: ...
    def rows(self, id: int) -> tuple[Data, int, int]: ...
    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Population: ...
    def digest(self, hash: Any) -> None: ...
    @property
    def nbytes(self) -> int: ...


class Rows:
    """Clients as consecutive rows of one table: client i is rows `offsets[i]:offsets[i+1]`."""

    def __init__(self, table: Data, offsets: np.ndarray) -> None:
        if offsets.ndim != 1 or offsets.dtype.kind not in "iu":
            raise DataError(f"offsets are a row of whole numbers; given {offsets.dtype} of shape {offsets.shape}")
        self.table, self.offsets = table, np.ascontiguousarray(offsets, dtype=np.int64)
        if len(offsets) < 2 or self.offsets[0] != 0 or self.offsets[-1] != len(table):
            raise DataError(
                f"offsets run from 0 to the number of rows, one more of them than clients; given "
                f"{len(offsets)} from {self.offsets[:1].tolist()} to {self.offsets[-1:].tolist()} for {len(table)} rows"
            )
        if (falls := np.diff(self.offsets) < 0).any():
            raise DataError(f"offsets never fall; given {int(falls.sum())} that are below the one before")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def total(self, id: int) -> int:
        return int(self.offsets[id + 1] - self.offsets[id])

    def totals(self, ids: np.ndarray | None) -> np.ndarray:
        return np.diff(self.offsets) if ids is None else self.offsets[ids + 1] - self.offsets[ids]

    def rows(self, id: int) -> tuple[Data, int, int]:
        start = int(self.offsets[id])
        return self.table, start, int(self.offsets[id + 1]) - start

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Rows:
        return Rows(self.table.to(device, dtype), self.offsets)

    def digest(self, hash: Any) -> None:
        add_data(hash, self.table)
        hash.update(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes the population costs beyond the samples themselves."""
        return self.offsets.nbytes


class Made:
    """Clients whose samples a function makes when asked; the last few are kept."""

    def __init__(
        self,
        n: int,
        size: int | Sequence[int] | np.ndarray | Callable[[int], int],
        make: Callable[[int], Any],
        recipe: str,
        classes: int | None,
        keep: int = 128,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        if n < 1:
            raise ConfigError(f"a federation has 1 or more clients; given {n}")
        if isinstance(size, np.integer):
            size = int(size)
        if not isinstance(size, int) and not callable(size):
            size = np.asarray(size)
            if size.shape != (n,) or size.dtype.kind not in "iu":
                raise DataError(
                    f"one size per client, a whole number: given {size.dtype} of shape {size.shape} for {n} clients"
                )
            size = size.astype(np.int64)
            if (size < 0).any():
                raise DataError(f"{int((size < 0).sum())} of {n} client sizes are negative")
        elif isinstance(size, int) and size < 0:
            raise DataError(f"a client has 0 or more samples; given size={size}")
        self.n, self.size, self.make, self.recipe, self.classes = n, size, make, recipe, classes
        self.keep, self.kept, self.device, self.dtype = keep, dict[int, Data](), device, dtype

    def __len__(self) -> int:
        return self.n

    def total(self, id: int) -> int:
        if isinstance(self.size, int):
            return self.size
        size = int(self.size(id) if callable(self.size) else self.size[id])
        if size < 0:
            raise DataError(f"client {id}: a client has 0 or more samples; its size is {size}")
        return size

    def totals(self, ids: np.ndarray | None) -> np.ndarray:
        if isinstance(self.size, np.ndarray):
            return self.size if ids is None else self.size[ids]
        asked = range(self.n) if ids is None else ids.tolist()
        return np.fromiter((self.total(i) for i in asked), np.int64, len(asked))

    def rows(self, id: int) -> tuple[Data, int, int]:
        made = self.kept.get(id)  # several threads ask: none may take away what another is about to return
        if made is None:
            data, due = as_data(self._made(id), f"client {id}"), self.total(id)
            if len(data) != due:
                raise DataError(f"client {id}: make({id}) gave {len(data)} samples, and size says {due}")
            check(data, f"client {id}", self.classes, empty=due == 0)
            for old in list(self.kept)[: max(0, len(self.kept) + 1 - max(self.keep, 1))]:
                self.kept.pop(old, None)
            made = self.kept[id] = data.to(self.device, self.dtype)
        return made, 0, len(made)

    def _made(self, id: int) -> Any:
        try:
            return self.make(id)
        except Exception as error:
            raise DataError(f"client {id}: make({id}) raised {type(error).__name__}: {error}") from error

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Made:
        return Made(self.n, self.size, self.make, self.recipe, self.classes, self.keep, device, dtype or self.dtype)

    def digest(self, hash: Any) -> None:
        """The recipe, and three clients as a sample of what it makes."""
        sizes = self.size if not callable(self.size) else qualified(self.size)
        hash.update(f"{self.recipe} n={self.n}".encode())
        hash.update(sizes if isinstance(sizes, np.ndarray) else str(sizes).encode())
        for id in sorted({0, self.n // 2, self.n - 1}):
            add_data(hash, self.rows(id)[0])

    @property
    def nbytes(self) -> int:
        return self.size.nbytes if isinstance(self.size, np.ndarray) else 0


class Elsewhere:
    """Clients whose samples lie at other places: here are their sizes and what a sample looks like, on PyTorch's "meta"
    device. Shapes and types can be asked for; reading a number is an error of PyTorch's.

    Args:
        sizes: samples of each client, train, val and test together.
        schema: field -> shape of one sample and its type.
        here: the samples that do lie here, by client; all of them are of `schema`.
        identity: what the owners say of their samples, for `digest`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        schema: Mapping[str, tuple[Sequence[int], torch.dtype]],
        here: Mapping[int, Data] | None = None,
        identity: str = "",
    ) -> None:
        self.sizes, self.schema = np.asarray(sizes, dtype=np.int64), dict(schema)
        self.here, self.identity = dict(here or {}), identity

    def __len__(self) -> int:
        return len(self.sizes)

    def total(self, id: int) -> int:
        return int(self.sizes[id])

    def totals(self, ids: np.ndarray | None) -> np.ndarray:
        return self.sizes if ids is None else self.sizes[ids]

    def rows(self, id: int) -> tuple[Data, int, int]:
        n = self.total(id)
        if id in self.here:
            return self.here[id], 0, n
        fields = {k: torch.empty(n, *shape, dtype=kind, device="meta") for k, (shape, kind) in self.schema.items()}
        return Data(**fields), 0, n

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Elsewhere:
        here = {id: data.to(device, dtype) for id, data in self.here.items()}
        schema = {k: (shape, dtype if dtype and t.is_floating_point else t) for k, (shape, t) in self.schema.items()}
        return Elsewhere(self.sizes.tolist(), schema, here, self.identity)

    def digest(self, hash: Any) -> None:
        hash.update(f"{self.identity} {self.sizes.tolist()} {self.schema}".encode())

    @property
    def nbytes(self) -> int:
        return self.sizes.nbytes


def stand_in(data: Data) -> Data:
    """Zeros for samples that lie elsewhere, to try a network on; others as they are."""
    if not any(t.is_meta for t in data.values()):
        return data
    return Data(**{name: torch.zeros(t.shape, dtype=t.dtype) for name, t in data.items()})


def qualified(function: Callable[..., Any]) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def add_data(hash: Any, data: Data | None) -> None:
    """Adds names, types, shapes and bytes of all fields to a hash."""
    for name in sorted(data or ()):
        t = (data or {})[name].detach().cpu().contiguous()
        hash.update(f"{name} {t.dtype} {tuple(t.shape)};".encode())
        if t.numel():
            hash.update(t.view(-1).view(torch.uint8).numpy())


def split_sizes(n: Any, val: float, test: float) -> tuple[Any, Any, Any]:
    """Train, val and test sizes of a client with n samples (a number, or an array of them).

    Fractions are rounded half up; test gives way before train does, and val before test, so that every client
    with a sample keeps one to train on.
    """
    if isinstance(n, int):
        free = max(n - 1, 0)
        held = min(int(n * test + 0.5), free)
        kept = min(int(n * val + 0.5), free - held)
        return n - held - kept, kept, held
    free = np.maximum(n - 1, 0)
    tests = np.minimum((n * test + 0.5) // 1, free)
    vals = np.minimum((n * val + 0.5) // 1, free - tests)
    tests, vals = tests.astype(np.int64), vals.astype(np.int64)
    return n - tests - vals, vals, tests
