"""Tables of one's own as sources: `patients.csv:target=outcome,group=hospital` wherever a data set is named, and
`sites/*.csv:target=outcome` where every client has a file of its own."""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from fedloom.errors import ConfigError, DataError

from .readers import read_frame
from .registry import Entry, Folder, Source, choice
from .tabular import Table, tabular

if TYPE_CHECKING:
    import pandas as pd

KINDS = (".csv", ".csv.gz", ".parquet")


def own_table(path: str) -> Entry | None:
    """The source that a file is, or several that a pattern with `*` names; None where the name is no file's. Several
    columns to `drop`, or to take as `categorical`, are joined by a plus, as are texts of a CSV file (`na`) that stand
    for an empty cell. Of several files each is a client, unless `group` names a column."""
    if not path.lower().endswith(KINDS):
        return None

    def read(
        folder: Folder | None,
        seed: int,
        *,
        target: str = "",
        group: str = "",
        task: str = "",
        missing: str = "error",
        na: str = "",
        drop: str = "",
        categorical: str = "",
    ) -> Source:
        choice("missing", missing, ("error", "mean"))
        frame, files = _read(path, _several(na))
        if not target:
            columns = ", ".join(str(column) for column in frame.columns if column != files)
            raise ConfigError(
                f"which column of {path} is to be predicted? {path}:target=COLUMN, and ,group=COLUMN where one names "
                f"the clients, ,drop=COLUMN+COLUMN what is left out, ,missing=mean where numbers are missing, ,na=? "
                f"where a ? says that they are; its columns are {columns}"
            )
        left_out = _several(drop)
        table = Table(
            target,
            group or files,
            task=task or None,
            missing=missing,
            drop=[*left_out, files] if group and files else left_out,
            categorical=_several(categorical),
        )
        return tabular(_name(path), frame, table, origin=path, licence="not stated")

    return Entry(path, read, "", "a table of one's own", None)


def _several(text: str) -> list[str]:
    return [name for name in text.split("+") if name]


def _read(path: str, empty: list[str]) -> tuple[pd.DataFrame, str | None]:
    """The rows of the file, or of all files of a pattern; then also the column that says whose file it was.

    Raises:
        DataError: there is none, one is not readable or has no rows, or they differ in their columns.
    """
    import pandas as pd

    found = sorted(glob(path, recursive=True)) if "*" in path else [path]
    if not found or not all(Path(file).is_file() for file in found):
        several = f"; several files, each a client's, are one pattern: '*{Path(path).suffix}'" if "," in path else ""
        raise DataError(f"no file {path!r} in {Path.cwd()}{several}")
    kind = "parquet" if path.lower().endswith(".parquet") else "csv"
    frames = [read_frame(Path(file), kind, empty) for file in found]
    if "*" not in path:
        return frames[0], None
    for file, frame in zip(found, frames):
        if not len(frame):
            raise DataError(f"{file} has no rows, and so its client no samples; take it away, or name the others")
        if odd := set(frame.columns) ^ set(frames[0].columns):
            raise DataError(f"{found[0]} and {file} are not of one kind: only one of them has {sorted(map(str, odd))}")
    column = "file"
    while column in frames[0]:
        column += "_"
    told = [frame.assign(**{column: who}) for who, frame in zip(_clients(found), frames)]
    return pd.concat(told, ignore_index=True), column


def _clients(files: list[str]) -> list[str]:
    """What the files are called, by their paths where two have one name."""
    names = [Path(file).name.split(".")[0] for file in files]
    return names if len(set(names)) == len(names) else files


def _name(path: str) -> str:
    return Path(path).name.split(".")[0].strip("*-_") or Path(path).resolve().parent.name
