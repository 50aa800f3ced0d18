"""Who holds which data: a compact, lazy population of clients with shared test, public and validation
data.

Samples are put in client order once. Client i is rows `offsets[i]:offsets[i+1]` of one table, its rows
ordered train, val, test; the sizes of the three follow from the number of rows by a rule. So a client costs
8 bytes, no object exists for it before `local(i)` makes one of views, and nothing grows with the population
per round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import ConfigError, DataError

from .arrange import by_client, check_fractions, client_names, hold_out, same_shape, train_mask
from .convert import as_data, check, codes, label_count, standardised
from .fields import Data
from .partitions import Partition, numbers, parse_partition
from .population import Local, Made, Population, Rows, add_data, qualified, split_sizes
from .readers import column, read_dataset, read_frame, read_npz

if TYPE_CHECKING:
    import pandas as pd

Shared = Any
"""Data for the server: `Data`, `(x, y)`, a dict of arrays; a fraction held out before the partition; or
None."""


# ------------------------------------------------------------------------------------------------ federation


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
        self.info.update(info or {})

    # -- constructors

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any = None,
        clients: int | None = None,
        partition: Partition | str = "iid",
        **options: Any,
    ) -> Federation:
        """Clients out of arrays: `Federation.from_arrays(x, y, clients=100, partition=Dirichlet(0.1),
        test=(xt, yt))`.

        Args:
            x: inputs `(n, ...)`: NumPy, PyTorch or lists. float64 of NumPy becomes float32; byte images 0..1.
            y: targets: integer labels 0..C-1, or floats to regress; None for inputs alone.
            clients: how many; None: what the partition finds in the data, or else 100.
            partition: who holds which sample, as an object or text ("dirichlet:0.1").
            **options: those of `from_data`.
        """
        options.setdefault("name", "arrays")
        return cls.from_data({"x": x} if y is None else (x, y), clients, partition, **options)

    @classmethod
    def from_data(
        cls,
        data: Any,
        clients: int | None = None,
        partition: Partition | str = "iid",
        *,
        groups: Any = None,
        test: Shared | str = None,
        public: Shared = None,
        validation: Shared = None,
        val: float = 0.0,
        client_test: float = 0.2,
        seed: int = 0,
        name: str = "data",
        classes: int | None = None,
        standardise: bool = False,
        ordered: bool = False,
        info: Mapping[str, Any] | None = None,
    ) -> Federation:
        """Clients out of samples with any named fields.

        Args:
            data: `Data`, a dict of arrays, or `(x, y)`.
            clients: how many; None: what the partition finds in the data, or else 100.
            partition: who holds which sample, as an object or text ("dirichlet:0.1").
            groups: a name or number per sample `(n,)`: speaker, subject, hospital, domain.
            test, public, validation: data for the server; or a fraction of the samples held out before the
                partition.
                For `test` also the name of a group that no client gets (leave-one-domain-out).
            val, client_test: fractions of each client's samples, 0 <= val + client_test < 1.
            seed: of the hold-out, the partition, and the order of samples within a client.
            classes: labels must lie in 0..classes-1; None: counted.
            standardise: scale the columns of `x` `(n, d)` by mean and standard deviation of all TRAIN
                samples.
            ordered: keep each client's samples in the order given (series: later samples are its test set).

        Raises:
            DataError: NaN or infinite values, different lengths, labels out of range, too few samples.
            ConfigError: impossible fractions, partitions or numbers of clients.
        """
        whole = as_data(data, name)
        check(whole, name, classes)
        columns = None
        if standardise:
            if "x" not in whole or whole["x"].dim() != 2:
                raise DataError("standardise=True scales the columns of a table `x` (n, d); this data has none")
            columns = torch.arange(whole["x"].shape[1])
        group, group_names = (None, ()) if groups is None else codes(groups)
        return cls.assemble(
            whole, columns, clients=clients, partition=partition, group=group, group_names=group_names, test=test,
            public=public, validation=validation, val=val, client_test=client_test, seed=seed, name=name,
            classes=classes, ordered=ordered, info=info,
        )  # fmt: skip

    @classmethod
    def assemble(
        cls,
        whole: Data,
        columns: Tensor | None,
        *,
        clients: int | None,
        partition: Partition | str,
        group: Tensor | None,
        group_names: tuple[str, ...],
        val: float,
        client_test: float,
        seed: int,
        name: str,
        classes: int | None,
        ordered: bool,
        info: Mapping[str, Any] | None,
        **shared: Any,
    ) -> Federation:
        """The one road from samples to clients: hold out, partition, put in client order, change, scale, check.

        Arguments as in `from_data`; `group` holds indices of `group_names`; `columns` of `x` (int64 positions, or
        None) are scaled by mean and standard deviation of all TRAIN samples, where NaN counts as the mean.
        """
        partition = parse_partition(partition)
        if group is not None and len(group) != len(whole):
            raise DataError(f"{name}: {len(group)} groups for {len(whole)} samples; one group per sample")
        left, held = hold_out(whole, shared, group, group_names, seed, ordered)
        kept = whole if len(left) == len(whole) else whole.rows(torch.from_numpy(left))
        group = None if group is None else group[left]
        keyed = kept if group is None else kept.replace(group=group)
        clients = partition.natural(keyed) or 100 if clients is None else clients
        owner = partition(keyed, clients, numbers(seed, "partition"))
        index, offsets = by_client(owner.numpy(), clients, None if ordered else numbers(seed, "order"))
        table, record = partition.change(kept.rows(index), owner[index], clients, numbers(seed, "change"))
        parts: dict[str, Data | None] = {"table": table, **held}
        if columns is not None:
            train = table.rows(train_mask(offsets, val, client_test))
            parts = {key: part and standardised(part, columns, train) for key, part in parts.items()}
        for key, part in parts.items():
            if part is not None and (key != "table" or columns is not None):  # a table as given is checked already
                check(part, key, classes)
        table = parts.pop("table")
        assert table is not None
        return cls(
            Rows(table, offsets),
            val=val,
            client_test=client_test,
            test=parts["test"],
            public=parts["public"],
            validation=parts["validation"],
            name=name,
            classes=classes or label_count([table, *parts.values()]),
            names=None if group is None else client_names(group[index].numpy(), group_names, offsets),
            info={
                "partition": str(partition),
                "seed": seed,
                "samples": len(table),
                "fields": {k: f"{str(t.dtype)[6:]} {tuple(t.shape[1:])}" for k, t in table.items()},
                "empty_clients": int((np.diff(offsets) == 0).sum()),
                **record,
                **(info or {}),
            },
        )

    @classmethod
    def from_torch(
        cls,
        dataset: Any,
        clients: int | None = None,
        partition: Partition | str = "iid",
        *,
        fields: Sequence[str] = ("x", "y"),
        **options: Any,
    ) -> Federation:
        """Clients out of a map-style PyTorch dataset, whose items are tuples (named by `fields`) or dicts. A
        `test`, `public` or `validation` that is a dataset is read the same way. Other options: `from_data`.

        Items are read once and stacked, so the tensors of all samples must have one shape and no transform
        should be random.
        """
        for key in ("test", "public", "validation"):
            if hasattr(options.get(key), "__getitem__") and not isinstance(options[key], Data | tuple | dict | str):
                options[key] = read_dataset(options[key], fields, key)
        options.setdefault("name", type(dataset).__name__)
        return cls.from_data(read_dataset(dataset, fields, "dataset"), clients, partition, **options)

    @classmethod
    def from_pandas(
        cls,
        frame: pd.DataFrame,
        target: str,
        group: str | None = None,
        clients: int | None = None,
        partition: Partition | str | None = None,
        *,
        task: str | None = None,
        categorical: Sequence[str] = (),
        keep: Sequence[str] = (),
        drop: Sequence[str] = (),
        missing: str = "error",
        test: pd.DataFrame | float | str | None = None,
        public: pd.DataFrame | float | None = None,
        validation: pd.DataFrame | float | None = None,
        val: float = 0.0,
        client_test: float = 0.2,
        seed: int = 0,
        name: str = "frame",
        ordered: bool = False,
    ) -> Federation:
        """Clients out of a table: numbers standardised with the statistics of the TRAIN samples, categories
        one-hot.

        Args:
            frame: one row per sample.
            target: the column to predict; text, booleans or up to 20 different integers are classes.
            group: the column that names natural clients (not used as a feature); then `partition` is
                `Natural()`.
            task: "classification" or "regression", where the guess above is wrong.
            categorical: number columns to treat as categories.
            keep: columns that also become integer fields of their own (a protected attribute, say).
            drop: columns to leave out.
            missing: "error", or "mean": empty numbers become the mean of the TRAIN samples. Empty text is a
                category.

        Other arguments as in `from_data`.
        """
        import pandas as pd

        from .frames import Encoding

        encoding = Encoding.of(frame, target, group, task, categorical, keep, drop, missing)
        group_of, names = (None, ()) if group is None else codes(frame[group])
        shared: dict[str, Any] = {"test": test, "public": public, "validation": validation}
        for key, part in shared.items():
            if isinstance(part, pd.DataFrame):
                shared[key] = encoding.data(part, key)
        return cls.assemble(
            encoding.data(frame, name),
            encoding.numeric_columns,
            clients=clients,
            partition=partition or ("iid" if group is None else "natural"),
            group=group_of,
            group_names=names,
            val=val,
            client_test=client_test,
            seed=seed,
            name=name,
            classes=encoding.classes,
            ordered=ordered,
            info={"columns": list(encoding.columns), "labels": list(encoding.labels or ())},
            **shared,
        )

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        target: str | None = None,
        group: str | None = None,
        clients: int | None = None,
        partition: Partition | str | None = None,
        **options: Any,
    ) -> Federation:
        """Clients out of a file: CSV (also gzipped) and Parquet as in `from_pandas`; NPZ with arrays `x`, `y`
        and, if there, `x_test`, `y_test` (or `x_train` and so on), and a `group` array named by `group`."""
        path = Path(path)
        if not path.exists():
            raise DataError(f"no file {str(path)!r}")
        options.setdefault("name", path.name.split(".")[0])
        kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
        if kind == "npz":
            return cls._from_npz(path, group, clients, partition, options)
        if kind not in ("csv", "parquet"):
            raise ConfigError(f"{path.name!r}: files are read as .csv, .csv.gz, .parquet or .npz")
        if target is None:
            raise ConfigError(f"{path.name!r} is a table: name the column to predict, from_file(path, target=...)")
        return cls.from_pandas(read_frame(path, kind), target, group, clients, partition, **options)

    @classmethod
    def _from_npz(
        cls,
        path: Path,
        group: str | None,
        clients: int | None,
        partition: Partition | str | None,
        options: dict[str, Any],
    ) -> Federation:
        arrays = {name.removesuffix("_train"): values for name, values in read_npz(path, path.name).items()}
        test = {name.removesuffix("_test"): arrays.pop(name) for name in list(arrays) if name.endswith("_test")}
        if test and "test" not in options:
            options["test"] = test
        if group is not None:
            if group not in arrays:
                raise DataError(f"{path.name!r} has no array {group!r}; it has {', '.join(arrays)}")
            options["groups"] = arrays.pop(group)
            test.pop(group, None)
        partition = partition or ("iid" if group is None else "natural")
        return cls.from_data(arrays, clients, partition, **options)

    @classmethod
    def from_huggingface(
        cls,
        dataset: Any,
        clients: int | None = None,
        partition: Partition | str = "iid",
        *,
        x: str,
        y: str | None = None,
        group: str | None = None,
        length: int = 128,
        **options: Any,
    ) -> Federation:
        """Clients out of one split of a Hugging Face dataset: column `x` becomes the input, `y` the label.

        Images become float 0..1 channels first, numbers tensors, text rows of `length` UTF-8 bytes. `group`
        names a column of natural clients. Other options: `from_data` (a `test` that is a dataset is read the
        same way).
        """

        def read(d: Any) -> dict[str, Any]:
            columns = {"x": x} if y is None else {"x": x, "y": y}
            return {name: column(d, source, length) for name, source in columns.items()}

        for key in ("test", "public", "validation"):
            if hasattr(options.get(key), "column_names"):
                options[key] = read(options[key])
        if group is not None:
            options["groups"] = list(dataset[group])
        options.setdefault("name", str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "huggingface"))
        return cls.from_data(read(dataset), clients, partition, **options)

    @classmethod
    def from_clients(
        cls,
        clients: Mapping[Any, Any] | Sequence[Any],
        *,
        test: Any = None,
        public: Any = None,
        validation: Any = None,
        val: float = 0.0,
        client_test: float = 0.2,
        seed: int = 0,
        name: str = "clients",
        classes: int | None = None,
        ordered: bool = False,
        empty: bool = False,
    ) -> Federation:
        """Data that already has owners: a list of `Data` or `(x, y)`, or a dict of them by name (kept as
        `names`).

        All clients have the same fields and sample shapes (for anything else use `generated`); `empty=True`
        allows clients without samples.
        """
        if not clients:
            raise DataError("a federation has 1 or more clients; given none")
        named = clients if isinstance(clients, Mapping) else dict(enumerate(clients))
        parts = [as_data(given, f"client {id!r}") for id, given in named.items()]
        for id, part in zip(named, parts):
            check(part, f"client {id!r}", classes, empty)
            same_shape(parts[0], part, f"client {id!r}")
        table = Data.cat(parts)
        sizes = np.array([len(part) for part in parts])
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        if not ordered:
            owner = np.repeat(np.arange(len(sizes)), sizes)
            table = table.rows(by_client(owner, len(sizes), numbers(seed, "order"))[0])
        return cls.from_offsets(
            table,
            offsets,
            test=test,
            public=public,
            validation=validation,
            val=val,
            client_test=client_test,
            name=name,
            classes=classes,
            names=tuple(map(str, named)) if isinstance(clients, Mapping) else None,
            empty=empty,
        )

    @classmethod
    def from_offsets(
        cls,
        data: Any,
        offsets: Any,
        *,
        test: Any = None,
        public: Any = None,
        validation: Any = None,
        val: float = 0.0,
        client_test: float = 0.2,
        name: str = "offsets",
        classes: int | None = None,
        names: tuple[str, ...] | None = None,
        empty: bool = False,
    ) -> Federation:
        """Rows already in client order: client i is rows `offsets[i]:offsets[i+1]` (train, then val, then
        test). Nothing is copied; a population of a million clients is 8 MB. `empty=True` allows clients
        without samples."""
        table = as_data(data, name)
        check(table, name, classes)
        population = Rows(table, np.asarray(offsets))
        hollow = int((population.totals(None) == 0).sum())
        if hollow and not empty:
            raise DataError(f"{name}: {hollow} of {len(population)} clients have no samples; empty=True allows that")
        test, public, validation = (_shared(part, classes) for part in (test, public, validation))
        return cls(
            population,
            val=val,
            client_test=client_test,
            test=test,
            public=public,
            validation=validation,
            name=name,
            classes=classes or label_count([table, test, public, validation]),
            names=names,
            info={
                "partition": "given",
                "samples": len(table),
                "fields": {k: f"{str(t.dtype)[6:]} {tuple(t.shape[1:])}" for k, t in table.items()},
                "empty_clients": hollow,
            },
        )

    @classmethod
    def generated(
        cls,
        n: int,
        size: int | Sequence[int] | np.ndarray | Callable[[int], int],
        make: Callable[[int], Any],
        *,
        test: Any = None,
        public: Any = None,
        validation: Any = None,
        val: float = 0.0,
        client_test: float = 0.2,
        name: str = "generated",
        classes: int | None = None,
        recipe: str = "",
        keep: int = 128,
    ) -> Federation:
        """A population that is made when asked: `make(id)` gives all samples of client id, always the same.

        Args:
            n: number of clients; costs nothing.
            size: samples per client (train, val and test together): one number, one per client, or a function
                of id.
            make: client id -> Data, `(x, y)` or a dict; a pure function (use `fedloom.keyed`). Clients may
                differ in shapes.
            classes: number of classes, if there are any; not counted, as that would make every client.
            recipe: what identifies the generator in `sha256`; default: the name of `make`.
            keep: how many made clients are kept for the next call.
        """
        test, public, validation = (_shared(part, classes) for part in (test, public, validation))
        classes = classes or label_count([test, public, validation])
        population = Made(n, size, make, recipe or qualified(make), classes, keep)
        return cls(
            population,
            val=val,
            client_test=client_test,
            test=test,
            public=public,
            validation=validation,
            name=name,
            classes=classes,
            info={"partition": "generated", "recipe": population.recipe},
        )

    # -- what engines use

    def __len__(self) -> int:
        """The number of clients."""
        return len(self.population)

    @property
    def ids(self) -> range:
        return range(len(self.population))

    def size(self, id: int) -> int:
        """Number of TRAIN samples of a client."""
        return split_sizes(self.population.total(self._known(id)), self.val, self.client_test)[0]

    def sizes(self, ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """TRAIN samples of the given clients (all by default: work proportional to the population), int64."""
        asked = None if ids is None else np.asarray(ids, dtype=np.int64)
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

    def to(self, device: torch.device | str) -> Federation:
        """The same federation with its tensors on another device."""
        shared = {k: d and d.to(device) for k, d in vars(self).items() if k in ("test", "public", "validation")}
        moved = Federation.__new__(Federation)
        moved.__dict__.update({**vars(self), **shared, "population": self.population.to(device)})
        return moved

    def __repr__(self) -> str:
        extra = "".join(f", {k} {len(d)}" for k in ("test", "public", "validation") if (d := getattr(self, k)))
        return f"Federation({self.name!r}, {len(self)} clients, {self.info.get('partition', '')}{extra})"


# ------------------------------------------------------------------------------------------- building blocks


def _shared(given: Any, classes: int | None) -> Data | None:
    if given is None:
        return None
    if isinstance(given, float | int | str):
        raise ConfigError(f"clients already hold their samples here; give shared data as (x, y), not {given!r}")
    data = as_data(given, "shared data")
    check(data, "shared data", classes)
    return data
