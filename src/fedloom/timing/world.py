"""How long things take and who is there: the models a clock asks. Seconds are virtual unless a wall clock is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from fedloom.errors import ConfigError
from fedloom.keyed import scattered, uniform
from fedloom.replies import Without


@dataclass(frozen=True)
class Device:
    """One client's device: seconds per training step."""

    step_seconds: float


@dataclass(frozen=True)
class World:
    """Devices and links of a federation, all drawn from keys: no list of a million devices is ever made.

    Args:
        step_seconds: median seconds of one training step, > 0.
        spread: standard deviation of the log of a device's speed (0: all equal).
        jitter: relative spread of a job's own pace, in [0, 1).
        latency: seconds one message takes besides its transfer, >= 0.
        up, down: bytes per second of a client's link, > 0 (inf: free).
        present: chance that a client is available in a round, in (0, 1].
        seed: of the devices; the same world for every method compared.
    """

    step_seconds: float = 0.01
    spread: float = 0.0
    jitter: float = 0.0
    latency: float = 0.0
    up: float = math.inf
    down: float = math.inf
    present: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        fine = (
            self.step_seconds > 0
            and self.spread >= 0
            and 0 <= self.jitter < 1
            and self.latency >= 0
            and self.up > 0
            and self.down > 0
            and 0 < self.present <= 1
        )
        if not fine:
            raise ConfigError(
                f"{self} cannot be: step_seconds, up, down > 0; spread, latency >= 0; 0 <= jitter < 1; 0 < present <= 1"
            )

    def device(self, id: int) -> Device:
        """The device of one client: the same in every round and run of this world."""
        if not self.spread:
            return Device(self.step_seconds)
        u = min(max(uniform(self.seed, "device", id), 1e-12), 1 - 1e-12)
        return Device(self.step_seconds * math.exp(self.spread * NormalDist().inv_cdf(u)))

    def pace(self, id: int, key: tuple[Any, ...], phase: int) -> float:
        """Seconds per step of one training phase of one job."""
        base = self.device(id).step_seconds
        return base * (1 + self.jitter * (2 * uniform(self.seed, "pace", phase, *key) - 1)) if self.jitter else base

    def seconds(self, id: int, key: tuple[Any, ...], phase: int, steps: int) -> float:
        return steps * self.pace(id, key, phase)

    def steps_in(self, id: int, key: tuple[Any, ...], phase: int, elapsed: float) -> int:
        """Whole steps done after that many seconds."""
        return max(0, int(elapsed / self.pace(id, key, phase) + 1e-9))

    def transfer(self, id: int, nbytes: int, rate: float) -> float:
        return self.latency + (nbytes / rate if math.isfinite(rate) else 0.0)

    def event(self, name: str, id: int, key: tuple[Any, ...]) -> float:
        """Seconds until a client's own event of that name (exponential, mean 100 steps)."""
        return -math.log(uniform(self.seed, name, *key) + 1e-12) * 100 * self.step_seconds

    def here(self, ids: Sequence[int], round: int) -> Sequence[int]:
        """Who is available in a round, in the order of `ids`.

        Below `present=1` everybody's draw is looked at, in one pass over an array (30 ms a million clients), and those
        absent are kept at 8 bytes each; `Clients` asks once a round.
        """
        if self.present >= 1:
            return ids
        who = np.arange(ids.start, ids.stop, ids.step) if isinstance(ids, range) else np.asarray(ids, dtype=np.int64)
        return Without.positions(ids, (scattered(who, self.seed, "present", round) >= self.present).nonzero()[0])
