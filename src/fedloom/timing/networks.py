"""Links between clients and server: rates, latency, loss, and what clients in one cell share.

    Network.parse("wifi").link(id=3, seed=0).up                     bytes per second
    Network.parse("5g:shared_up=2.5e6,cells=4")                     clients of a cell share its uplink

A transfer takes `latency + bytes / rate`. With loss, the rate is at most what one TCP connection reaches: segment /
round trip * sqrt(3 / (2 * loss)) (Mathis et al., CCR 1997). Where a cell is shared, transfers under way at the same
time divide it max-min fairly, at every moment (`sharing.py`).

Sources of the figures, megabits per second down / up and round trip:
 - ethernet: 1000BASE-T (IEEE 802.3ab), of whose 1,000 both ways 949 are payload (1,460 of 1,538 bytes a frame);
   0.5 ms on a local network is an assumption.
 - wifi: a home's wireless network is taken to be as fast as the line behind it: 85.73 / 45.74, 21 ms, the means of
   fixed broadband in Ookla's Speedtest Global Index, September 2020.
 - 4g: 35.96 / 11.22, 40 ms, the means of mobile networks there, at a time when few were 5G. (Huang et al., MobiSys
   2012, measured medians of 13 / 6 when LTE was new.)
 - 5g: 166.13 / 21.08, the medians of 5G in Ookla's report on the third quarter of 2021; 28 ms is that of all mobile
   networks in November 2022, in Ookla's report on that year.
Spread between clients (log-normal) is 0 unless asked for: none of these sources gives one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedloom.errors import ConfigError
from fedloom.keyed import uniform

from .devices import lognormal
from .spoken import Spoken

_SEGMENT = 1460
_MEGABIT = 1e6 / 8


@dataclass(frozen=True)
class Link:
    """One client's link to the server.

    Attributes:
        up, down: bytes per second, inf where transfers are free.
        latency: seconds one way.
        cell: whom it shares its cell with; None where it shares nothing.
    """

    up: float = math.inf
    down: float = math.inf
    latency: float = 0.0
    cell: int | None = None


@dataclass(frozen=True)
class Network(Spoken):
    """Links of one kind.

    Args:
        up, down: median bytes per second of a link, > 0.
        latency: seconds one way, >= 0.
        loss: share of packets lost, in [0, 1).
        spread: standard deviation of the log of a client's rates, >= 0.
        shared_up, shared_down: bytes per second all clients of a cell have together, > 0 (inf: nothing is shared).
        cells: how many cells clients are spread over, >= 1.
        name: what it is called.
    """

    up: float = math.inf
    down: float = math.inf
    latency: float = 0.0
    loss: float = 0.0
    spread: float = 0.0
    shared_up: float = math.inf
    shared_down: float = math.inf
    cells: int = 1
    name: str = "free"

    family: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        rates, others = (self.up, self.down, self.shared_up, self.shared_down), (self.latency, self.spread)
        fine = all(rate > 0 for rate in rates) and all(0 <= other < math.inf for other in others)
        if not (fine and 0 <= self.loss < 1 and self.cells >= 1):
            raise ConfigError(
                f"{self!r} cannot be: rates > 0 (bytes per second); latency, spread >= 0 and finite; "
                f"0 <= loss < 1; cells >= 1"
            )

    @property
    def shared(self) -> bool:
        """Whether a transfer's rate depends on who else transfers."""
        return min(self.shared_up, self.shared_down) < math.inf

    def link(self, id: int, seed: int) -> Link:
        """The link of one client: the same in every round, run and method."""
        own = lognormal(self.spread, seed, "link", id)
        most = math.inf
        if self.loss and self.latency:
            most = _SEGMENT / (2 * self.latency) * math.sqrt(1.5 / self.loss)
        cell = int(uniform(seed, "cell", id) * self.cells) if self.shared else None
        return Link(min(own * self.up, most), min(own * self.down, most), self.latency, cell)

    @classmethod
    def known(cls) -> Mapping[str, Network]:
        return NETWORKS


def _measured(name: str, down: float, up: float, round_trip: float) -> Network:
    return Network(up * _MEGABIT, down * _MEGABIT, round_trip / 2, name=name)


NETWORKS = {
    n.name: n
    for n in (
        Network(),
        _measured("ethernet", 949, 949, 0.0005),
        _measured("wifi", 85.73, 45.74, 0.021),
        _measured("4g", 35.96, 11.22, 0.040),
        _measured("5g", 166.13, 21.08, 0.028),
    )
}
