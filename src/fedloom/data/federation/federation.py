"""Who holds which data: a compact, lazy population of clients with shared test, public and validation data.

Samples are put in client order once. Client i is rows `offsets[i]:offsets[i+1]` of one table, its rows ordered train,
val, test; the sizes of the three follow from the number of rows by a rule. So a client costs 8 bytes, no object exists
for it before `local(i)` makes one of views, and nothing grows with the population per round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fedloom.checked import as_python, checked
from fedloom.data.arrange import check_fractions, kinds
from fedloom.data.fields import Data
from fedloom.data.population import Local, Population, Rows, add_data, split_sizes
from fedloom.errors import DataError

from . import from_datasets, from_owners, from_samples, from_tables


class Federation:
    """The clients' data, plus data shared by all.

    Made by `from_arrays`, `from_data`, `from_torch`, `from_pandas`, `from_file`, `from_huggingface`,
    `from_clients`, `from_offsets` (rows already in client order) or `generated` (a function makes a client
    when asked).

    Attributes:
        test, public, validation: global test set, public data, server-side validation set; `Data` or None.
        name: what reports call it.
        classes: number of classes, or None without integer labels.
        names: the clients' names (hospital, speaker) where each is one group; else None.
        info: fields and shapes, source, partition and seed as plain values, for the run's configuration.
    """

    def __init__(
        self,
        population: Population,
        *,
        val: float = 0.0,
        client_test: float = 0.2,
        test: Data | None = None,
        public: Data | None = None,
        validation: Data | None = None,
        name: str = "federation",
        classes: int | None = None,
        names: tuple[str, ...] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        check_fractions(val=val, client_test=client_test)
        if names is not None and len(names) != len(population):
            raise DataError(f"{name}: {len(names)} names for {len(population)} clients; one name per client")
        val, client_test = as_python(val), as_python(client_test)
        self.population, self.val, self.client_test = population, val, client_test
        self.test, self.public, self.validation = test, public, validation
        self.name, self.classes, self.names = name, classes, names
        shared = {k: len(d) for k, d in (("test", test), ("public", public), ("validation", validation)) if d}
        self.info: dict[str, Any] = {
            "partition": "given",
            "clients": len(population),
            "val": val,
            "client_test": client_test,
            **shared,
        }
        self.info.update({k: as_python(v) for k, v in (info or {}).items()})
        self._sizes: dict[int, int] = {}  # of clients that were asked for it: it is, for every job

    # -- constructors: samples without owners, data sets of other libraries, tables and files, clients

    from_arrays = classmethod(checked(from_samples.from_arrays))
    from_data = classmethod(checked(from_samples.from_data))
    assemble = classmethod(from_samples.assemble)
    from_torch = classmethod(checked(from_datasets.from_torch))
    from_huggingface = classmethod(checked(from_datasets.from_huggingface))
    from_pandas = classmethod(checked(from_tables.from_pandas))
    from_file = classmethod(checked(from_tables.from_file))
    from_clients = classmethod(checked(from_owners.from_clients))
    from_offsets = classmethod(checked(from_owners.from_offsets))
    generated = classmethod(checked(from_owners.generated))

    # -- what engines use

    def __len__(self) -> int:
        """The number of clients."""
        return len(self.population)

    @property
    def ids(self) -> range:
        return range(len(self.population))

    def size(self, id: int) -> int:
        """Number of TRAIN samples of a client."""
        size = self._sizes.get(id)
        if size is None:
            size = self._sizes[id] = split_sizes(self.population.total(self._known(id)), self.val, self.client_test)[0]
        return size

    def sizes(self, ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """TRAIN samples of the given clients (all by default: work proportional to the population), int64."""
        asked = None if ids is None else np.asarray(ids, dtype=np.int64)
        if asked is not None:
            for id in (asked.min(initial=0), asked.max(initial=0)):
                self._known(id)
        return split_sizes(self.population.totals(asked), self.val, self.client_test)[0]

    def local(self, id: int) -> Local:
        """A client's TRAIN samples as views, with `.val` and `.test`."""
        table, start, n = self.population.rows(self._known(id))
        return Local(table, start, *split_sizes(n, self.val, self.client_test))

    def _known(self, id: int) -> int:
        if not 0 <= id < len(self.population):
            raise DataError(f"client {id} does not exist; this federation has clients 0..{len(self.population) - 1}")
        return int(id)

    @property
    def table(self) -> Data | None:
        """All clients' samples in client order, or None where clients are made when asked."""
        return self.population.table if isinstance(self.population, Rows) else None

    @property
    def nbytes(self) -> int:
        """Bytes the population itself costs, beyond the samples."""
        return self.population.nbytes

    def examples(self, k: int = 2) -> Data:
        """The first k train samples of the first client that has any (to try a model on)."""
        for id in self.ids:
            if self.population.total(id):
                local = self.local(id)
                return local.slice(0, min(k, len(local)))
        raise DataError(f"{self.name}: no client has a sample")

    @cached_property
    def sha256(self) -> str:
        """Hash of every tensor, who holds what, and the splits; of a generated population: of its recipe,
        sizes and three clients."""
        hash = hashlib.sha256(f"val={self.val!r} test={self.client_test!r}".encode())
        self.population.digest(hash)
        for part in (self.test, self.public, self.validation):
            hash.update(b"|")
            add_data(hash, part)
        return hash.hexdigest()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Federation:
        """The same federation with its tensors on another device, and its floating fields of another type."""
        shared = {k: d and d.to(device, dtype) for k, d in vars(self).items() if k in ("test", "public", "validation")}
        moved = Federation.__new__(type(self))
        moved.__dict__.update({**vars(self), **shared, "population": self.population.to(device, dtype)})
        if dtype is not None:
            moved.__dict__.pop("sha256", None)
        if moved.table is not None and "fields" in self.info:
            moved.info = {**self.info, "fields": kinds(moved.table)}
        return moved

    def __repr__(self) -> str:
        extra = "".join(f", {k} {len(d)}" for k in ("test", "public", "validation") if (d := getattr(self, k)))
        return f"Federation({self.name!r}, {len(self)} clients, {self.info.get('partition', '')}{extra})"
