"""Named data sets: `load("digits")`, `federate("fashion-mnist", clients=100, partition="dirichlet:0.1")`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fedloom.errors import ConfigError, DataError, FedloomError, unknown

from . import bundled, folder, speech, tabular, texts
from .convert import check
from .federation import Federation
from .own import own_table
from .partitions import Natural, Partition, numbers, parse_partition
from .registry import ENTRIES, Entry, Folder, Source, canonical, options_in, options_of

_READERS = (bundled, folder, speech, tabular, texts)  # importing them registers their sources


def sources() -> list[Entry]:
    """Every named source, bundled ones first: `name`, `task`, `about`, `bundled`, `available`, `options`."""
    return sorted(ENTRIES.values(), key=lambda entry: (not entry.bundled, entry.name))


_FILES = (".csv", ".gz", ".parquet", ".npz")


def load(name: str, seed: int = 0, limit: int | None = None, **options: Any) -> Source:
    """A named source, read and checked.

    Args:
        name: such as "digits", "fashion-mnist" (hyphens and underscores are equal), or with options
            "synthetic:0.5,0.5", "shakespeare:length=40"; or a table of one's own, "patients.csv:target=outcome".
        seed: of generated sources and of `limit`.
        limit: keep this many random train samples.
        **options: the source's own; `sources()` lists them.

    Raises:
        ConfigError: an unknown name or option.
        DataError: its files are not there (says what to set), or hold what cannot be trained on.
    """
    base, _, text = name.partition(":")
    entry = ENTRIES.get(canonical(base)) or own_table(base)
    if entry is None:
        own = f"from_file({base!r}, target='...')" if base.endswith(_FILES) else "from_arrays(x, y)"
        table = "A table of your own is named with its target: patients.csv:target=outcome."
        hint = f"`fedloom data` lists them. {table} In Python: Federation.{own}."
        raise unknown("data set", base, ENTRIES, hint)
    chosen = options_of(entry, text, options)
    read = _read(entry, seed, chosen)
    for part, data in (("train", read.train), ("test", read.test), ("validation", read.validation)):
        if data is not None:
            check(data, f"{read.name} {part}", read.classes)
    return read if limit is None else _limited(read, limit, seed)


def _read(entry: Entry, seed: int, options: dict[str, Any]) -> Source:
    if entry.bundled:
        return entry.read(None, seed, **options)
    folder = Folder.of(entry)
    try:
        return entry.read(folder, seed, **options)
    except FedloomError:
        raise
    except Exception as error:  # a file that can be read, and holds something else
        raise DataError(
            f"the files in {folder.path} are not those of {entry.name!r}, or damaged: {type(error).__name__}: {error}"
        ) from error


def _limited(read: Source, limit: int, seed: int) -> Source:
    if limit < 1:
        raise ConfigError(f"limit is 1 or more samples; given {limit}")
    if limit >= len(read.train):
        return read
    kept = torch.from_numpy(numbers(seed, "limit").permutation(len(read.train))[:limit]).sort().values
    return replace(
        read,
        train=read.train.rows(kept),
        groups=None if read.groups is None else read.groups[kept],
        records=tuple(read.records[i] for i in kept.tolist()) if read.records else (),
    )


def federate(
    name: str | Source,
    clients: int | None = None,
    partition: Partition | str | None = None,
    seed: int = 0,
    *,
    test: Any = None,
    public: Any = None,
    validation: Any = None,
    val: float = 0.0,
    client_test: float = 0.2,
    limit: int | None = None,
    **options: Any,
) -> Federation:
    """A federation of a named source.

    Args:
        name: as in `load`, or a loaded source.
        clients: how many; None: the natural number, or as many as leave 50 samples each, 100 at most.
        partition: an object or text; None: the source's own.
        test: data, a fraction, or a group's name; None: the source's test set, or else 20 % held out of its samples.
        public, validation, val, client_test: as in `Federation.from_data`.
        **options: the source's own.

    Columns of a table are scaled again with the statistics of the clients' TRAIN samples. Where a table has no test
    set, missing numbers were filled with means of all its rows, and a regression target was scaled with all of them.
    """
    wanted = None if partition is None else parse_partition(partition)
    if isinstance(name, str):
        base, _, text = name.partition(":")
        entry = ENTRIES.get(canonical(base))
        if clients and entry and "clients" in entry.options and isinstance(wanted or Natural(), Natural):
            options = options if "clients" in options_in(entry, text) else {"clients": clients, **options}
        read = load(name, seed, limit, **options)
    else:
        if options or limit is not None:
            raise ConfigError("options and limit belong to load(name, ...); this source is loaded already")
        read = name
    wanted = wanted or read.partition
    if test is None:
        test = read.test if read.test is not None else read.hold_out or None
    grouped = read.train if read.groups is None else read.train.replace(group=read.groups)
    if clients is None and wanted.natural(grouped) is None:
        clients = max(2, min(100, len(read.train) // 50))
    return Federation.assemble(
        read.train,
        read.numeric,
        clients=clients,
        partition=wanted,
        group=read.groups,
        group_names=read.group_names,
        test=test,
        public=public,
        validation=read.validation if validation is None else validation,
        val=val,
        client_test=client_test,
        seed=seed,
        name=read.name,
        classes=read.classes,
        ordered=read.ordered,
        info={
            "source": read.name,
            "task": read.task,
            "labels": list(read.labels),
            "columns": list(read.columns),
            "origin": read.origin,
            "licence": read.licence,
            **read.notes,
        },
    )
