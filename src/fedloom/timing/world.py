"""How long things take and who is there: the models a clock asks. Seconds are virtual unless a wall clock is used."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from fedloom.checked import Checked
from fedloom.errors import ConfigError
from fedloom.keyed import uniform
from fedloom.replies import Without
from fedloom.training.work import Work
from fedloom.trees import is_mapping, is_row

from .availability import Availability, Bernoulli, Moment
from .devices import Device, Devices, Explicit, lognormal
from .networks import Link, Network


@dataclass(frozen=True)
class World(Checked):
    """Devices, links and presence of a federation's clients, and how long a server waits for them.

    The simple case is numbers; `devices`, `network` and `availability` take their place where they are given, as
    objects or as text:

        World(step_seconds=0.1, spread=0.5)
        World(devices="ai-benchmark", network="wifi", availability="markov:0.9,0.5", deadline=60, over=1.3)

    Args:
        step_seconds: median seconds of one training step, > 0.
        spread: standard deviation of the log of a device's speed (0: all equal).
        jitter: relative spread of a job's own pace, in [0, 1).
        latency: seconds one message takes besides its transfer, >= 0.
        up, down: bytes per second of a client's link, > 0 (inf: free).
        present: chance that a client is available in a round, in (0, 1].
        devices: "ai-benchmark", "tiers:0.2,0.5,0.3", "lognormal:0.5"; or a `Device` for each client, as a mapping or
            sequence. Seconds of a step then follow from its FLOPs, and a job that does not fit a device's memory is
            excluded.
        network: "ethernet", "wifi", "4g", "5g".
        availability: "bernoulli:0.8", "markov:0.9,0.5", "diurnal:0.2,0.8", "trace:FILE", "churn:crash=1e-4", several
            joined by "+".
        deadline: seconds after which an exchange (`map`, `mean`, `sum`) ends, > 0. Replies that are late do not count
            and leave no trace.
        over: of `sample(k)`, `ceil(over * k)` clients are asked and the first k replies count, >= 1.
        aggregation: bytes per second at which the server adds replies up, > 0 (inf: at once).
        seed: of all this; the same world for every method compared.
    """

    such: ClassVar[str] = "fl.World(step_seconds=0.1)"

    step_seconds: float = 0.01
    spread: float = 0.0
    jitter: float = 0.0
    latency: float = 0.0
    up: float = math.inf
    down: float = math.inf
    present: float = 1.0
    devices: Devices | None = None
    network: Network | None = None
    availability: Availability | None = None
    deadline: float = math.inf
    over: float = 1.0
    aggregation: float = math.inf
    seed: int = 0

    def __post_init__(self) -> None:
        fine = (
            0 < self.step_seconds < math.inf
            and 0 <= self.spread < math.inf
            and 0 <= self.jitter < 1
            and 0 <= self.latency < math.inf
            and self.up > 0
            and self.down > 0
            and 0 < self.present <= 1
            and self.deadline > 0
            and 1 <= self.over < math.inf
            and self.aggregation > 0
        )
        if not fine:
            raise ConfigError(
                f"{self} cannot be: step_seconds, up, down, deadline, aggregation > 0; spread, latency >= 0; "
                f"0 <= jitter < 1; 0 < present <= 1; over >= 1; step_seconds, spread, latency, over finite"
            )
        given: Any = self.devices
        if is_mapping(given) or is_row(given):
            object.__setattr__(self, "devices", Explicit(given))
        for name, kind in (("devices", Devices), ("network", Network), ("availability", Availability)):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, kind.parse(value))
            elif not isinstance(value, kind | None):
                raise ConfigError(f"World({name}={value!r}) cannot be: a text such as {_EXAMPLE[name]!r}, or an object")

    # ------------------------------------------------------------ devices
    def device(self, id: int) -> Device:
        """The device of one client: the same in every round and run of this world."""
        if self.devices is not None:
            return self.devices.of(id, self.seed)
        if not self.spread:
            return self._alike
        return Device(self.step_seconds * lognormal(self.spread, self.seed, "device", id))

    @cached_property
    def _alike(self) -> Device:
        return Device(self.step_seconds)

    @property
    def counts(self) -> bool:
        """Whether time depends on what a step computes, so that FLOPs must be counted."""
        return self.devices is not None

    def pace(self, id: int, key: tuple[Any, ...], phase: int, work: Work) -> float:
        """Seconds per step of one training phase of one job."""
        pace = self.device(id).pace(work.flops / work.steps if work.steps else 0.0)
        return pace * (1 + self.jitter * (2 * uniform(self.seed, "pace", phase, *key) - 1)) if self.jitter else pace

    def seconds(self, id: int, key: tuple[Any, ...], phase: int, work: Work) -> float:
        """Of one training phase."""
        return work.steps * self.pace(id, key, phase, work)

    def steps_in(self, id: int, key: tuple[Any, ...], phase: int, work: Work, elapsed: float) -> int:
        """Whole steps of a phase done after that many seconds."""
        pace = self.pace(id, key, phase, work)
        return work.steps if pace == 0 else min(work.steps, max(0, int(elapsed / pace + 1e-9)))

    def computes(self, id: int, flops: float) -> float:
        """Seconds of work that is no training step: predictions, gradients, evaluations."""
        return flops / self.device(id).speed if flops and self.device(id).step_seconds is None else 0.0

    def joules(self, id: int, seconds: float) -> float:
        """Energy of computing for so long."""
        return 0.0 if self.devices is None else self.device(id).watts * seconds

    # ------------------------------------------------------------ links
    def link(self, id: int) -> Link:
        """The link of one client."""
        return self._same if self.network is None else self.network.link(id, self.seed)

    @cached_property
    def _same(self) -> Link:
        return Link(self.up, self.down, self.latency)

    def download(self, id: int, nbytes: int) -> float:
        """Seconds of a message to a client, alone on its link."""
        link = self.link(id)
        return link.latency + nbytes / link.down

    def upload(self, id: int, nbytes: int) -> float:
        """Seconds of a message from a client, alone on its link."""
        link = self.link(id)
        return link.latency + nbytes / link.up

    def adds(self, nbytes: int) -> float:
        """Seconds the server takes to add replies up."""
        return nbytes / self.aggregation if self.aggregation < math.inf else 0.0

    def event(self, name: str, id: int, key: tuple[Any, ...]) -> float:
        """Seconds until a client's own event of that name (exponential, mean 100 steps)."""
        return -math.log(uniform(self.seed, name, *key) + 1e-12) * 100 * self.step_seconds

    # ------------------------------------------------------------ presence
    @property
    def presence(self) -> Availability | None:
        """Who is there; None for everybody, always."""
        return self.availability or (Bernoulli(self.present) if self.present < 1 else None)

    def here(self, ids: Sequence[int], round: int, time: float = 0.0) -> Sequence[int]:
        """Who is available then, in the order of `ids`.

        Everybody's presence is looked at, in one pass over arrays (30 ms a million clients), and those absent are kept
        at 8 bytes each; `Clients` asks once for all moments at which the same are there.
        """
        if self.presence is None:
            return ids
        who = np.arange(ids.start, ids.stop, ids.step) if isinstance(ids, range) else np.asarray(ids, dtype=np.int64)
        there = self.presence.here(who, Moment(round, time), self.seed)
        return ids if there is None else Without.positions(ids, (~there).nonzero()[0])

    def moment(self, round: int, time: float) -> Hashable:
        """Equal for moments at which the same clients are there."""
        return None if self.presence is None else self.presence.same(Moment(round, time))

    def lost(self, id: int, key: tuple[Any, ...], began: float) -> float:
        """When a job that began then is lost, inf for never."""
        return math.inf if self.availability is None else self.availability.lost(id, key, began, self.seed)

    @property
    def timed(self) -> bool:
        """Whether an exchange must go through the clock: who replies in time, or how fast, depends on the others."""
        shared = self.network is not None and self.network.shared
        loses = self.availability is not None and self.availability.loses
        return self.deadline < math.inf or self.over > 1 or shared or loses


_EXAMPLE = {"devices": "tiers:0.2,0.5,0.3", "network": "wifi", "availability": "bernoulli:0.8"}
