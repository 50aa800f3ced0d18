"""Where the time of a round went: download, compute, upload, wait, aggregation; energy, staleness, who took part.

Sums are kept for every round, at the cost of a few additions a job. Single jobs are written down only where they were
asked for (`per_client`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from fedloom.written import record

PHASES = ("download", "compute", "upload", "wait", "aggregation")


@record
@dataclass
class Span:
    """One job in time, in seconds.

    Attributes:
        sent: when; the phases follow one another, though waiting may lie anywhere between them.
        wait: for its turn at the client, for answers in mid-job, and for the others of its exchange.
        aggregation: while the server adds replies up.
        energy: joules of computing.
        staleness: rounds returned between sending and reply.
        fate: "" where the reply counted, else why it did not.
    """

    id: int
    sent: float
    download: float
    compute: float
    upload: float
    wait: float = 0.0
    aggregation: float = 0.0
    energy: float = 0.0
    staleness: int = 0
    fate: str = ""


@record
@dataclass
class Meter:
    """Sums of a round, and how often each client took part in the run.

    Attributes:
        single: whether single jobs are written down.
        seconds: of all jobs of the round, by phase; `energy` their joules; `staleness` -> replies.
        jobs: the single jobs of the round.
        took_part: by client, replies that counted since the run began, for those that have any.
    """

    single: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    energy: float = 0.0
    staleness: dict[int, int] = field(default_factory=dict[int, int])
    jobs: list[Span] = field(default_factory=list[Span])
    took_part: dict[int, int] = field(default_factory=dict[int, int])

    def fresh_round(self) -> None:
        self.seconds, self.energy = dict.fromkeys(PHASES, 0.0), 0.0
        self.staleness, self.jobs = {}, []

    def add(self, spans: Iterable[Span], until: float | None = None, aggregation: float = 0.0) -> None:
        """Jobs whose exchange is over.

        Args:
            until: when the last reply of their exchange was in, which the others waited for.
            aggregation: seconds the server then took to add them up.
        """
        seconds = self.seconds
        for span in spans:
            if until is not None:
                span.wait += max(0.0, until - (span.sent + span.download + span.compute + span.upload + span.wait))
            span.aggregation = aggregation
            seconds["download"] += span.download
            seconds["compute"] += span.compute
            seconds["upload"] += span.upload
            seconds["wait"] += span.wait
            seconds["aggregation"] += aggregation
            self.energy += span.energy
            if not span.fate:
                self.staleness[span.staleness] = self.staleness.get(span.staleness, 0) + 1
                self.took_part[span.id] = self.took_part.get(span.id, 0) + 1
            if self.single:
                self.jobs.append(span)

    def row(self) -> dict[str, Any]:
        """What the round's line of the log says: client-seconds by phase, and what else there is to say."""
        row: dict[str, Any] = {"seconds": dict(self.seconds)}
        if self.energy:
            row["energy"] = self.energy
        if self.staleness:
            row["staleness"] = {str(k): n for k, n in sorted(self.staleness.items())}
        if self.jobs:
            row["jobs"] = [asdict(span) for span in self.jobs]
        return row

    def fairness(self, clients: int) -> float | None:
        """Jain's index of how often clients took part, `(sum x)^2 / (n * sum x^2)` (Jain, Chiu, Hawe 1984): 1 where all
        did alike, 1/n where one did all; None before anybody did."""
        counts = self.took_part.values()
        squares = sum(x * x for x in counts)
        return sum(counts) ** 2 / (clients * squares) if squares else None
