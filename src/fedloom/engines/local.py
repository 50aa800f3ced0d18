"""The local engine: a cohort in chunks, each chunk's like requests trained as one computation where that is faster."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from fedloom.client import Ask, Query, settled
from fedloom.errors import FedloomWarning, MessageError
from fedloom.message import Message, check_finite
from fedloom.training import Trainer
from fedloom.training.request import Trained, Training
from fedloom.training.trainer import describe

from .allocator import keep_freed_memory
from .base import Answer, Job, Outcome, Plan
from .fold import Fold, Total, fold_chunk, tree
from .turn import Turn


class Local:
    """Runs jobs in this process.

    Args:
        plan: what does not change.
        trainer: how like requests are trained ("plain", "stacked", or measured).
        workers: threads over chunks, one intra-op thread each.
        answer: how questions in mid-job are answered.
    """

    def __init__(self, plan: Plan, trainer: Trainer, workers: int = 1, answer: Answer | None = None) -> None:
        keep_freed_memory()
        self.plan, self.trainer, self.answer = plan, trainer, answer
        self.name = "pool" if workers > 1 else trainer.name
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, "fedloom", _one_thread) if workers > 1 else None
        self._chunks: dict[object, int] = {}

    # ------------------------------------------------------------ the one verb
    def run(self, jobs: Sequence[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        """All jobs to their end. Chunks hold clients of like size and are added in a fixed tree."""
        if not jobs:
            return [], Total() if fold else None
        order = sorted(range(len(jobs)), key=lambda k: (-jobs[k].samples, k))
        with _intra_op(1):
            k = self._chunk_size([jobs[i] for i in order])
            chunks = [[jobs[i] for i in order[c : c + k]] for c in range(0, len(order), k)]
            run: Any = self._pool.map if self._pool and len(chunks) > 1 else map
            done: list[tuple[list[Outcome], list[Total]]] = list(run(partial(self._run_chunk, fold), chunks))
        outcomes = {o.job.number: o for part, _ in done for o in part}
        if fold is None:
            return [outcomes[j.number] for j in jobs], None
        total, left_out = tree([sums for _, sums in done])
        for number, reason in left_out.items():
            outcomes[number].excluded = reason
        for outcome in outcomes.values():
            outcome.message = None
        return [outcomes[j.number] for j in jobs], total

    def compute(self, requests: Sequence[Training]) -> list[Trained]:
        """Requests of jobs the clock drives; like ones together."""
        with _intra_op(1):
            results: dict[int, Trained] = {}
            for group in _groups(requests):
                k = self.trainer.chunk(requests[group[0]], len(group))
                for c in range(0, len(group), k):
                    part = group[c : c + k]
                    for i, t in zip(part, self.trainer.train([requests[i] for i in part])):
                        results[i] = Trained(settled(t.vector), t.steps, t.lr, settled(t.carry), t.loss)
            return [results[i] for i in range(len(requests))]

    def choices(self) -> dict[str, str]:
        return self.trainer.choices()

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()

    # ------------------------------------------------------------ one chunk
    def _run_chunk(self, fold: Fold | None, jobs: Sequence[Job]) -> tuple[list[Outcome], list[Total]]:
        turns = [Turn(self.plan, job) for job in jobs]
        try:
            for turn in turns:
                turn.advance()
            waiting = [t for t in turns if t.request is not None]
            while waiting:
                self._serve(waiting)
                waiting = [t for t in waiting if t.request is not None]
            return self._gather(turns, fold)
        finally:
            for turn in turns:
                turn.coroutine.close()  # where one raised, the others will not go on

    def _serve(self, turns: Sequence[Turn]) -> None:
        """Answer what each turn waits for: training together, the rest on the spot."""
        training = [(t, t.request) for t in turns if isinstance(t.request, Training)]
        for turn in turns:
            if isinstance(turn.request, Query):
                turn.answer(turn.request)
            elif isinstance(turn.request, Ask):
                if self.answer is None:
                    raise MessageError("this engine cannot answer questions in mid-job")
                turn.hear(turn.request, self.answer(turn.request, turn.job.id))
        for group in _groups([request for _, request in training]):
            self._train([training[i] for i in group])

    def _train(self, members: Sequence[tuple[Turn, Training]]) -> None:
        """Like requests together. Where that fails each is tried alone: its own program hears of what went wrong."""
        try:
            results = self.trainer.train([request for _, request in members])
        except Warning:
            raise
        except Exception as e:
            if len(members) == 1:
                members[0][0].fail(e)
                return
            for member in members:
                self._train([member])
            if all(turn.outcome.excluded is None for turn, _ in members):
                what = f"{describe(members[0][1])} failed as one computation, and went well one client at a time: {e}"
                warnings.warn(what, FedloomWarning, stacklevel=2)
            return
        for (turn, _), result in zip(members, results):
            turn.advance(result)

    def _gather(self, turns: Sequence[Turn], fold: Fold | None) -> tuple[list[Outcome], list[Total]]:
        if fold is None:
            for turn in turns:
                if turn.result is not None:
                    turn.outcome.message = Message(settled(dict(turn.result)))
                    _exclude_unless_finite(turn)
            return [t.outcome for t in turns], []
        sums = self._fold(turns, fold)
        if not all(map(_finite, sums)):  # somebody's reply is not: look at each, and add again without it
            for turn in turns:
                if turn.result is not None:
                    turn.outcome.message = Message(settled(dict(turn.result)))
                    _exclude_unless_finite(turn)
            sums = self._fold(turns, fold)
        return [t.outcome for t in turns], sums

    def _fold(self, turns: Sequence[Turn], fold: Fold) -> list[Total]:
        entries: list[tuple[int, Message, float]] = []
        for turn in turns:
            if turn.result is None or turn.outcome.excluded:
                continue
            try:
                weight = fold.of(turn.result, turn.job.samples)
            except MessageError as e:
                turn.outcome.excluded = str(e)
                continue
            entries.append((turn.job.number, turn.result, weight))
        return fold_chunk(entries)

    def _chunk_size(self, jobs: Sequence[Job]) -> int:
        """How many clients are computed together: known from the first job's first request."""
        first = jobs[0]
        key = (first.program, first.judge, len(jobs))
        if key not in self._chunks:
            turn = Turn(self.plan, first)
            turn.advance()
            while isinstance(turn.request, Query):
                turn.answer(turn.request)
            k = self.trainer.chunk(turn.request, len(jobs)) if isinstance(turn.request, Training) else len(jobs)
            turn.coroutine.close()
            self._chunks[key] = max(1, k)
        return self._chunks[key]


def _groups(requests: Sequence[Training]) -> list[list[int]]:
    """Positions of like requests, in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for i, r in enumerate(requests):
        groups.setdefault(r.alike(), []).append(i)
    return list(groups.values())


def _exclude_unless_finite(turn: Turn) -> None:
    assert turn.outcome.message is not None
    try:
        check_finite(turn.outcome.message, f"reply of client {turn.job.id}")
    except MessageError as e:
        turn.outcome.excluded, turn.outcome.message, turn.result = str(e), None, None


def _finite(total: Total) -> bool:
    try:
        check_finite(Message({k: _summed(v) for k, v in total.values.items()}), "sum")
    except MessageError:
        return False
    return True


def _summed(value: Any) -> Any:
    """NaN and infinity survive a sum, and one number is quicker to look at than a million."""
    return value.sum() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class _intra_op:
    """One thread inside operators while clients are the unit of parallel work."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.n)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def _one_thread() -> None:
    torch.set_num_threads(1)
    threading.current_thread().name += "-1op"
