"""Tables at sites become the same tensors everywhere: columns, categories and scales are part of the plan.

    [sites.table]
    target = "disease"
    labels = ["0", "1"]                                  # without labels: a number to predict
    [sites.table.columns]
    age = [54, 9]                                        # a number: what is taken off, and what it is divided by
    cp = ["1", "2", "3", "4"]                            # a category: its values; any other is none of them

Scales are agreed, not computed: a site's own statistics would say something of its data, and differ between sites.
A missing number is the agreed centre; a missing category is "missing" where that is listed, else none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from fedloom.data import Data
from fedloom.data.frames import Encoding
from fedloom.data.readers import read_frame
from fedloom.errors import ConfigError


class Table(BaseModel):
    """How every site reads its table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(description="the column to predict")
    labels: list[str] | None = Field(None, description="its values, in order; none: it is a number")
    columns: dict[str, list[str] | tuple[float, float]] = Field(
        min_length=1, description="the inputs: [centre, scale] of a number, or the values of a category"
    )

    @property
    def classes(self) -> int | None:
        return None if self.labels is None else len(self.labels)

    def read(self, path: Path) -> Data:
        """`x` float32 `(n, d)`, numbers first, and `y`.

        Raises:
            ConfigError: a file that is no table. DataError: a column that is missing, or a label that is not listed.
        """
        kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
        if kind not in ("csv", "parquet"):
            raise ConfigError(f"{path}: a site's samples are read from .csv, .parquet or .npz")
        scales = {name: given for name, given in self.columns.items() if isinstance(given, tuple)}
        categories = {name: tuple(given) for name, given in self.columns.items() if not isinstance(given, tuple)}
        labels = None if self.labels is None else tuple(self.labels)
        encoding = Encoding(self.target, labels, tuple(scales), categories, {}, "mean")
        frame: Any = read_frame(path, kind)
        data = encoding.data(frame, path.name)
        if not scales:
            return data.replace(x=data.x.float())
        centre, scale = torch.tensor(list(scales.values()), dtype=torch.float64).T
        numbers = (data.x[:, : len(scales)] - centre) / scale
        return data.replace(x=torch.cat([numbers.nan_to_num(0.0), data.x[:, len(scales) :]], 1).float())
