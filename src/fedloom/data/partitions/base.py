"""What every partition is: a frozen record that gives each sample a client, and writes itself as text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedloom.checked import Checked
from fedloom.data.fields import Data
from fedloom.errors import ConfigError, DataError
from fedloom.keyed import seed_of


def numbers(*key: Any) -> np.random.Generator:
    """A NumPy generator for this key (NumPy draws Dirichlet vectors of tiny alpha without underflow)."""
    return np.random.default_rng(seed_of(*key))


def integer_key(data: Data, by: str) -> np.ndarray:
    """The integer of each sample that a partition splits by: `label` is the field `label` or else `y`,
    `group` the groups given with the data, any other name a field.

    Raises:
        DataError: there is no such field, or it is not one integer per sample.
    """
    name = "y" if by == "label" and "label" not in data else by
    if name not in data:
        fields_held = ", ".join(data) or "no fields"
        raise DataError(f"the partition splits by {by!r}; these samples have {fields_held}. {_ADVICE}")
    key = data[name]
    if key.dim() != 1 or key.is_floating_point():
        raise DataError(
            f"the partition splits by {by!r}, which must be one integer per sample; the field {name!r} is "
            f"{str(key.dtype)[6:]} of shape {tuple(key.shape)}. {_ADVICE}"
        )
    return key.numpy()


_ADVICE = "Give groups=..., or use EmbeddingDirichlet(0.1), 'embedding:0.1', which needs no labels"


@dataclass(frozen=True)
class Partition(Checked):
    """Base of all partitions. A subclass gives `assign`; `spec` is its name on the command line."""

    such: ClassVar[str] = "fl.Dirichlet(0.1), 'dirichlet:0.1'"
    spec = ""
    least = 1
    """The fewest samples a client may get; 0 allows empty clients."""

    @classmethod
    def spelled(cls) -> str:
        """What an option that takes a partition is called."""
        return "a partition such as dirichlet:0.1"

    def __call__(self, data: Data, clients: int | None = None, rng: np.random.Generator | int = 0) -> Tensor:
        """The client of each sample.

        Args:
            data: the samples, with the fields the partition reads.
            clients: how many clients; None where the data says it (`Natural`, `Domains`), otherwise 100.
            rng: a seed, or a NumPy generator.

        Returns:
            int64 `(n,)` with values in `0..clients-1`.

        Raises:
            DataError: too few samples, or a field that is missing or not an integer per sample.
            ConfigError: an impossible number of clients.
        """
        clients = self.natural(data) or 100 if clients is None else clients
        if not isinstance(clients, int | np.integer) or clients < 1:
            raise ConfigError(f"a partition makes 1 or more clients; given {clients!r}")
        if not len(data):
            raise DataError(f"{self} was given no samples to split")
        if len(data) < clients * self.least:
            fewer = ", or a smaller least; 0 allows empty clients" if "least" in _names(self) else ""
            raise DataError(
                f"{self} gives each of {clients} clients {self.least} or more samples, and there are {len(data)}: use "
                f"fewer clients, as in clients={max(len(data) // self.least, 1)}{fewer}"
            )
        rng = rng if isinstance(rng, np.random.Generator) else numbers(int(rng), "partition")
        owner = np.asarray(self.assign(data, clients, rng), dtype=np.int64)
        if owner.shape != (len(data),) or owner.min() < 0 or owner.max() >= clients:
            raise DataError(
                f"{self} must give each of {len(data)} samples one client in 0..{clients - 1}; it gave shape "
                f"{owner.shape} with values from {owner.min()} to {owner.max()}"
            )
        return torch.from_numpy(owner)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        """The client of each sample as an integer array `(n,)`."""
        raise NotImplementedError

    def natural(self, data: Data) -> int | None:
        """The number of clients the data itself asks for, if any."""
        return None

    def change(self, data: Data, owner: Tensor, clients: int, rng: np.random.Generator) -> tuple[Data, dict[str, Any]]:
        """The samples as their clients see them, and what the federation should record of the change."""
        return data, {}

    def __str__(self) -> str:
        """The text `parse_partition` reads: the first field by position, others by name where they are not
        the default."""
        given = []
        for i, f in enumerate(f for f in fields(self) if f.name not in ("base", "kind")):
            value = getattr(self, f.name)
            if i == 0 and (value != f.default or not isinstance(value, str)):
                given.append(_text(value))
            elif value != f.default:
                given.append(f"{f.name}={_text(value)}")
        own = self.spec + (":" + ",".join(given) if given else "")
        base = getattr(self, "base", None)
        return own if base is None else f"{own}/{base}"


def _names(partition: Partition) -> set[str]:
    return {f.name for f in fields(partition)}


def _text(value: Any) -> str:
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def positive(what: str, value: float) -> None:
    """Refuse (`ConfigError`) what is not a finite number above 0."""
    if not (value > 0 and np.isfinite(value)):
        raise ConfigError(f"{what} is a finite number above 0; given {value}")


def not_negative(what: str, value: int) -> None:
    """Refuse (`ConfigError`) what is below 0."""
    if value < 0:
        raise ConfigError(f"{what} is 0 or more; given {value}")
