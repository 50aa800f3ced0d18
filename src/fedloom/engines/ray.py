"""A Ray cluster as the team: actors, the object store and `wait`, nothing else.

An actor takes consecutive chunks of the cohort, runs the local engine inside and returns the sum of a whole subtree of
the fixed tree, so any number of actors gives the same bits and the driver never holds what a sum can carry. Tensors
that several jobs share are put into the object store once. What clients keep is committed by the driver when their
reply counts; an actor holds nothing, so one that dies is replaced and its chunks are sent again, to whoever is there.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import queue
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.util import spec_from_loader
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import ConfigError, MissingExtra
from fedloom.message import leaves
from fedloom.named import sources
from fedloom.training import Trainer

from .base import Answer, Plan
from .fold import Fold, Tree
from .local import Local
from .mail import UNWRITABLE, read, sendable, write
from .team import Chunk, Cluster, Run, Share, WorkerDied, kept_here, with_job, without_job

_DEATHS = 3  # of actors on the same chunks, or at birth, before it is told


class Actors:
    """The team of a Ray cluster.

    Args:
        count: actors.
        trainer: the driver's; told what actors chose.
        answer: how questions in mid-job are answered, here.

    Raises:
        MissingExtra: without the package `ray`.
        ConfigError: no cluster at that address, or the plan holds what cannot be sent.
    """

    def __init__(
        self, count: int, cluster: Cluster, plan: Plan, run: Run, trainer: Trainer, answer: Answer | None
    ) -> None:
        self.ray = need_ray()
        self.run, self.trainer, self.answer = run, trainer, answer
        self.count, self.plan = count, plan
        self._gone = self.ray.exceptions.RayActorError, self.ray.exceptions.ObjectLostError
        self._ours = not self.ray.is_initialized()
        if self._ours:
            _join(self.ray, cluster, count)
        actor = self.ray.remote(_Actor).options(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=0)
        self._plan: Any = self.ray.put(_packed(plan))
        self._new: Callable[[], Any] = lambda: actor.remote(self._plan)
        self._actors: list[Any] = [None] * count
        self._coming: dict[Any, int] = {}
        self._stillborn = 0
        for who in range(count):
            self._hire(who)

    def map(self, fold: Fold | None, shares: Sequence[Share], first: int) -> Iterator[tuple[int, list[Chunk]]]:
        """What came of each share from `first` on, with its place, as they come; they are run in blocks that are
        subtrees, each by whichever actor is free."""
        common = _Common(self.ray, shares[first:])
        blocks = _blocks(first, len(shares), self.count)
        todo = deque(range(len(blocks)))
        idle = [who for who in range(self.count) if who not in self._coming.values()]
        busy: dict[Any, tuple[int, int]] = {}
        came: list[tuple[int, list[Chunk]]] = []
        deaths = [0] * len(blocks)
        errors: list[BaseException] = []
        while busy or came or (todo and not errors):
            while todo and idle and not errors:
                b = todo.popleft()
                block = shares[blocks[b][0] : blocks[b][1]]
                try:
                    ref = self._send(idle[-1], fold, block, common)
                except UNWRITABLE as e:
                    kept_here(self.trainer, block[0], e)
                    found = [self.run(fold, share, self.answer) for share in block]
                    came += enumerate(found, blocks[b][0])
                    continue
                busy[ref] = idle.pop(), b
            yield from came
            came.clear()
            awaited = [*busy, *self._coming] if busy or todo else []
            for ref in self.ray.wait(awaited, num_returns=1)[0] if awaited else ():
                if ref in self._coming:
                    idle += self._arrived(ref)
                    continue
                who, b = busy.pop(ref)
                try:
                    text, arrays = self.ray.get(ref)
                except self._gone:
                    deaths[b] += 1
                    if deaths[b] == _DEATHS:
                        ids = [job.id for share in shares[slice(*blocks[b])] for jobs in share for job in jobs]
                        raise WorkerDied(ids) from None
                    self._hire(who)
                    todo.appendleft(b)
                    continue
                kind, *what = read(text, _Beside(self.plan, arrays, copy=True))
                if kind == "ask":
                    assert self.answer is not None
                    beside = _Beside(self.plan)
                    reply = write(self.answer(*what), beside)
                    busy[self._actors[who].go_on.remote(reply, beside.arrays)] = who, b
                    continue
                idle.append(who)
                if kind == "failed":
                    errors.append(what[0])
                else:
                    found = self._back(shares[slice(*blocks[b])], *what)
                    came += enumerate(found, blocks[b][0])
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the actors; a cluster that was started here, too."""
        for actor in self._actors:
            with contextlib.suppress(self.ray.exceptions.RayError):  # the cluster itself may be gone
                self.ray.kill(actor)
        self._actors = []
        if self._ours:
            self.ray.shutdown()

    def _hire(self, who: int) -> None:
        """Ask for an actor. It gets work when it is there: a cluster that has lost a node may have no room for it."""
        self._actors[who] = self._new()
        self._coming[self._actors[who].ready.remote()] = who

    def _arrived(self, ref: Any) -> list[int]:
        """The actor that has answered; none where it did not live to do so, and another is asked for."""
        who = self._coming.pop(ref)
        try:
            self.ray.get(ref)
        except self._gone:
            self._stillborn += 1
            if self._stillborn == _DEATHS:
                raise
            self._hire(who)
            return []
        self._stillborn = 0
        return [who]

    def _send(self, who: int, fold: Fold | None, block: Sequence[Share], common: _Common) -> Any:
        beside = _Beside(self.plan, known=common.known)
        jobs = [[list(chunk) for chunk in share] for share in block]
        text = write((fold, jobs, self.trainer.choices()), beside)
        return self._actors[who].run.remote(text, beside.arrays, common.ref)

    def _back(
        self, block: Sequence[Share], found: list[list[Chunk]], choices: Mapping[str, str], said: Sequence[Warning]
    ) -> list[list[Chunk]]:
        for share, chunks in zip(block, found, strict=True):
            with_job(chunks, share)
        self.trainer.adopt(choices)
        for warning in said:
            warnings.warn(warning, stacklevel=2)
        return found


class _Actor:
    """A local engine somewhere else. One thread does the work; a question in it becomes a reply of `run`."""

    def __init__(self, plan: bytes) -> None:
        files, packed = pickle.loads(plan)
        sys.meta_path.append(_Sent(files))  # the last that is asked: what can be imported there is
        self.plan: Plan = importlib.import_module("ray.cloudpickle").loads(packed)
        self.trainer = Trainer("auto")
        self.engine = Local(self.plan, self.trainer)
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.outbox: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def ready(self) -> None:
        """It is there."""

    def run(self, text: bytes, arrays: list[Any], common: list[Any]) -> tuple[bytes, list[Any]]:
        """A block to its end, or to its first question."""
        self.inbox.put((text, _Beside(self.plan, arrays, common)))
        return self.outbox.get()

    def go_on(self, text: bytes, arrays: list[Any]) -> tuple[bytes, list[Any]]:
        """The answer; gives what `run` gives."""
        self.inbox.put((text, _Beside(self.plan, arrays)))
        return self.outbox.get()

    def _work(self) -> None:
        torch.set_num_threads(1)
        while True:
            text, beside = self.inbox.get()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    fold, block, choices = read(text, beside)
                    self.trainer.adopt(choices)
                    found = [self.engine.run_share(fold, share, self._ask) for share in block]
                    for chunks in found:
                        without_job(chunks)
                    warned = [sendable(w.message) for w in said]
                    self._tell("done", _summed(found), self.trainer.choices(), warned)
                except BaseException as e:
                    self._tell("failed", sendable(e))

    def _ask(self, question: Any, id: int) -> Any:
        self._tell("ask", question, id)
        text, beside = self.inbox.get()
        return read(text, beside)

    def _tell(self, *what: Any) -> None:
        beside = _Beside(self.plan)
        self.outbox.put((write(what, beside), beside.arrays))


def _blocks(first: int, end: int, workers: int) -> list[tuple[int, int]]:
    """Runs of shares that are whole subtrees: powers of two in number, aligned; at least two for each worker."""
    size = 1
    while 4 * size * workers <= end - first:
        size *= 2
    out: list[tuple[int, int]] = []
    while first < end:
        take = size
        while first % take or first + take > end:
            take //= 2
        out.append((first, first + take))
        first += take
    return out


def _summed(block: list[list[Chunk]]) -> list[list[Chunk]]:
    """The sums of a block in its first chunk's place, as the tree would add them; the others add nothing."""
    if any(len(share) != 1 for share in block):
        return block
    if len(block) < 2:
        return block
    sums = Tree(len(block))
    for k, share in enumerate(block):
        sums.add(k, share[0][1])
    return [[(outcomes, [] if k else sums.root)] for k, share in enumerate(block) for outcomes, _ in share]


class _Sent(MetaPathFinder, InspectLoader):
    """Modules made of their text."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        return spec_from_loader(fullname, self) if fullname in self.sources else None

    def get_source(self, fullname: str) -> str:
        return self.sources[fullname]

    def is_package(self, fullname: str) -> bool:
        return False


class _Beside:
    """Tensors beside a letter, as arrays of bytes that Ray keeps in its store without pickling them."""

    def __init__(
        self,
        plan: Plan,
        arrays: list[Any] | None = None,
        common: Sequence[Any] = (),
        known: Mapping[int, int] | None = None,
        copy: bool = False,
    ) -> None:
        self.plan, self.arrays, self.common, self.copy = plan, arrays if arrays is not None else [], common, copy
        self._known = known or {}
        self._put: dict[int, tuple[int, Tensor]] = {}
        self._read: dict[tuple[bool, int], Tensor] = {}

    def place(self, obj: Tensor, tensor: Tensor) -> tuple[bool, int, torch.dtype, tuple[int, ...]]:
        """Whether among those in common, which one, and how to read it."""
        common = id(obj) in self._known
        if not common and id(obj) not in self._put:
            self._put[id(obj)] = len(self.arrays), obj
            self.arrays.append(_bytes(tensor))
        number = self._known[id(obj)] if common else self._put[id(obj)][0]
        return common, number, tensor.dtype, tuple(tensor.shape)

    def claim(self, place: tuple[bool, int, torch.dtype, tuple[int, ...]]) -> Tensor:
        """The same tensor for every mention. Read in place, for nobody writes into what was sent; or a copy."""
        common, number, dtype, shape = place
        key = common, number
        if key not in self._read:
            array = (self.common if common else self.arrays)[number]
            with warnings.catch_warnings():  # of memory that may not be written to
                warnings.simplefilter("ignore", UserWarning)
                raw = torch.as_tensor(np.array(array) if self.copy else array)
            self._read[key] = raw.view(dtype).view(shape) if raw.numel() else torch.empty(shape, dtype=dtype)
        return self._read[key]


class _Common:
    """Tensors that several jobs of a round were sent: one object in the store."""

    def __init__(self, ray: Any, shares: Sequence[Share]) -> None:
        seen: dict[int, Tensor] = {}
        twice: dict[int, Tensor] = {}
        for job in (job for share in shares for jobs in share for job in jobs):
            for leaf in leaves(job.payload):
                if isinstance(leaf, Tensor) and leaf.device.type == "cpu":
                    (twice if id(leaf) in seen else seen)[id(leaf)] = leaf
        self._kept = list(twice.values())
        self.known = {id(tensor): k for k, tensor in enumerate(self._kept)}
        self.ref: Any = ray.put([_bytes(tensor) for tensor in self._kept])


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def need_ray() -> Any:
    """The package.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise MissingExtra("ray", "ray", "engine='ray'") from None


def _join(ray: Any, cluster: Cluster, count: int) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    try:
        if cluster.address is None:
            path = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # a user's own modules are found there, too
            ours = max(1, round(count * cluster.cpus))  # "local": whatever else runs on this machine is not ours
            ray.init(address="local", num_cpus=ours, runtime_env=path, **quiet)
        else:
            ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as e:
        raise ConfigError(
            f"no Ray cluster at {cluster.address!r}: {e}. Start one with `ray start --head`, or leave the address out "
            f"to start one on this machine"
        ) from None


def _packed(plan: Plan) -> bytes:
    """The plan, after the modules of which one machine may have the file alone."""
    try:
        return pickle.dumps((sources(), importlib.import_module("ray.cloudpickle").dumps(plan)))
    except UNWRITABLE as e:
        raise ConfigError(
            f"this experiment cannot be sent to other machines: {e}. Its network, method, data and behaviours must be "
            f"picklable (functions and lambdas are; open files, locks and generators are not)"
        ) from e
