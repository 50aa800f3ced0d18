"""Samples as named tensors of one length. A client's data, a batch and public data are all this one thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedloom.errors import DataError

IGNORE = -100
"""The label of a position without one (a prompt, padding): not learned and not counted."""


class Data(Mapping[str, Tensor]):
    """Named tensors whose first axis is the sample: `Data(x=images, y=labels)`; `data.x`, `data["y"]`,
    `len(data)` samples.

    Immutable: `replace` gives a new object that shares what it did not replace. `rows(index)` selects
    samples. A slice of a larger table remembers it (`base`, `offset`), so that an engine can gather the
    batches of many clients from one tensor.

    Raises:
        DataError: fields differ in length.
    """

    __slots__ = ("_fields", "base", "offset", "size")

    _fields: dict[str, Tensor]
    base: Data | None
    offset: int
    size: int

    def __init__(self, _base: Data | None = None, _offset: int = 0, /, **fields: Tensor) -> None:
        sizes = {name: len(tensor) for name, tensor in fields.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"the fields of one data object have one length each sample; given {sizes}")
        self._fields = fields
        self.base, self.offset = _base, _offset
        self.size = next(iter(sizes.values()), 0)

    @classmethod
    def cut(cls, fields: dict[str, Tensor], size: int) -> Data:
        """For loops that make thousands of batches: fields already known to have `size` samples each."""
        made = cls.__new__(cls)
        made._fields, made.base, made.offset, made.size = fields, None, 0, size
        return made

    def __getitem__(self, name: str) -> Tensor:
        return self._fields[name]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self._fields[name]
        except KeyError:
            raise AttributeError(f"no field {name!r}; this data has {', '.join(self._fields) or 'no fields'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        """The number of SAMPLES (fields are listed by iterating)."""
        return self.size

    def __bool__(self) -> bool:
        return self.size > 0

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {tuple(t.shape)} {str(t.dtype)[6:]}" for name, t in self._fields.items())
        return f"Data({fields})"

    def keys(self):  # the Mapping mixin would count samples, not fields
        return self._fields.keys()

    def items(self):
        return self._fields.items()

    def values(self):
        return self._fields.values()

    def __reduce__(self) -> tuple[Any, ...]:
        # a slice travels alone: pickling a view would take the whole table along
        return _restore, ({n: t.clone() if self.base is not None else t for n, t in self._fields.items()},)

    def replace(self, **fields: Tensor) -> Data:
        """The same samples with fields added or replaced."""
        return Data(**{**self._fields, **fields})

    def rows(self, index: Tensor) -> Data:
        """The samples at `index` (positions or a boolean mask), copied."""
        return Data(**{name: tensor[index] for name, tensor in self._fields.items()})

    def slice(self, start: int, stop: int) -> Data:
        """Samples `start:stop` as views; remembers this table as its base."""
        base = self if self.base is None else self.base
        fields = {name: tensor[start:stop] for name, tensor in self._fields.items()}
        return Data(base, self.offset + start, **fields)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Data:
        """The same samples on another device, and floating fields of another type; itself where nothing changes."""
        moved = {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in self._fields.items()}
        return self if all(moved[name] is tensor for name, tensor in self._fields.items()) else Data(**moved)

    @staticmethod
    def cat(parts: list[Data]) -> Data:
        """All samples of several objects with equal fields, copied into one."""
        return Data(**{name: torch.cat([p[name] for p in parts]) for name in parts[0]})


def _restore(fields: dict[str, Tensor]) -> Data:
    return Data(**fields)


def kind_of(data: Data) -> tuple[tuple[str, torch.Size, torch.dtype], ...]:
    """Names, shapes of one sample and types of its fields: equal for samples that fit into one batch."""
    return tuple([(name, t.shape[1:], t.dtype) for name, t in (data.base or data).items()])
