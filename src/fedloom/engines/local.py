"""The local engine: a cohort in chunks, each chunk's like requests trained as one computation where that is faster."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
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
from .fold import Fold, Total, Tree, fold_chunk
from .team import Chunk, Run, Share, Team
from .threads import intra_op
from .turn import Turn

_PARTS, _MANY = 4, 32  # chunks of a cohort of at least so many clients whose steps are all dispatch


class Local:
    """Runs jobs in this process.

    Args:
        plan: what does not change.
        trainer: how like requests are trained ("plain", "stacked", or measured).
        workers: those of the team, 1 without.
        answer: how questions in mid-job are answered.
        team: makes the team that shares are spread over, when there is something to do for two of them; it is given
            `run_share`.
        name: of the engine, where it is not the trainer's.
    """

    def __init__(
        self,
        plan: Plan,
        trainer: Trainer,
        workers: int = 1,
        answer: Answer | None = None,
        team: Callable[[Run], Team] | None = None,
        name: str | None = None,
    ) -> None:
        keep_freed_memory()
        self.plan, self.trainer, self.answer = plan, trainer, answer
        self.name = name or trainer.name
        self.workers = workers
        self._call = team
        self._team: Team | None = None
        self._counts: dict[object, int] = {}

    # ------------------------------------------------------------ the one verb
    def run(self, jobs: Sequence[Job], fold: Fold | None = None) -> tuple[list[Outcome], Total | None]:
        """All jobs to their end. Chunks hold clients of like size and are added in a fixed tree."""
        if not jobs:
            return [], Total() if fold else None
        order = in_order(jobs)
        with intra_op(1):
            fresh = self._kind(jobs, fold) not in self._counts
            shares = shares_of(order, self._count(order, fold), 1 if fresh else self.workers)
            # What is new is measured and chosen here, where nobody else is at work.
            here = len(shares) if self.workers == 1 else int(fresh)
            places = _places(shares)
            sums, outcomes = Tree(places[-1]), dict[int, Outcome]()
            for k, chunks in self._done(fold, shares, here):
                for place, (part, totals) in enumerate(chunks, places[k]):
                    outcomes.update((o.job.number, o) for o in part)
                    sums.add(place, totals)
        if fold is None:
            return [outcomes[j.number] for j in jobs], None
        total, left_out = sums.whole()
        for number, reason in left_out.items():
            outcomes[number].excluded = reason
        for outcome in outcomes.values():
            outcome.message = None
        return [outcomes[j.number] for j in jobs], total

    def compute(self, requests: Sequence[Training]) -> list[Trained]:
        """Requests of jobs the clock drives; like ones together, in this process."""
        if self.workers > 1:
            self.trainer.stays_here("training on the clock, or of the server", "like requests together", aloud=False)
        with intra_op(1):
            results: dict[int, Trained] = {}
            for group in _groups(requests):
                k = self.trainer.together(requests[group[0]], len(group))
                for c in range(0, len(group), k):
                    part = group[c : c + k]
                    for i, t in zip(part, self.trainer.train([requests[i] for i in part])):
                        results[i] = Trained(settled(t.vector), t.steps, t.lr, settled(t.carry), t.loss)
            return [results[i] for i in range(len(requests))]

    def choices(self) -> dict[str, str]:
        return self.trainer.choices()

    def close(self) -> None:
        if self._team is not None:
            self._team.close()
            self._team = None

    def _done(self, fold: Fold | None, shares: Sequence[Share], here: int) -> Iterator[tuple[int, list[Chunk]]]:
        """What came of each share, with its place: of the first so many here, of the others over the team, which is
        called for when there is something to do for two."""
        alone = len(shares) - here < 2 or self._call is None
        for k, share in enumerate(shares if alone else shares[:here]):
            yield k, self.run_share(fold, share, self.answer)
        if alone or self._call is None:
            return
        if self._team is None:
            self._team = self._call(self.run_share)
        yield from self._team.map(fold, shares, here)

    # ------------------------------------------------------------ one share
    def run_share(self, fold: Fold | None, share: Share, answer: Answer | None) -> list[Chunk]:
        """The jobs of a share to their end, and the sums of its chunks."""
        chunks = [[Turn(self.plan, job) for job in jobs] for jobs in share]
        turns = [turn for chunk in chunks for turn in chunk]
        try:
            for turn in turns:
                turn.advance()
            waiting = [t for t in turns if t.request is not None]
            while waiting:
                self._serve(waiting, answer)
                waiting = [t for t in waiting if t.request is not None]
            return [self._gather(chunk, fold) for chunk in chunks]
        finally:
            for turn in turns:
                turn.coroutine.close()  # where one raised, the others will not go on

    def _serve(self, turns: Sequence[Turn], ask: Answer | None) -> None:
        """Answer what each turn waits for: training together, the rest on the spot."""
        training = [(t, t.request) for t in turns if isinstance(t.request, Training)]
        for turn in turns:
            _at_once(turn, ask)
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
        sums = self._fold(turns, fold) if fold else []
        if fold is None or not all(map(_finite, sums)):  # in a sum somebody's reply is not finite: it is found
            for turn in turns:
                _look_at(turn)
            sums = self._fold(turns, fold) if fold else []
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

    @staticmethod
    def _kind(jobs: Sequence[Job], fold: Fold | None) -> object:
        return jobs[0].program, jobs[0].judge, len(jobs), fold and fold.fan_in

    def _count(self, jobs: Sequence[Job], fold: Fold | None) -> int:
        """The number of chunks, see `_measured`, unless the sum says how many it adds up at one place."""
        key = self._kind(jobs, fold)
        if key not in self._counts:
            leaves = fold.leaves(len(jobs)) if fold else None
            self._counts[key] = self._measured(jobs) if leaves is None else leaves
        return self._counts[key]

    def _measured(self, jobs: Sequence[Job]) -> int:
        """The number of chunks is known from the first training of the first job, which is then run anew."""
        if len(jobs) == 1:
            return 1
        turn = Turn(self.plan, jobs[0])
        turn.advance()
        while _at_once(turn, self.answer):
            pass
        request = turn.request
        turn.coroutine.close()
        return self.trainer.chunks(request, len(jobs)) if isinstance(request, Training) else 1


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """As they are cut into chunks: clients of like size together."""
    return sorted(jobs, key=lambda job: (-job.samples, job.number))


def shares_of(order: Sequence[Job], count: int, workers: int) -> list[Share]:
    """The cohort in chunks, which are added up, and these in shares, each of which one worker computes at once.

    A chunk is a share, and holds clients of like size; where a step is all dispatch (`count` 1), a worker computes
    all chunks it is given as one, so each has clients of every size.
    """
    n = len(order)
    if count > 1:
        return [[order[a:b]] for a, b in _cuts(n, count)]
    chunks = [order[i::_PARTS] for i in range(_PARTS)] if n >= _MANY else [order]
    return [chunks[a:b] for a, b in _cuts(len(chunks), min(workers, len(chunks)))]


def _places(shares: Sequence[Share]) -> list[int]:
    """The place of each share's first chunk among all, and how many there are."""
    return [0, *accumulate(map(len, shares))]


def _at_once(turn: Turn, ask: Answer | None) -> bool:
    """Answer a turn that waits for something other than training; whether it did."""
    if isinstance(turn.request, Query):
        turn.answer(turn.request)
    elif isinstance(turn.request, Ask):
        if ask is None:
            raise MessageError("this engine cannot answer questions in mid-job")
        turn.hear(turn.request, ask(turn.request, turn.job.id))
    else:
        return False
    return True


def _cuts(n: int, parts: int) -> list[tuple[int, int]]:
    """The ends of that many parts of n, as equal as can be."""
    return [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


def _groups(requests: Sequence[Training]) -> list[list[int]]:
    """Positions of like requests, in order of first appearance."""
    groups: dict[object, list[int]] = {}
    last, members = None, list[int]()
    for i, r in enumerate(requests):
        kind = r.alike()
        if kind != last:  # comparing with the one before is quicker than a look into the dict
            last, members = kind, groups.setdefault(kind, [])
        members.append(i)
    return list(groups.values())


def _look_at(turn: Turn) -> None:
    """A reply as a message by itself, excluded unless it is finite."""
    if turn.result is None:
        return
    message = Message(settled(dict(turn.result)))
    try:
        check_finite(message, f"reply of client {turn.job.id}")
    except MessageError as e:
        turn.outcome.excluded, turn.outcome.message, turn.result = str(e), None, None
    else:
        turn.outcome.message = message


def _finite(total: Total) -> bool:
    try:
        check_finite(Message({k: _summed(v) for k, v in total.values.items()}), "sum")
    except MessageError:
        return False
    return True


def _summed(value: Any) -> Any:
    """NaN and infinity survive a sum, and one number is quicker to look at than a million."""
    return value.sum() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
