"""Sums in the ring of a secure stage: plainly, or through every phase of the protocol, to the same bits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedloom.channel.secure import Secure
from fedloom.channel.secure.ring import Form, Vector, commonest, read, sent, vector_of
from fedloom.errors import MessageError
from fedloom.message import Message, leaves
from fedloom.training.request import Trained, Training

from .base import Engine, Job, Outcome
from .fold import Fold, Total

Entry = tuple[int, Message, int]
"""A reply to be added up: the number of its job, the message on the grid, the client's samples."""


@dataclass
class Summed:
    """A sum, and what became of each job.

    Attributes:
        left_out: job number -> why its reply is not in the sum.
        nbytes: job number -> bytes up and down, beyond its message.
    """

    total: Total = field(default_factory=Total)
    left_out: dict[int, str] = field(default_factory=dict[int, str])
    nbytes: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])


def secured(stage: Secure, fold: Fold, entries: Sequence[Entry], asked: Sequence[int]) -> Summed:
    """The sum of the replies through every phase, in one process; who was asked and has no reply is lost before it adds
    its own. With too few there is no sum."""
    from fedloom.channel.secure.protocol import Gone, TooFew, secure_sum

    form, vectors, left_out = _vectors(stage, fold, entries, len(asked))
    secrets = {u: os.urandom(32) for u in asked}
    try:
        total, course = secure_sum(vectors, secrets, "simulated", stage.least(len(asked)), Gone())
    except TooFew as e:
        nbytes = {u: e.course.nbytes(u) for u in asked}
        return Summed(left_out=left_out | dict.fromkeys(vectors, str(e)), nbytes=nbytes)
    assert form is not None
    nbytes = {u: course.nbytes(u) for u in asked}
    device = next((t.device for _, message, _ in entries for t in leaves(message) if isinstance(t, Tensor)), None)
    return Summed(total_of(stage, fold, form, total, list(vectors), device), left_out, nbytes)


def plainly(stage: Secure, fold: Fold, entries: Sequence[Entry], asked: int) -> Summed:
    """The same sum without a mask."""
    form, vectors, left_out = _vectors(stage, fold, entries, asked)
    if form is None:
        return Summed(left_out=left_out)
    total = np.zeros(form.words, np.uint64)
    for vector in vectors.values():
        total += vector
    return Summed(total_of(stage, fold, form, total, list(vectors)), left_out)


def total_of(
    stage: Secure, fold: Fold, form: Form, total: Vector, jobs: list[int], device: torch.device | None = None
) -> Total:
    """A sum of words as what the engine would have added up, on the device it would have done so."""
    values, weight = read(form, total, stage.step, stage.ring, stage.unit(fold), device)
    return Total(values, weight, jobs, sent(form.spec))


def _vectors(
    stage: Secure, fold: Fold, entries: Sequence[Entry], asked: int
) -> tuple[Form | None, Mapping[int, Vector], dict[int, str]]:
    """Replies of the form that most have, as words."""
    forms = {number: Form.of(message).text for number, message, _ in entries}
    common = commonest(forms)
    if common is None:
        return None, {}, {}
    vectors, left_out = dict[int, Vector](), dict[int, str]()
    for number, message, samples in entries:
        try:
            if forms[number] != common:
                raise MessageError("its fields differ from most others'")
            vectors[number] = vector_of(message, stage.weight(fold, message, samples, asked), stage.step)
        except MessageError as e:
            left_out[number] = str(e)
    return Form(common), vectors, left_out


class Secured:
    """An engine whose sums are secure sums: all clients and the server of the protocol, in this process.

    Args:
        inner: does the jobs.
        stage: of the channel.
    """

    def __init__(self, inner: Engine, stage: Secure) -> None:
        self.inner, self.stage, self.name = inner, stage, inner.name

    def run(self, jobs: Sequence[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        """As in every engine. A reply that is in no sum leaves no trace."""
        outcomes, _ = self.inner.run(jobs)
        if fold is None:
            return outcomes, None
        there = [o for o in outcomes if o.message is not None and o.excluded is None]
        entries = [(o.job.number, o.message, o.job.samples) for o in there if o.message is not None]
        done = secured(self.stage, fold, entries, [o.job.number for o in outcomes])
        for o in outcomes:
            settle(o, done)
        return outcomes, done.total

    def compute(self, requests: Sequence[Training]) -> list[Trained]:
        return self.inner.compute(requests)

    def choices(self) -> dict[str, str]:
        return self.inner.choices()

    def close(self) -> None:
        self.inner.close()


def settle(outcome: Outcome, done: Summed) -> None:
    """What became of one job: nobody reads its reply, and its part in the phases is charged."""
    number = outcome.job.number
    outcome.excluded = outcome.excluded or done.left_out.get(number)
    outcome.message = None
    up, down = done.nbytes.get(number, (0, 0))
    outcome.asked.up += up
    outcome.asked.down += down


__all__ = ["Entry", "Secured", "Summed", "plainly", "secured", "settle", "total_of"]
