"""Federations out of tables and files: pandas, CSV, Parquet, NPZ."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.data.convert import codes
from fedloom.data.fields import Data
from fedloom.data.partitions import Partition
from fedloom.data.readers import read_frame, read_npz
from fedloom.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from .federation import Federation


def from_pandas(
    cls: type[Federation],
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

    from fedloom.data.frames import Encoding, plain

    if not isinstance(frame, pd.DataFrame):
        raise ConfigError(
            f"from_pandas takes a pandas DataFrame, one row per sample; given {type(frame).__name__}. Arrays and dicts "
            f"of them: Federation.from_arrays(x, y), Federation.from_data(...); files: Federation.from_file(path)"
        )
    frame = plain(frame)
    encoding = Encoding.of(frame, target, group, task, categorical, keep, drop, missing)
    group_of, names = (None, ()) if group is None else codes(frame[group])

    def read(part: pd.DataFrame, where: str) -> Data:
        data = encoding.data(part, where)
        return data if encoding.labels is not None else data.replace(y=data["y"].float())

    shared: dict[str, Any] = {"test": test, "public": public, "validation": validation}
    for key, part in shared.items():
        if isinstance(part, pd.DataFrame):
            shared[key] = read(part, key)
    return cls.assemble(
        read(frame, name),
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


def from_file(
    cls: type[Federation],
    path: str | Path,
    target: str | None = None,
    group: str | None = None,
    clients: int | None = None,
    partition: Partition | str | None = None,
    **options: Any,
) -> Federation:
    """Clients out of a file: CSV (also gzipped) and Parquet as in `from_pandas`; NPZ with arrays `x`, `y`
    (or the one that `target` names) and, if there, `x_test`, `y_test` (or `x_train` and so on), and an array of groups
    named by `group`."""
    if not isinstance(path, str | PathLike):
        raise ConfigError(
            f"from_file reads one file; given {type(path).__name__}. Several, each a client's: "
            f"federate('sites/*.csv:target=...'), or from_pandas(pd.concat([a.assign(site='a'), ...]), group='site')"
        )
    path = Path(path)
    if not path.exists():
        raise DataError(f"no file {str(path)!r}")
    options.setdefault("name", path.name.split(".")[0])
    kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "npz":
        return _from_npz(cls, path, target, group, clients, partition, options)
    if kind not in ("csv", "parquet"):
        raise ConfigError(f"{path.name!r}: files are read as .csv, .csv.gz, .parquet or .npz")
    if target is None:
        raise ConfigError(f"{path.name!r} is a table: name the column to predict, from_file(path, target=...)")
    return cls.from_pandas(read_frame(path, kind), target, group, clients, partition, **options)


def _from_npz(
    cls: type[Federation],
    path: Path,
    target: str | None,
    group: str | None,
    clients: int | None,
    partition: Partition | str | None,
    options: dict[str, Any],
) -> Federation:
    whole = read_npz(path, path.name)
    if twice := [name for name in whole if f"{name}_train" in whole]:
        raise DataError(f"{path.name!r} has both {twice[0]!r} and '{twice[0]}_train'; which are the train samples?")
    arrays = {name.removesuffix("_train"): values for name, values in whole.items()}
    test = {name.removesuffix("_test"): arrays.pop(name) for name in list(arrays) if name.endswith("_test")}
    for name in (target, group):
        if name is not None and name not in arrays:
            raise DataError(f"{path.name!r} has no array {name!r}; it has {', '.join(arrays)}")
    if group is not None:
        options["groups"] = arrays.pop(group)
        test.pop(group, None)
    if target is not None:
        for part in (arrays, test):
            part |= {"y": part.pop(target)} if target in part else {}
    if test and "test" not in options:
        options["test"] = test
    return cls.from_data(arrays, clients, partition, **options)
