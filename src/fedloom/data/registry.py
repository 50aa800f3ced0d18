"""What a named source is, how one is registered, and where its files lie."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedloom.checked import fits, spell
from fedloom.errors import ConfigError, DataError, unknown

from .fields import Data
from .partitions import IID, Partition
from .population import add_data
from .readers import read_npz

VARIABLE = "FEDLOOM_DATA"


@dataclass(frozen=True)
class Source:
    """A named data set, read and checked.

    Attributes:
        name: what it was loaded by.
        train, test, validation: samples; test and validation only where the set defines them.
        task: "classification", "regression", "language", "segmentation", "graph", "restoration", "preference" or
            "causal".
        classes: number of classes (bytes for text), or None.
        labels: names of the classes, where known.
        groups, group_names: the natural client of each train sample int64 `(n,)`, and the names of the groups.
        columns, numeric: names of the columns of a table `x`, and which are numbers (standardised), int64 `(k,)`.
        partition: the default way to make clients.
        ordered: samples are in time order, and splits keep it.
        hold_out: fraction held out as a global test set where the set defines none; 0: none.
        records, test_records: the raw records of text sets, one per sample.
        notes: constants worth keeping with a run (scale of the target, say).
        about, origin, licence: what it is, where it comes from, the terms stated there.
    """

    name: str
    train: Data
    task: str
    test: Data | None = None
    validation: Data | None = None
    classes: int | None = None
    labels: tuple[str, ...] = ()
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    numeric: Tensor | None = None
    partition: Partition = field(default_factory=IID)
    ordered: bool = False
    hold_out: float = 0.2
    records: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    test_records: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    origin: str = ""
    licence: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train["x"].shape[1:])

    @cached_property
    def sha256(self) -> str:
        """Hash of every tensor and of the groups."""
        hash = hashlib.sha256()
        for part in (self.train, self.test, self.validation):
            hash.update(b"|")
            add_data(hash, part)
        if self.groups is not None:
            add_data(hash, Data(group=self.groups))
        return hash.hexdigest()


@dataclass(frozen=True)
class Entry:
    """A registered source: `read(folder, seed, **options)` makes it."""

    name: str
    read: Callable[..., Source]
    task: str
    about: str
    folder: str | None  # its folder in FEDLOOM_DATA; None: comes with scikit-learn or is generated

    @property
    def bundled(self) -> bool:
        return self.folder is None

    @property
    def available(self) -> bool:
        """Whether it can be loaded here and now."""
        root = os.environ.get(VARIABLE)
        return self.folder is None or (bool(root) and (Path(root) / self.folder).is_dir())  # pyright: ignore[reportArgumentType]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the source and their defaults."""
        return {p.name: p.default for p in inspect.signature(self.read).parameters.values() if p.kind is p.KEYWORD_ONLY}


ENTRIES: dict[str, Entry] = {}


def canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def source(
    name: str, task: str, about: str, folder: str | None = None
) -> Callable[[Callable[..., Source]], Callable[..., Source]]:
    """Registers a reader `read(folder, seed, *, options...) -> Source` under a name.

    Raises:
        ConfigError: the name is taken.
    """

    def register(read: Callable[..., Source]) -> Callable[..., Source]:
        if name in ENTRIES:
            raise ConfigError(f"the source {name!r} is registered twice")
        ENTRIES[name] = Entry(name, read, task, about, folder)
        return read

    return register


def options_of(entry: Entry, text: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options out of `"1,1,clients=50"` and keywords, checked against what the reader takes."""
    written = options_in(entry, text)
    if twice := sorted({*written} & {*given}):
        raise ConfigError(
            f"{twice[0]} is given twice: {twice[0]}={written[twice[0]]} in {entry.name}:{text}, and "
            f"{twice[0]}={given[twice[0]]!r}; leave one of them out"
        )
    options, names = {**written, **given}, list(entry.options)
    for key, value in options.items():
        if not names:
            raise ConfigError(f"{entry.name} takes no options; given {key!r}")
        if key not in names:
            raise unknown(f"option of the source {entry.name!r}:", key, names)
        options[key] = _typed(entry, key, value)
    return options


def options_in(entry: Entry, text: str) -> dict[str, str]:
    """Options as they are written in `"1,1,clients=50"`, by name."""
    names, written = list(entry.options), dict[str, str]()
    for i, item in enumerate(part.strip() for part in text.split(",") if part.strip()):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            if i >= len(names):
                raise ConfigError(f"{entry.name} takes {', '.join(names) or 'no options'}; given {text!r}")
            key, value = names[i], item
        if key in written:
            raise ConfigError(f"{text!r} gives {key} twice")
        written[key] = value
    return written


def _typed(entry: Entry, key: str, value: Any) -> Any:
    kind = type(entry.options[key])
    if isinstance(value, str):
        value = _read(kind, value)
    if not fits(value, kind):
        raise ConfigError(f"{key} of the source {entry.name!r} is {spell(kind)}; given {value!r}")
    return value


def _read(kind: Any, text: str) -> Any:
    """The value that a text stands for; the text where it stands for none."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def choice(kind: str, given: str, accepted: tuple[str, ...]) -> str:
    """`given`, if it is one of the accepted names.

    Raises:
        ConfigError: it is not.
    """
    if given not in accepted:
        raise unknown(kind, given, accepted)
    return given


def at_least(least: int, **given: int) -> None:
    """Raises ConfigError where an option is smaller."""
    for name, value in given.items():
        if value < least:
            raise ConfigError(f"{name} is {least} or more; given {value}")


@dataclass(frozen=True)
class Folder:
    """The files of one set in the folder that FEDLOOM_DATA names.

    Raises:
        DataError: from every method, if the file is missing or cannot be read.
    """

    path: Path

    @classmethod
    def of(cls, entry: Entry) -> Folder:
        bundled = ", ".join(sorted(e.name for e in ENTRIES.values() if e.bundled))
        root = os.environ.get(VARIABLE)
        if not root:
            raise DataError(
                f"the data set {entry.name!r} is read from a folder that the environment variable {VARIABLE} names; "
                f"set {VARIABLE}=/path/to/folder (holding {entry.folder}/), or use a bundled set: {bundled}"
            )
        path = Path(root) / str(entry.folder)
        if not path.is_dir():
            raise DataError(
                f"the data set {entry.name!r} is not in {VARIABLE}={root}: there is no folder {entry.folder}/. Bundled "
                f"sets need none: {bundled}"
            )
        return cls(path)

    def bytes(self, name: str) -> bytes:
        """The content of a file, unpacked if its name ends in .gz."""
        try:
            raw = (self.path / name).read_bytes()
            return gzip.decompress(raw) if name.endswith(".gz") else raw
        except FileNotFoundError:
            raise DataError(f"no file {name!r} in {self.path}") from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name!r} in {self.path} cannot be read: {error}") from error

    def idx(self, name: str) -> np.ndarray:
        """An array in the IDX format of MNIST (unsigned bytes)."""
        raw = self.bytes(name)
        if len(raw) < 4 or raw[:3] != b"\0\0\x08":
            raise DataError(f"{name!r} in {self.path} is not an IDX file of unsigned bytes")
        shape = np.frombuffer(raw, ">i4", raw[3], 4)
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
        if len(values) != np.prod(shape):
            raise DataError(f"{name!r} in {self.path} is cut short: {len(values)} of {np.prod(shape)} values")
        return values.reshape(shape)

    def npz(self, name: str) -> dict[str, np.ndarray]:
        return read_npz(io.BytesIO(self.bytes(name)), name)

    def frame(self, name: str) -> pd.DataFrame:
        return pd.read_csv(io.BytesIO(self.bytes(name)), low_memory=False)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of a JSON-lines file."""
        return [json.loads(line) for line in self.bytes(name).decode().split("\n") if line.strip()]


def pixels(array: np.ndarray) -> Tensor:
    """Byte images, channels last or without a channel, as float32 `(n, c, h, w)` in 0..1."""
    images = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).div_(255)


def integers(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
