"""Figures at the clients, a rule for "not worse", and data on which clients are judged by themselves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _settings import have

import fedloom as fl
from fedloom.claims import Beats, Comparison, Row, Setting, interval
from fedloom.data import Federation
from fedloom.data.sources import load
from fedloom.keyed import generator
from fedloom.task import ModelSpec


@dataclass(frozen=True)
class AtClients:
    """A figure of each client's own answer on its own test data; where there is no other, it is the global model's.

    `figure` "mean" and "worst10" are over clients, each counting once; "loss" is pooled over samples.
    """

    figure: str = "mean"
    last: int = 3
    lower: bool = False

    def __call__(self, rows: Sequence[Row], budget: float) -> float:
        seen = [v for r in rows if (v := self._of(r)) is not None]
        return statistics.fmean(seen[-self.last :]) if seen else math.nan

    def _of(self, row: Row) -> float | None:
        view = row.get("personal") or row.get("global")
        return float(view[self.figure]) if view else None

    def known(self, row: Row) -> bool:
        return False

    def __str__(self) -> str:
        words = {"mean": "mean accuracy over clients", "worst10": "accuracy of the worst clients", "loss": "test loss"}
        return f"{words[self.figure]} on their own test data, mean of the last {self.last} evaluations"


@dataclass(frozen=True)
class NotWorse(Beats):
    """`arm` is less than `by` below `than`.

    Reproduced: the mean over seeds is, and the 95 % interval excludes a gap of `by`. Not reproduced: the mean gap is
    `by` or more. Mixed: anything between.
    """

    def judge(self, figures: Mapping[str, Sequence[float]], lower: bool) -> Comparison:
        effects = [(b - a) if lower else (a - b) for a, b in zip(figures[self.arm], figures[self.than])]
        mean, low, high = interval(effects)
        verdict = "reproduced" if low > -self.by else "mixed" if mean > -self.by else "not reproduced"
        text = f"{self.arm} minus {self.than}: {mean:.4g} [{low:.4g}, {high:.4g}]"
        return Comparison(self.arm, self.than, effects, mean, low, high, verdict, text)

    def __str__(self) -> str:
        return (
            f"{self.arm} is less than {self.by:g} worse than {self.than}. Reproduced: the 95 % interval of the mean "
            f"over paired seeds excludes {self.by:g}; not reproduced: it is {self.by:g} worse or more; mixed: between"
        )


def samples(seed: int, limit: int) -> Any:
    """Fashion-MNIST, or the digits of scikit-learn where it is not there; the result's `data` says which."""
    torch.set_num_threads(1)
    return load("fashion-mnist", seed, limit=limit) if have("fashion-mnist") else load("digits", seed)


def own_test(
    seed: int, partition: str, clients: int, rounds: int, model: ModelSpec, limit: int = 6000, **options: Any
) -> Setting:
    """Every client keeps a quarter of its samples to be judged on; there is no common test set."""
    read = samples(seed, limit)
    data = Federation.from_data(
        read.train, clients, partition, val=0.15, client_test=0.25, seed=seed, classes=read.classes, name=read.name
    )
    return Setting(fl.Classification(model=model), data, rounds, options)


def common_test(
    seed: int,
    clients: int,
    rounds: int,
    model: ModelSpec,
    classes: int = 3,
    train: int = 60,
    public: int = 0,
    **options: Any,
) -> Setting:
    """Every client trains on `train` samples of a few classes, and is judged on 40 of all classes (20 to tune on)."""
    read, rng = samples(seed, 6000), generator(seed, "common test")
    order = torch.randperm(len(read.train), generator=rng)
    shared, order = order[:public], order[public:]
    judged, order = order[: 60 * clients].view(clients, 60), order[60 * clients :]
    parts = []
    for rows in judged:
        mine = torch.randperm(read.classes, generator=rng)[:classes]
        own = order[torch.isin(read.train.y[order], mine)]
        own = own[torch.randperm(len(own), generator=rng)[:train]]
        parts.append(read.train.rows(torch.cat([own, rows])))
    n = train + 60
    data = Federation.from_clients(
        parts,
        val=20 / n,
        client_test=40 / n,
        ordered=True,
        classes=read.classes,
        name=read.name,
        public=read.train.rows(shared) if public else None,
    )
    return Setting(fl.Classification(model=model), data, rounds, options)
