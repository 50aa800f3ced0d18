"""Who is there: when a client can be asked, and when one is lost in the middle of a job.

    Availability.parse("markov:0.9,0.5")                there now: there next with 0.9; away now: back with 0.5
    Availability.parse("diurnal:0.2,0.8+churn:crash=1e-4")        there by both
    Availability.parse("bernoulli:0.9|bernoulli:0.1")             every other client by the first, and by the second

Nothing is kept for a client: presence is a function of (seed, client, time), computed for all clients in one pass over
arrays of 8 bytes each, and only the positions of those absent are kept for the round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fedloom.data.readers import read_frame
from fedloom.errors import ConfigError, DataError
from fedloom.keyed import scattered, uniform

from .spoken import Spoken


class Moment(NamedTuple):
    """When: the round, from 0, and virtual seconds."""

    round: int
    time: float


class Availability(Spoken):
    """Base: everybody is there, always, and nobody is lost."""

    family: ClassVar[str] = "availability"

    def here(self, ids: np.ndarray, when: Moment, seed: int) -> np.ndarray | None:
        """Who of `ids` `(n,)` can be asked: boolean `(n,)`, or None for all."""
        return None

    def lost(self, id: int, key: tuple[Any, ...], began: float, seed: int) -> float:
        """When a job that began then is lost (its client leaves or crashes), inf for never."""
        return math.inf

    def same(self, when: Moment) -> Hashable:
        """Equal for moments at which the same clients are there."""
        return when.round

    @property
    def pause(self) -> float:
        """Seconds a server waits to look again when nobody is there; 0: until the next round, however long that is."""
        return 0.0

    @property
    def loses(self) -> bool:
        """Whether a job can be lost at all."""
        return type(self).lost is not Availability.lost

    @classmethod
    def known(cls) -> Mapping[str, Availability]:
        return {
            "always": Always(),
            "bernoulli": Bernoulli(),
            "markov": Markov(),
            "diurnal": Diurnal(),
            "trace": Trace(),
            "churn": Churn(),
        }

    @classmethod
    def parse(cls, text: str) -> Any:
        """As `Spoken.parse`; several joined by `+` are there where all are, those between `|` are for one client after
        the other."""
        if "|" in text:
            return Groups(tuple(map(cls.parse, text.split("|"))))
        parts = tuple(super(Availability, cls).parse(part) for part in re.split(r"\+(?=\s*[a-z])", text))
        return parts[0] if len(parts) == 1 else All(parts)


@dataclass(frozen=True)
class Always(Availability):
    """Everybody, in every round."""


@dataclass(frozen=True)
class Bernoulli(Availability):
    """Each client in each round with the same chance, whatever was before.

    Args:
        chance: in (0, 1].
    """

    chance: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.chance <= 1:
            raise ConfigError(f"bernoulli:{self.chance} cannot be: a chance in (0, 1]")

    def here(self, ids: np.ndarray, when: Moment, seed: int) -> np.ndarray | None:
        return None if self.chance == 1 else scattered(ids, seed, "present", when.round) < self.chance


@dataclass(frozen=True)
class Markov(Availability):
    """Two states, there and away, each remembered from one step to the next.

    The share of clients there is `back / (1 - stay + back)`; the correlation of one client with itself k steps later is
    `(stay - back)^k`; that of two clients of one region at the same step is `together`.

    A chain with those chances draws its state anew, from the shares, with chance `1 - (stay - back)` a step and else
    keeps it. So its state follows from the last such draw, which is looked for backwards: no state is kept, and every
    step can be asked for. Clients of a region draw anew at the same steps, each from the region's own draw with chance
    `sqrt(together)`.

    Args:
        stay: chance to be there after being there; `back` after being away, with 0 < back <= stay <= 1.
        together: correlation within a region, in [0, 1].
        regions: how many regions clients are spread over.
        step: seconds of a step; 0: a round.
    """

    stay: float = 0.9
    back: float = 0.5
    together: float = 0.0
    regions: int = 10
    step: float = 0.0

    def __post_init__(self) -> None:
        fine = 0 < self.back <= self.stay <= 1 and 0 <= self.together <= 1 and self.regions >= 1
        if not (fine and 0 <= self.step < math.inf):
            raise ConfigError(
                f"{self!r} cannot be: 0 < back <= stay <= 1 (a client that was there is no less likely to be there "
                f"again); 0 <= together <= 1; regions >= 1; step >= 0 and finite"
            )
        if self.stay - self.back == 1:
            raise ConfigError("markov:1,0 never changes; use always, or a trace")

    def here(self, ids: np.ndarray, when: Moment, seed: int) -> np.ndarray:
        step = self._step(when)
        share = self.back / (1 - self.stay + self.back)
        region = (scattered(ids, seed, "region") * self.regions).astype(np.int64)
        clock = region if self.together else ids
        drawn = self._drawn(clock, step, seed)
        own = _keyed(ids, drawn, seed, "own")
        if self.together:
            common = _keyed(region, drawn, seed, "region draw")
            follows = _keyed(ids, drawn, seed, "follows") < math.sqrt(self.together)
            own = np.where(follows, common, own)
        return own < share

    def _drawn(self, clock: np.ndarray, step: int, seed: int) -> np.ndarray:
        """The last step, up to this one, at which each clock `(n,)` drew anew; -1: at the start."""
        anew = 1 - (self.stay - self.back)
        drawn = np.full(len(clock), -1, dtype=np.int64)
        open_ = np.arange(len(clock))
        while step >= 0 and len(open_):
            hit = scattered(clock[open_], seed, "anew", step) < anew
            drawn[open_[hit]] = step
            open_, step = open_[~hit], step - 1
        return drawn

    def _step(self, when: Moment) -> int:
        return int(when.time // self.step) if self.step else when.round

    def same(self, when: Moment) -> Hashable:
        return self._step(when)

    @property
    def pause(self) -> float:
        return self.step


@dataclass(frozen=True)
class Diurnal(Availability):
    """The chance to be there goes up and down with the time of day, as a cosine; each slot is drawn anew.

    The run begins at the quietest hour. By default four times as many are there at the busiest hour as at the quietest,
    as Bonawitz et al. (MLSys 2019, 5.1) saw in one country.

    Args:
        low, high: chance at the quietest and at the busiest hour, in [0, 1].
        zones: share of the day over which clients' clocks are spread (0: one time zone, 1: around the world).
        slot: seconds until a client's presence is drawn anew, > 0.
        day: seconds, > 0.
    """

    low: float = 0.2
    high: float = 0.8
    zones: float = 0.0
    slot: float = 3600.0
    day: float = 86400.0

    def __post_init__(self) -> None:
        fine = 0 <= self.low <= self.high <= 1 and 0 <= self.zones <= 1
        if not (fine and 0 < self.slot < math.inf and 0 < self.day < math.inf):
            raise ConfigError(f"{self!r} cannot be: 0 <= low <= high <= 1; 0 <= zones <= 1; slot, day > 0 and finite")

    def here(self, ids: np.ndarray, when: Moment, seed: int) -> np.ndarray:
        slot = int(when.time // self.slot)
        phase = slot * self.slot / self.day
        if self.zones:
            turn = scattered(ids, seed, "zone")
            turn *= self.zones
            turn += phase
        else:
            turn = np.array(phase)
        chance = self.low + (self.high - self.low) * (1 - np.cos(2 * math.pi * turn)) / 2
        return scattered(ids, seed, "diurnal", slot) < chance

    def same(self, when: Moment) -> Hashable:
        return int(when.time // self.slot)

    @property
    def pause(self) -> float:
        return self.slot


@dataclass(frozen=True)
class Trace(Availability):
    """Presence that was recorded: a CSV or Parquet file with the columns `client`, `start` and `end` (seconds), a line
    for each time a client was there. A job still running when that time ends is lost.

    Args:
        path: the file. Client i has the i-th recorded client's times, beginning again where those end.
        period: seconds after which the record begins again; 0: its last end.
    """

    path: str = ""
    period: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.period < math.inf:
            raise ConfigError(f"{self!r} cannot be: a period in seconds, >= 0, as in trace:FILE,period=86400")

    def here(self, ids: np.ndarray, when: Moment, seed: int) -> np.ndarray:
        record = self._record()
        return record.there(when.time)[ids % record.clients]

    def lost(self, id: int, key: tuple[Any, ...], began: float, seed: int) -> float:
        record = self._record()
        return record.until(id % record.clients, began)

    def same(self, when: Moment) -> Hashable:
        return when.time

    @property
    def pause(self) -> float:
        return self._record().period / 1000

    def _record(self) -> _Record:
        return _recorded(self.path, self.period)


@dataclass(frozen=True)
class Churn(Availability):
    """Clients that come, leave for good, and crash. Times are exponential.

    Args:
        join: mean seconds until a client comes; 0: all are there at the start.
        stay: mean seconds until it leaves for good, > 0 (inf: never). A job under way then is lost.
        crash: crashes per second of a job, >= 0: its work is lost, the client is there again.
    """

    join: float = 0.0
    stay: float = math.inf
    crash: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.join < math.inf and self.stay > 0 and 0 <= self.crash < math.inf):
            raise ConfigError(f"{self!r} cannot be: join, crash >= 0 and finite; stay > 0")

    def here(self, ids: np.ndarray, when: Moment, seed: int) -> np.ndarray | None:
        if not self.join and self.stay == math.inf:
            return None
        comes = -self.join * np.log1p(-scattered(ids, seed, "join"))
        there = comes <= when.time
        if self.stay < math.inf:
            there &= when.time < comes - self.stay * np.log1p(-scattered(ids, seed, "stay"))
        return there

    def lost(self, id: int, key: tuple[Any, ...], began: float, seed: int) -> float:
        leaves = math.inf
        if self.stay < math.inf:
            one = np.array([id])
            comes = -self.join * math.log1p(-float(scattered(one, seed, "join")[0]))
            leaves = comes - self.stay * math.log1p(-float(scattered(one, seed, "stay")[0]))
        if self.crash:
            leaves = min(leaves, began - math.log1p(-uniform(seed, "crash", *key)) / self.crash)
        return max(began, leaves)

    def same(self, when: Moment) -> Hashable:
        return when.time if self.join or self.stay < math.inf else 0

    @property
    def pause(self) -> float:
        return self.join / 10


@dataclass(frozen=True)
class All(Availability):
    """There where all of its parts are; lost where the first of them is."""

    parts: tuple[Availability, ...] = ()

    def here(self, ids: np.ndarray, when: Moment, seed: int) -> np.ndarray | None:
        found = [there for part in self.parts if (there := part.here(ids, when, seed)) is not None]
        return reduce(np.logical_and, found) if found else None

    def lost(self, id: int, key: tuple[Any, ...], began: float, seed: int) -> float:
        return min(part.lost(id, key, began, seed) for part in self.parts)

    def same(self, when: Moment) -> Hashable:
        return tuple(part.same(when) for part in self.parts)

    @property
    def pause(self) -> float:
        return min((part.pause for part in self.parts if part.pause), default=0.0)

    @property
    def loses(self) -> bool:
        return any(part.loses for part in self.parts)

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


@dataclass(frozen=True)
class Groups(Availability):
    """Clients that are there unlike often: client i as `kinds[i % len(kinds)]` says."""

    kinds: tuple[Availability, ...] = ()

    def here(self, ids: np.ndarray, when: Moment, seed: int) -> np.ndarray:
        there = np.ones(len(ids), dtype=bool)
        for k, kind in enumerate(self.kinds):
            mine = ids % len(self.kinds) == k
            found = kind.here(ids[mine], when, seed)
            if found is not None:
                there[mine] = found
        return there

    def lost(self, id: int, key: tuple[Any, ...], began: float, seed: int) -> float:
        return self.kinds[id % len(self.kinds)].lost(id, key, began, seed)

    def same(self, when: Moment) -> Hashable:
        return tuple(kind.same(when) for kind in self.kinds)

    @property
    def pause(self) -> float:
        return min((kind.pause for kind in self.kinds if kind.pause), default=0.0)

    @property
    def loses(self) -> bool:
        return any(kind.loses for kind in self.kinds)

    def __str__(self) -> str:
        return "|".join(map(str, self.kinds))


def _keyed(ids: np.ndarray, steps: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """One number in [0, 1) for each (id, step)."""
    return scattered(ids * np.int64(1_000_003) + steps, seed, purpose)


@dataclass(frozen=True, eq=False)
class _Record:
    """Times of presence: of client `owner[k]`, from `start[k]` to `end[k]`, in every period."""

    owner: np.ndarray
    start: np.ndarray
    end: np.ndarray
    period: float
    clients: int

    def there(self, time: float) -> np.ndarray:
        """Boolean `(clients,)`."""
        t = time % self.period
        now = (self.start <= t) & (t < self.end)
        return np.bincount(self.owner[now], minlength=self.clients) > 0

    def until(self, client: int, time: float) -> float:
        """When the presence at `time` ends: at once for a client that is away, never for one that is always there."""
        mine = self.owner == client
        start, end, t = self.start[mine], self.end[mine], time % self.period

        def ends(t: float) -> float | None:
            return next((float(e) for s, e in zip(start, end) if s <= t < e), None)

        stops, again = ends(t), ends(0.0)
        if stops is None:
            return time
        if stops >= self.period:  # over the seam
            stops = math.inf if again is not None and again >= self.period else self.period + (again or 0.0)
        return time - t + stops


@cache
def _recorded(path: str, period: float) -> _Record:
    file = Path(path)
    if not path or not file.exists():
        raise ConfigError(f"there is no trace {path!r}: availability trace:FILE, a .csv or .parquet")
    table: Any = read_frame(file, file.suffix.lstrip("."))
    if missing := {"client", "start", "end"} - set(table.columns):
        raise DataError(f"the trace {path} has no column {', '.join(sorted(missing))}; it needs client, start, end")
    names, owner = np.unique(np.asarray(table["client"]), return_inverse=True)
    start, end = np.asarray(table["start"], dtype=float), np.asarray(table["end"], dtype=float)
    if not len(owner) or not ((end > start) & (start >= 0)).all():
        raise DataError(f"the trace {path} is empty, or has a line that ends before it starts or starts before 0")
    order = np.lexsort((start, owner))
    owner, start, end = owner[order], start[order], end[order]
    if ((owner[1:] == owner[:-1]) & (start[1:] < end[:-1])).any():
        raise DataError(f"the trace {path} has times of one client that overlap")
    joined = (owner[1:] == owner[:-1]) & (start[1:] == end[:-1])  # there all the while: nothing ends in between
    first, last = np.append(True, ~joined), np.append(~joined, True)
    return _Record(owner[first], start[first], end[last], period or float(end.max()), len(names))
