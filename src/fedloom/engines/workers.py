"""Long-lived worker processes over shares of a cohort: forked once, so that plan and data are theirs without a copy.

A share (some chunks) goes out as addresses of tensors in shared memory (`heap.py`) and comes back as such; a client's
memory is never copied on its way from one job to the next. A worker that dies is replaced and its share sent again:
nothing of it had been committed.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import torch

from .base import Answer, Plan
from .fold import Fold
from .heap import Heap, ParentSide, WorkerSide
from .mail import UNWRITABLE, read, sendable, write
from .team import Chunk, Run, Share, WorkerDied, kept_here, with_job, without_job
from .threads import core, cores, stay_on

if TYPE_CHECKING:
    from fedloom.training import Trainer


_GARBAGE = 5000
"""Objects made and kept, from which on a worker looks for garbage: jobs leave none, and a look takes 0.3 ms."""


class Workers:
    """Processes that run shares.

    Args:
        count: how many.
        run: what runs a share, here or, after the fork, there.
        trainer: told there what was chosen here, and the other way round.
        answer: how questions in mid-job are answered, here.

    Raises:
        OSError, AssertionError: this system, or this (daemonic) process, cannot have them.
    """

    def __init__(self, count: int, plan: Plan, run: Run, trainer: Trainer, answer: Answer | None) -> None:
        self.run, self.trainer, self.answer = run, trainer, answer
        self._count, self._plan = count, plan
        self._tensors = ParentSide(Heap(), plan)
        self._team: list[_Worker] = []
        self._gather()

    def _gather(self) -> None:
        """A fresh team. Heaps of an earlier one stay readable as long as somebody looks at what is in them."""
        self.close()
        heaps = [Heap() for _ in range(self._count)]
        self._tensors.watch(heaps)
        self._team = [_Worker(heap, home, self._serve) for heap, home in zip(heaps, _homes(self._count))]

    def map(self, fold: Fold | None, shares: Sequence[Share], first: int = 0) -> Iterator[tuple[int, list[Chunk]]]:
        """What came of each share from `first` on, with its place, as they come; each is run by whoever is free.

        Raises:
            WorkerDied: twice on the same share; else the first error of a share, once the others under way have ended.
        """
        lost = yield from self._tried(fold, shares, range(first, len(shares)))
        if lost:
            self._gather()
            if again := (yield from self._tried(fold, shares, lost)):
                raise WorkerDied([job.id for chunk in shares[again[0]] for job in chunk])

    def _tried(
        self, fold: Fold | None, shares: Sequence[Share], wanted: Sequence[int]
    ) -> Generator[tuple[int, list[Chunk]], None, list[int]]:
        """Run these shares; returns those that are missing because a worker died. What came is given on once its
        worker has something new to do."""
        missing, came = set(wanted), list[tuple[int, list[Chunk]]]()
        most_work = sorted(wanted, key=lambda k: -sum(job.samples for chunk in shares[k] for job in chunk))
        todo, idle = deque(most_work), list(self._team)
        busy: dict[Connection, tuple[_Worker, int]] = {}
        errors: list[BaseException] = []
        try:
            while busy or came or (todo and idle and not errors):
                while todo and idle and not errors:
                    k = todo.popleft()
                    worker = _elsewhere(idle)
                    if self._send(worker, fold, shares[k]):
                        idle.remove(worker)
                        busy[worker.pipe] = worker, k
                    else:
                        came.append((k, self.run(fold, shares[k], self.answer)))
                missing.difference_update(k for k, _ in came)
                yield from came
                came.clear()
                for pipe in wait(list(busy)) if busy else ():
                    assert isinstance(pipe, Connection)
                    worker, k = busy[pipe]
                    try:
                        letter = pipe.recv_bytes()
                    except (EOFError, OSError):  # it has died, maybe in the middle of a letter
                        del busy[pipe]
                        continue
                    kind, *what = read(letter, self._tensors)
                    if kind == "ask":
                        assert self.answer is not None
                        _post(pipe, write(self.answer(*what), self._tensors))
                        continue
                    del busy[pipe]
                    idle.append(worker)
                    if kind == "failed":
                        errors.append(what[0])
                    else:
                        came.append((k, self._back(shares[k], *what)))
        finally:
            self._tensors.clear()
        if errors:
            raise errors[0]
        return sorted(missing)

    def close(self) -> None:
        """End all processes."""
        for worker in self._team:
            worker.end()
        self._team = []

    # ------------------------------------------------------------ here
    def _send(self, worker: _Worker, fold: Fold | None, share: Share) -> bool:
        jobs = [list(chunk) for chunk in share]
        try:
            letter = write((fold, jobs, self.trainer.choices(), self._tensors.freed(worker.heap)), self._tensors)
        except UNWRITABLE as e:
            kept_here(self.trainer, share, e)
            return False
        _post(worker.pipe, letter)
        return True

    def _back(
        self,
        share: Share,
        chunks: list[Chunk],
        choices: Mapping[str, str],
        said: Sequence[Warning],
    ) -> list[Chunk]:
        with_job(chunks, share)
        self.trainer.adopt(choices)
        for warning in said:
            warnings.warn(warning, stacklevel=2)
        return chunks

    # ------------------------------------------------------------ there
    def _serve(self, heap: Heap, pipe: Connection, home: Sequence[int]) -> None:
        """A worker's life: a share in, its outcomes out. It waits at home, and is free to be moved while it works."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        torch.set_num_threads(1)
        gc.freeze()  # what was there at the fork is no garbage
        gc.set_threshold(_GARBAGE, 10, 10)
        tensors = WorkerSide(heap, self._plan)
        everywhere = cores()

        def ask(question: Any, id: int) -> Any:
            pipe.send_bytes(write(("ask", question, id), tensors))
            return read(pipe.recv_bytes(), tensors)

        while True:
            stay_on(home)
            try:
                letter = pipe.recv_bytes()
            except (EOFError, OSError):
                return
            stay_on(everywhere)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    tensors.begin()
                    fold, share, choices, freed = read(letter, tensors)
                    for place in freed:
                        heap.give(place.address, place.nbytes)
                    self.trainer.adopt(choices)
                    chunks = self.run(fold, share, ask)
                    without_job(chunks)
                    warned = [sendable(w.message) for w in said]
                    answer = write(("done", chunks, self.trainer.choices(), warned), tensors)
                except BaseException as e:
                    answer = write(("failed", sendable(e)), tensors)
            pipe.send_bytes(answer)
            tensors.hand_over()


class _Worker:
    """One process, its pipe and its heap."""

    def __init__(
        self, heap: Heap, home: Sequence[int], serve: Callable[[Heap, Connection, Sequence[int]], None]
    ) -> None:
        self.heap, self.home = heap, home
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()

        def life() -> None:
            ours.close()
            serve(heap, theirs, home)

        self.pipe, self.process = ours, context.Process(target=life, name="fedloom-worker", daemon=True)
        with warnings.catch_warnings():  # of threads at a fork: a worker uses nothing that one of them could hold
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _post(pipe: Connection, letter: bytes) -> None:
    """Send a letter to a worker; one that has died is noticed when it is waited for."""
    with contextlib.suppress(ConnectionError):
        pipe.send_bytes(letter)


def _homes(count: int) -> list[list[int]]:
    """The cores each worker waits on: where there are as many workers as cores, one of its own. Two that were woken on
    the same core, as happens when no other is idle, would share it until the system looks again, after some 4 ms."""
    all = cores()
    return [[one] for one in all] if count == len(all) else [all] * count


def _elsewhere(idle: Sequence[_Worker]) -> _Worker:
    """One that does not wait on this core, if there is one: woken here, it would hold up what is sent to the others."""
    here = [core()]
    return next((worker for worker in idle if worker.home != here), idle[0])


def can_fork() -> bool:
    """Whether this process can have worker processes: on Linux, unless it is a (daemonic) worker itself."""
    return sys.platform.startswith("linux") and not multiprocessing.current_process().daemon
