"""The debug engine: slow and plain. It runs every program twice, and says where and on what anything failed."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedloom.client import Query, settled
from fedloom.errors import ClientFailure, FedloomError, StateMutated
from fedloom.message import Message, leaves
from fedloom.training import Trained, Trainer, Training

from .base import Answer, Job, Outcome, Plan
from .fold import Fold, Total
from .local import Local
from .turn import Turn, answered, failure, shapes


class Debug:
    """One client at a time, each program run twice (it must be repeatable), inputs checked for in-place changes."""

    name = "debug"

    def __init__(self, plan: Plan, answer: Answer | None = None) -> None:
        self.plan, self.answer = plan, answer
        self._local = Local(plan, Trainer("plain"), answer=answer)

    def run(self, jobs: Sequence[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        for job in jobs:
            first, second = self._rehearse(job), self._rehearse(job)
            if not _same(first, second):
                what = (
                    f"gave two different replies for the same job (client {job.id}). A program is repeatable: draw "
                    f"from client.rng(purpose), never from global randomness, and keep nothing outside client.memory"
                )
                raise failure(self.plan, job, what)
        return self._local.run(jobs, fold)

    def compute(self, requests: Sequence[Training]) -> list[Trained]:
        return self._local.compute(requests)

    def choices(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        return None

    def _rehearse(self, job: Job) -> Message | None:
        inputs = [t for t in (*leaves(job.payload), *leaves(job.memory)) if isinstance(t, Tensor)]
        versions = [t._version for t in inputs]
        turn, stage = Turn(self.plan, job), "start"
        try:
            turn.advance()
            while turn.request is not None:
                request = turn.request
                stage = type(request).__name__.lower()
                if isinstance(request, Training):
                    turn.advance(self.compute([request])[0])
                elif isinstance(request, Query):
                    turn.advance(answered(self.plan, request))
                elif self.answer is not None:
                    turn.hear(request, self.answer(request, job.id))
        except Exception as e:
            cause = e.__cause__ or e if isinstance(e, ClientFailure) else e  # what the program raised itself
            if isinstance(cause, FedloomError) and not isinstance(cause, ClientFailure):
                raise
            what = (
                f"failed at client {job.id}, round {job.version}, in stage {stage!r}\n"
                f"  payload: {shapes(job.payload)}\n  memory: {shapes(job.memory)}\n"
                f"  data: {self.plan.federation.local(job.id)!r}\n"
                f"{''.join(traceback.format_exception(cause)[-3:])}"
            )
            raise failure(self.plan, job, what) from cause
        if [t._version for t in inputs] != versions:
            raise StateMutated(
                f"{type(self.plan.method).__name__}.{job.program} changed a tensor it was given in place (client "
                f"{job.id}); payloads and memory are shared. Write `new = old + ...` instead of `old += ...`"
            )
        return None if turn.result is None else Message(settled(dict(turn.result)))


def _same(a: Any, b: Any) -> bool:
    x, y = list(leaves(a)), list(leaves(b))
    return len(x) == len(y) and all(
        torch.equal(p, q) or (p.shape == q.shape and bool(torch.isnan(p).any()))
        if isinstance(p, Tensor)
        else p == q or p != p
        for p, q in zip(x, y)
    )
