"""Runs of one example, varied in one respect at a time: engine, seed, precision, adversary, kill."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fedloom.client import Client
from fedloom.data import Federation
from fedloom.engines.base import Behaviour
from fedloom.errors import FedloomWarning
from fedloom.message import Message
from fedloom.method import Method
from fedloom.runs import Experiment, Run
from fedloom.task import Task

from .tiny import SIZES, Example, example_of


class Killed(BaseException):
    """Raised by an observer to stop a run in the middle; nothing of Fedloom catches it."""


@dataclass(frozen=True)
class Heard:
    """One exchange as an eavesdropper at the client sees it."""

    client: int
    round: int
    payload: Message
    reply: Message | None


@dataclass
class Spy:
    """A behaviour that changes nothing and writes down every payload and reply. For one-by-one engines."""

    heard: list[Heard] = field(default_factory=list)

    async def __call__(self, client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
        reply = await honest(client, **payload)
        self.heard.append(Heard(client.id, client.key[1], Message(payload), reply))
        return reply


class Trial:
    """The runs the checks of one method compare; the reference is made once.

    Args:
        method: a class or an instance; `overrides` replace hyperparameters of its example.
    """

    def __init__(self, method: Method | type[Method], **overrides: Any) -> None:
        self.cls = method if isinstance(method, type) else type(method)
        self._given, self._overrides = method, overrides

    @cached_property
    def example(self) -> Example:
        return example_of(self._given, **self._overrides)

    @property
    def method(self) -> Method:
        return self.example.method

    @property
    def clocked(self) -> bool:
        return "clock" in self.method.card.needs

    def experiment(
        self,
        *,
        sizes: tuple[int, ...] = SIZES,
        dtype: torch.dtype = torch.float64,
        method: Method | None = None,
        task: Task | None = None,
        federation: Federation | None = None,
        **options: Any,
    ) -> Experiment:
        """The example as an experiment, one by one in float64 unless told otherwise."""
        e = self.example
        defaults = {"rounds": e.rounds, "engine": "sequential", "world": e.world, "evaluate_every": 0}
        return Experiment(
            method or e.method,
            task or e.task,
            federation or e.federation(sizes, dtype),
            dtype=dtype,
            **{**defaults, **options},
        )

    def federation(self) -> Federation:
        """The example's clients, with samples one may write over."""
        return copy.deepcopy(self.example.federation(SIZES, torch.float64))

    def run(self, **options: Any) -> Run:
        """`experiment(...)`, run; fallbacks of an engine are no failure of a method."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FedloomWarning)
            return self.experiment(**options).run()

    @cached_property
    def spy(self) -> Spy:
        return Spy()

    @cached_property
    def reference(self) -> Run:
        """The run others are compared with: sequential, float64, overheard by `spy`."""
        return self.run(behave=dict.fromkeys(range(len(SIZES)), self.spy), evaluate_every=1)

    def spy_on_reference(self) -> list[Heard]:
        """Every exchange of the reference run."""
        self.reference  # noqa: B018  (fills the spy)
        return self.spy.heard

    @cached_property
    def victim(self) -> int:
        """A client of the first round: the first to answer, so that under a clock its reply arrives."""
        took_part = list(dict.fromkeys(h.client for h in self.spy_on_reference() if h.round == 0))
        return took_part[0] if took_part else 0

    def misled(self, behaviour: Behaviour, **options: Any) -> Run:
        """A run in which the victim behaves like this."""
        return self.run(behave={self.victim: behaviour}, on_failure="exclude", **options)

    def killed_after(self, round: int) -> Run:
        """Killed when round `round` (from 1) has ended but is not saved yet, then resumed by a new experiment."""

        def kill(event: Mapping[str, Any]) -> None:
            if event["event"] == "round" and event["round"] == round:
                raise Killed

        with tempfile.TemporaryDirectory(prefix="fedloom-") as folder:
            options = {"out": Path(folder) / "run", "checkpoint_seconds": 0.0, "evaluate_every": 1}
            with contextlib.suppress(Killed):
                self.experiment(observers=(kill,), **options).run()
            return self.experiment(**options).run(resume=True)
