"""One exchange as a method asks for it, handed on whole: through every view, to the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """Who runs which program, on what, from when.

    Attributes:
        ids: whom, in order; a client that is named twice does one job after the other.
        program: the client program, bound to its method.
        start: seconds at which the jobs are sent; known when it reaches the host.
        each: arguments for single clients, `{id: {name: value}}`; `down`: arguments for all.
        when: how long a job waits at its client: seconds, or the name of a client's own event.
        peer: a client sends them, not the server.
    """

    ids: Sequence[int]
    program: Callable[..., Any]
    start: float = 0.0
    each: Mapping[int, Mapping[str, Any]] | None = None
    down: Mapping[str, Any] = field(default_factory=dict[str, Any])
    when: float | str | None = None
    peer: bool = False

    def payloads(self) -> list[tuple[int, Mapping[str, Any]]]:
        """(client, what it is sent); one object for all where nobody is sent anything of its own."""
        each = self.each or {}
        return [(i, {**self.down, **each[i]} if i in each else self.down) for i in map(index, self.ids)]


@dataclass(frozen=True)
class Summed:
    """How the replies of an exchange become one message.

    Attributes:
        weight: of a reply: None for training samples, a number, or the name of a number in the reply.
        mean: divided by the weights.
        least: below this many replies the exchange is void.
        fan_in: replies that are added up at one place before their sum goes on; None: as the engine finds best.
    """

    weight: str | float | None
    mean: bool
    least: int
    fan_in: int | None = None

    def __post_init__(self) -> None:
        if not (self.weight is None or isinstance(self.weight, str) or _positive(self.weight)):
            raise ConfigError(
                f"clients.mean(..., weight={self.weight!r}) cannot be: None for training samples, a number > 0 for "
                f"equal weights, or the name of a number in the reply. For weights the server computes, "
                f"clients.map(...).mean(lambda reply: ...)"
            )

    def void(self, replies: int, weight: float) -> str | None:
        """Why a sum of so many replies and of that weight is none, None where it is one."""
        if replies < max(self.least, 1):
            return f"void: fewer replies than the {self.least} its sum takes"
        return None if weight > 0 else "void: all replies of its sum weigh nothing"


def _positive(number: Any) -> bool:
    try:
        return 0 < float(number) < math.inf
    except (TypeError, ValueError):
        return False
