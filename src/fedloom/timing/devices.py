"""Devices of clients: how fast they compute, what fits into their memory, and what a computation costs in energy.

    Device(speed=2e10, memory=4e9).pace(flops=1e9)        0.05 seconds for a step of a billion FLOPs

A population is drawn from keys: no list of a million devices is ever made. FLOPs of a step are counted on the network
itself (`fedloom.training.work`).
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

from fedloom.errors import ConfigError, DataError
from fedloom.keyed import uniform

from .spoken import Spoken


@dataclass(frozen=True)
class Device:
    """One client's device.

    Attributes:
        step_seconds: seconds of one training step, whatever its work, > 0, finite; None where they follow from `speed`.
        speed: FLOP/s it sustains in training (where `step_seconds` is given: steps per second), > 0.
        memory: bytes, inf without a limit.
        cores: processor cores.
        energy: joules per FLOP (per step where `step_seconds` is given); 0 where it is not known.
        name: what it is called.
    """

    step_seconds: float | None = None
    speed: float = math.inf
    memory: float = math.inf
    cores: int = 1
    energy: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        step = self.step_seconds
        fine = self.speed > 0 and self.memory > 0 and 0 <= self.energy < math.inf
        if not (fine and (step is None or 0 < step < math.inf)):
            raise ConfigError(
                f"{self} cannot be: step_seconds, speed, memory > 0; energy >= 0; step_seconds, energy finite"
            )
        if self.energy and step is None and self.speed == math.inf:
            raise ConfigError(
                f"{self} cannot be: its energy is joules per FLOP, and without a speed it computes any number of these "
                f"in no time; say Device(speed=1e10, energy={self.energy:g})"
            )
        if step is not None and self.speed == math.inf:
            object.__setattr__(self, "speed", 1.0 / step)

    def pace(self, flops: float) -> float:
        """Seconds of a step of so many FLOPs."""
        return flops / self.speed if self.step_seconds is None else self.step_seconds

    @property
    def watts(self) -> float:
        """Power while it computes."""
        return self.energy * self.speed if self.energy else 0.0


class Devices(Spoken):
    """Who has which device."""

    family: ClassVar[str] = "devices"

    def of(self, id: int, seed: int) -> Device:
        """The device of one client: the same in every round, run and method."""
        raise NotImplementedError

    @classmethod
    def known(cls) -> Mapping[str, Devices]:
        return {"ai-benchmark": AIBenchmark(), "tiers": Tiers(), "lognormal": Lognormal()}


WATTS = 4.0
"""Power of a phone under a load that lasts, an assumption: cooling without a fan allows three to five watts."""

_POINT = 2e10 / 3212
"""FLOP/s of one point of CPU_F_AI_Score (float networks on the processor, which is what trains), an assumption: a
Snapdragon 855 (3,212 points in a Pixel 4) peaks at 218 GFLOP/s in single precision (one core of 2.84 GHz and three of
2.42 GHz with two 128-bit multiply-adds a cycle, four of 1.78 GHz with one) and trains at about a tenth of it."""


@dataclass(frozen=True)
class AIBenchmark(Devices):
    """The 333 phones of the AI Benchmark (Ignatov et al., 2019; a table as of January 2020), each as likely as any.

    Read from the folder `devices` in the folder that FEDLOOM_DATA names. Speed is proportional to the score of float
    networks on the processor, memory is all of the phone's, energy is 4 W over the speed.

    Args:
        since: phones of that year and later only.
        factor: on every speed, > 0.
    """

    since: int = 0
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ConfigError(f"{self!r} cannot be: factor > 0, as in ai-benchmark:factor=0.5")

    def of(self, id: int, seed: int) -> Device:
        phones = _phones(os.environ.get("FEDLOOM_DATA", ""), self.since, self.factor)
        return phones[int(uniform(seed, "device", id) * len(phones))]


@dataclass(frozen=True)
class Tiers(Devices):
    """Three kinds of phone, in these shares: each the median of a third of the AI Benchmark's phones, by speed.

    Args:
        high, mid, low: shares, which add up to 1.
    """

    high: float = 0.2
    mid: float = 0.5
    low: float = 0.3

    def __post_init__(self) -> None:
        if not (min(self.high, self.mid, self.low) >= 0 and abs(self.high + self.mid + self.low - 1) <= 1e-9):
            raise ConfigError(f"{self!r} cannot be: three shares that add up to 1, as in tiers:0.2,0.5,0.3")

    def of(self, id: int, seed: int) -> Device:
        u = uniform(seed, "device", id)
        return TIERS["high" if u < self.high else "mid" if u < self.high + self.mid else "low"]


@dataclass(frozen=True)
class Lognormal(Devices):
    """Speeds that are log-normal around a median.

    Args:
        spread: standard deviation of the log of the speed, >= 0.
        speed: the median, FLOP/s.
        memory: bytes, the same for all.
    """

    spread: float = 0.5
    speed: float = 1e10
    memory: float = 4e9

    def __post_init__(self) -> None:
        if not (0 <= self.spread < math.inf and self.speed > 0 and self.memory > 0):
            raise ConfigError(f"{self!r} cannot be: spread >= 0 and finite; speed, memory > 0, as in lognormal:0.5")

    def of(self, id: int, seed: int) -> Device:
        speed = self.speed * lognormal(self.spread, seed, "device", id)
        return Device(speed=speed, memory=self.memory, cores=8, energy=WATTS / speed)


@dataclass(frozen=True)
class Explicit(Devices):
    """A device for every client, by number: from a mapping, or a sequence that begins again where it ends."""

    devices: Mapping[int, Device] | Sequence[Device]

    def __post_init__(self) -> None:
        given: Any = [*(self.devices.values() if isinstance(self.devices, Mapping) else self.devices)]
        odd = [device for device in given if not isinstance(device, Device)]
        if odd or not given:
            raise ConfigError(
                f"World(devices=...) takes a device for each client, as in [fl.Device(speed=1e9), "
                f"fl.Device(speed=2e9)], not {odd[0] if odd else given!r}"
            )

    def of(self, id: int, seed: int) -> Device:
        if isinstance(self.devices, Mapping):
            if id not in self.devices:
                raise ConfigError(f"World(devices={{...}}) names no device for client {id}")
            return self.devices[id]
        return self.devices[id % len(self.devices)]


def lognormal(spread: float, *key: Any) -> float:
    """A log-normal factor with median 1 for this key."""
    if not spread:
        return 1.0
    u = min(max(uniform(*key), 1e-12), 1 - 1e-12)
    return math.exp(spread * NormalDist().inv_cdf(u))


def phone(name: str, score: float, memory: float, cores: int, factor: float = 1.0) -> Device:
    """A phone by its CPU_F_AI_Score."""
    speed = score * _POINT * factor
    return Device(speed=speed, memory=memory, cores=cores, energy=WATTS / speed, name=name)


TIERS = {"high": phone("high", 2997, 8e9, 8), "mid": phone("mid", 1548, 4e9, 8), "low": phone("low", 344, 1.5e9, 4)}


@cache
def _phones(root: str, since: int, factor: float) -> tuple[Device, ...]:
    path = Path(root) / "devices" / "ai_benchmark_phones.csv.gz"
    if not root or not path.exists():
        raise DataError(
            f"the devices 'ai-benchmark' are read from devices/{path.name} in the folder that the environment variable "
            f"FEDLOOM_DATA names ({root or 'not set'}); without it: tiers:0.2,0.5,0.3 or lognormal:0.5"
        )
    rows = csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))
    phones = tuple(
        phone(r["Model"], float(r["CPU_F_AI_Score"]), float(r["RAM"].rstrip("GB")) * 1e9, _cores(r["CPU"]), factor)
        for r in rows
        if int(r["Year"]) >= since
    )
    if not phones:
        raise ConfigError(f"ai-benchmark:since={since} leaves no phone; the table ends with 2019")
    return phones


_ONE = ("Hummingbird", "Intel Atom Z2460", "Mediatek MT6575", "Snapdragon S1", "Spreadtrum SC6820")
_TWO = (
    "Broadcom",
    "Exynos 4210",
    "Mediatek MT6572",
    "NovaThor",
    "Renesas",
    "Snapdragon S3",
    "Snapdragon S4",
    "TI OMAP",
)
_FOUR = (
    "Exynos 3475", "Exynos 4412", "Exynos 7570", "HiSilicon K3V2", "Intel Atom Z3580", "Marvell", "Mediatek MT658",
    "Mediatek MT673", "NVIDIA", "Nvidia", "Snapdragon 2", "Snapdragon 400", "Snapdragon 410", "Snapdragon 425",
    "Snapdragon 600", "Snapdragon 82", "Spreadtrum SC7730", "Spreadtrum SC9830",
)  # fmt: skip


def _cores(chip: str) -> int:
    """Processor cores of a phone's chip; those of the later years have eight."""
    return next((n for n, names in ((1, _ONE), (2, _TWO), (4, _FOUR)) if chip.startswith(names)), 8)
