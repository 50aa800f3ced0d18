"""Partitions that wrap another one and also change the samples of a client: its inputs, or its labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.data.fields import Data
from fedloom.errors import ConfigError, DataError

from .base import Partition, not_negative, positive
from .equal import IID

FEATURE_SHIFTS = ("rotation", "noise", "colour")


class Shift(Partition):
    """Base of both: the partition `base` says who holds which sample, `shifted` what the samples become."""

    base: Partition

    @property
    def least(self) -> int:
        return self.base.least

    def natural(self, data: Data) -> int | None:
        return self.base.natural(data)

    def assign(self, data: Data, clients: int, rng: np.random.Generator) -> np.ndarray:
        return self.base(data, clients, rng).numpy()

    def change(self, data: Data, owner: Tensor, clients: int, rng: np.random.Generator) -> tuple[Data, dict[str, Any]]:
        data, record = self.base.change(data, owner, clients, rng)
        data, own = self.shifted(data, owner, clients, rng)
        return data, {**record, **own}

    def shifted(self, data: Data, owner: Tensor, clients: int, rng: np.random.Generator) -> tuple[Data, dict[str, Any]]:
        """The samples, changed by client, and what to record of it."""
        raise NotImplementedError


@dataclass(frozen=True)
class FeatureShift(Shift):
    """Feature skew: the inputs of client i are changed by a level of its own, the labels stay.

    Client i is in shift group g = i % groups at level g / (groups - 1): the first group sees the data as it
    is, the last the full `strength`. `rotation` turns images `(n, c, h, w)` by level * strength degrees (270
    with 4 groups is the rotated MNIST of clustered federated learning; multiples of 90 degrees are exact on
    square images); `noise` adds level * strength * N(0, 1); `colour` multiplies channel c by 1 + level *
    strength * u, u ~ U(-1, 1) once per group and channel. A client's own test samples are changed as its train
    samples are; the federation's global test set stays as it is.

    Args:
        kind: "rotation", "noise" or "colour".
        strength: degrees, standard deviation, or largest relative change; finite.
        groups: number of shift groups; 0 gives every client a level of its own.
        base: who holds which sample.
    """

    kind: Literal["rotation", "noise", "colour"]
    strength: float
    groups: int = 0
    base: Partition = field(default_factory=IID)

    def __post_init__(self) -> None:
        if not np.isfinite(self.strength):
            raise ConfigError(f"the strength of a feature shift is a finite number; given {self.strength}")
        not_negative("groups", self.groups)

    @property
    def spec(self) -> str:
        return self.kind

    def shifted(self, data: Data, owner: Tensor, clients: int, rng: np.random.Generator) -> tuple[Data, dict[str, Any]]:
        x = data.get("x")
        if x is None or not x.is_floating_point() or (x.dim() != 4 and self.kind != "noise"):
            held = "no field 'x'" if x is None else f"'x' of {str(x.dtype)[6:]} {tuple(x.shape)}"
            wanted = "floats" if self.kind == "noise" else "float images (n, channels, height, width)"
            raise DataError(f"{self.kind} changes {wanted} in the field 'x'; this data has {held}")
        groups = min(self.groups or clients, clients)
        group = owner % groups
        level = self.strength * group.to(x.dtype) / max(groups - 1, 1)
        shape = (-1,) + (1,) * (x.dim() - 1)
        if self.kind == "rotation":
            x = rotate(x, level)
        elif self.kind == "noise":
            draw = torch.Generator().manual_seed(int(rng.integers(2**62)))
            x = x + level.view(shape) * torch.randn(x.shape, generator=draw, dtype=x.dtype)
        else:
            gain = torch.from_numpy(rng.uniform(-1, 1, (groups, x.shape[1]))).to(x.dtype)
            x = x * (1 + level.view(shape) * gain[group].view(len(x), -1, 1, 1))
        return data.replace(x=x), {f"{self.kind}_groups": groups}


def rotate(x: Tensor, degrees: Tensor, chunk: int = 4096) -> Tensor:
    """Images `(n, c, h, w)` turned anticlockwise, each by its own angle `(n,)`; corners that turn in are 0.
    Quarter turns of square images and half turns of any are exact; other angles are interpolated bilinearly."""
    out, quarter, square = x.clone(), degrees.remainder(360) / 90, x.shape[-1] == x.shape[-2]
    exact = (quarter == quarter.round()) & (square | (quarter % 2 == 0))
    for turns in (1, 2, 3):
        if (rows := exact & (quarter == turns)).any():
            out[rows] = torch.rot90(x[rows], turns, (-2, -1))
    h, w = x.shape[-2:]
    for rows in torch.nonzero(~exact).view(-1).split(chunk):
        if not len(rows):
            break
        a = torch.deg2rad(degrees[rows])
        zero = torch.zeros_like(a)
        # grid_sample reads coordinates scaled to -1..1 by the image's own height and width
        theta = torch.stack([a.cos(), -a.sin() * h / w, zero, a.sin() * w / h, a.cos(), zero], 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, [len(rows), *x.shape[1:]], align_corners=False)
        out[rows] = F.grid_sample(x[rows], grid, align_corners=False)
    return out


@dataclass(frozen=True)
class ConceptShift(Shift):
    """Concept shift: the same input means another label. Client i is in group i % groups, and every group but
    the first has its own permutation of the labels (its test samples too). The maps are recorded as
    `federation.info["label_maps"]`, one list of new labels per group.

    Args:
        groups: number of concepts, >= 1; 1 changes nothing.
        base: who holds which sample.
    """

    groups: int = 2
    base: Partition = field(default_factory=IID)

    spec = "concept"

    def __post_init__(self) -> None:
        positive("groups of a concept shift", self.groups)

    def shifted(self, data: Data, owner: Tensor, clients: int, rng: np.random.Generator) -> tuple[Data, dict[str, Any]]:
        y = data.get("y")
        if y is None or y.dim() != 1 or y.is_floating_point():
            held = "no field 'y'" if y is None else f"'y' of {str(y.dtype)[6:]} {tuple(y.shape)}"
            raise DataError(f"a concept shift permutes one integer label per sample; this data has {held}")
        classes = int(y.max()) + 1
        maps = torch.arange(classes).repeat(self.groups, 1)
        for g in range(1, self.groups):
            maps[g] = torch.from_numpy(rng.permutation(classes))
        return data.replace(y=maps[owner % self.groups, y]), {"label_maps": maps.tolist()}
