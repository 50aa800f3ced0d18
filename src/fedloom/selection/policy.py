"""The shape of a selection policy, and those that need no more than a line or two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from fedloom.checked import Checked
from fedloom.clients import Clients
from fedloom.errors import ConfigError, unknown
from fedloom.replies import Cohort

from .history import History
from .laws import equal, everybody, proportional

Hears = Literal["loss", "labels", "seconds", "norm"]
"""What replies can tell: the training loss and the class counts of their client (sent along, 8 bytes a number), and
what the server sees by itself: how long the job took and how long an arrow its update is."""


@dataclass(frozen=True)
class Policy(Checked, ABC):
    """Whom to ask. The fields are its hyperparameters; what it knows is a `History`, given to it and never kept.

    A policy draws from those it is given: who is there (and idle) is the world's business. In a method of your own:
    `clients.sample(k, policy=Weighted().over(clients))`; around any method: `Selected(inner=..., policy=...)`.
    """

    @property
    def hears(self) -> frozenset[Hears]:
        """What it learns from the replies to its cohorts; anything here means that single replies are read."""
        return frozenset()

    @property
    def asks(self) -> bool:
        """Whether candidates are asked for the loss of the model they would be sent before it chooses among them."""
        return False

    def start(self) -> History:
        """What it knows before round 1."""
        return History()

    def begin(self, history: Any) -> Any:
        """A new round: once, before anybody is drawn."""
        return replace(history, round=history.round + 1)

    def candidates(
        self, clients: Clients, history: Any, ids: Sequence[int], k: int, rng: torch.Generator
    ) -> Sequence[int]:
        """Those it will choose among: by default all it is given."""
        return ids

    @abstractmethod
    def draw(self, clients: Clients, history: Any, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        """`k` of the candidates `ids` (there are more than k)."""

    def chosen(self, clients: Clients, history: Any, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        """`k` of the candidates `ids`, all of them where there are no more."""
        return everybody(ids) if k >= len(ids) else self.draw(clients, history, ids, k, rng)

    def counted(self, k: int | float) -> int:
        """k, as `sample` was given it.

        Raises:
            ConfigError: it is a chance, or negative.
        """
        if isinstance(k, float) or k < 0:
            raise ConfigError(f"{type(self).__name__} draws a number of clients, >= 0; asked for {k}")
        return k

    def over(self, clients: Clients, history: Any = None) -> Callable[..., Cohort]:
        """As `clients.sample(k, policy=...)` takes it: `policy(ids, k, rng)`, over what is known now."""
        return partial(self._drawn, clients, self.begin(self.start()) if history is None else history)

    def _drawn(
        self, clients: Clients, history: Any, ids: Sequence[int], k: int | float, rng: torch.Generator
    ) -> Cohort:
        k = self.counted(k)
        return self.chosen(clients, history, self.candidates(clients, history, ids, k, rng), k, rng)


class ByLoss(Policy):
    """Chooses by losses. Subclasses are frozen dataclasses with the field `loss`.

    Attributes:
        loss: where losses come from: "asked" (candidates are sent the model and answer with its loss), or "last" (the
            training loss each told of when it last took part; no extra exchange).
    """

    loss: Literal["asked", "last"] = "asked"

    def __post_init__(self) -> None:
        if self.loss not in ("asked", "last"):
            raise unknown("loss", self.loss, ("asked", "last"))

    @property
    def hears(self) -> frozenset[Hears]:
        return frozenset({"loss"}) if self.loss == "last" else frozenset()

    @property
    def asks(self) -> bool:
        return self.loss == "asked"


@dataclass(frozen=True)
class Uniform(Policy):
    """Equal chances: what `clients.sample(k)` does, draw for draw."""

    def draw(self, clients: Clients, history: History, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        return equal(ids, k, rng)


@dataclass(frozen=True)
class Weighted(Policy):
    """Chances in proportion to n_i^power, n_i a client's training samples; exact, and told with the cohort.

    Args:
        power: 1 (so that an equal mean of the replies is right), 0 (equal chances), anything >= 0.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ConfigError(f"Weighted(power={self.power}) cannot be: power >= 0")

    def draw(self, clients: Clients, history: History, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        return proportional(ids, [clients.info(i)["samples"] ** self.power for i in ids], k, rng)


@dataclass(frozen=True)
class DeadlineAware(Policy):
    """Equal chances among those that are expected to be back in time (FedCS; Nishio, Yonetani, ICC 2019).

    Expected is what a client's last job took, too long where no reply came; who was not asked yet, or not for long,
    gets a chance. The cohort is smaller than k where too few can make it.

    Args:
        seconds: the deadline, > 0, from sending to the reply's arrival.
        forget: rounds after which a measurement no longer counts, >= 1.
    """

    seconds: float = 10.0
    forget: int = 20

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.forget < 1:
            raise ConfigError(
                f"DeadlineAware(seconds={self.seconds}, forget={self.forget}) cannot be: seconds > 0, forget >= 1"
            )

    @property
    def hears(self) -> frozenset[Hears]:
        return frozenset({"seconds"})

    def candidates(
        self, clients: Clients, history: History, ids: Sequence[int], k: int, rng: torch.Generator
    ) -> Sequence[int]:
        return [i for i in ids if self._in_time(history, i)]

    def draw(self, clients: Clients, history: History, ids: Sequence[int], k: int, rng: torch.Generator) -> Cohort:
        return equal(ids, k, rng)

    def _in_time(self, history: History, id: int) -> bool:
        seen = history.of(id)
        if history.round - max(seen.last, seen.timed) >= self.forget:
            return True
        silent = seen.last > seen.timed  # it was asked and not heard: the deadline was the world's, too
        return not silent and (seen.seconds is None or seen.seconds <= self.seconds)
