"""Tables of one's own as sources: `patients.csv:target=outcome,group=hospital` wherever a data set is named."""

from __future__ import annotations

from pathlib import Path

from fedloom.errors import ConfigError, DataError

from .readers import read_frame
from .registry import Entry, Folder, Source, choice
from .tabular import Table, tabular

KINDS = (".csv", ".csv.gz", ".parquet")


def own_table(path: str) -> Entry | None:
    """The source that a file is; None where the name is no file's. Several columns to `drop`, or to take as
    `categorical`, are joined by a plus."""
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
        drop: str = "",
        categorical: str = "",
    ) -> Source:
        choice("missing", missing, ("error", "mean"))
        if not Path(path).is_file():
            raise DataError(f"no file {path!r} in {Path.cwd()}")
        frame = read_frame(Path(path), "parquet" if path.lower().endswith(".parquet") else "csv")
        if not target:
            columns = ", ".join(map(str, frame.columns))
            raise ConfigError(
                f"which column of {path} is to be predicted? {path}:target=COLUMN, and ,group=COLUMN where one names "
                f"the clients, ,drop=COLUMN+COLUMN what is left out; its columns are {columns}"
            )
        table = Table(
            target,
            group or None,
            task=task or None,
            missing=missing,
            drop=[name for name in drop.split("+") if name],
            categorical=[name for name in categorical.split("+") if name],
        )
        return tabular(Path(path).name.split(".")[0], frame, table, origin=path, licence="not stated")

    return Entry(path, read, "", "a table of one's own", None)
