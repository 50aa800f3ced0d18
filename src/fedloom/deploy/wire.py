"""Jobs and replies as they cross the wire: JSON that says what, safetensors that hold it; an id hashes the content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedloom.channel.ledger import Ledger
from fedloom.engines.base import Job, Outcome, Plan
from fedloom.errors import MessageError, NotSupported
from fedloom.message import At, Message, check_finite, leaves, nbytes, opened
from fedloom.task import Metric
from fedloom.training.work import Work
from fedloom.trees import is_mapping, is_row
from fedloom.written import load, loads, pieces

VERSION = "version"
"""What the server knows of a client's memory: under this name, the id of the last job of it that counted."""

_UNFOLDS = 48
"""Bytes of memory that one byte of JSON comes to at most: lists in lists."""
_ALWAYS = 1 << 25  # bytes: what names and shapes of a small message come to
_REASON = 4000  # characters: it is kept, with every round
_ENTRIES = 100  # of a book in one reply, for the same reason
_MOST = 1e100  # more than is ever counted; sums and squares of such numbers are still finite

_WHAT = ("number", "client", "program", "payload", "key", "memory", "version", "began", "judge", "samples")


def digest(content: Mapping[str, Any]) -> str:
    """The hash of JSON content, 32 hexadecimal digits: the id of a job, the name of an exchange."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def header(job: Job, payload: str) -> dict[str, Any]:
    """A job as its site is handed it: everything but the payload, which is named. Its id hashes all of it."""
    content: dict[str, Any] = {
        "number": job.number,
        "client": job.id,
        "program": job.program,
        "payload": payload,
        "key": list(job.key),
        "memory": job.memory.get(VERSION, ""),
        "version": job.version,
        "began": job.began,
        "judge": job.judge,
        "samples": job.samples,
    }
    return {**content, "id": digest(content)}


def round_of(header: Mapping[str, Any]) -> int:
    """The round a job is of, from 1; what is judged between rounds is of the one before."""
    return int(header["version"]) + (not header["judge"])


def job_of(given: Mapping[str, Any], payload: Message, memory: Mapping[str, Any]) -> Job:
    """The job again, at its site.

    Raises:
        MessageError: its id is not the hash of its content.
    """
    with reading("job"):
        content = {k: given.get(k) for k in _WHAT}
        if given.get("id") != digest(content):
            raise MessageError(
                f"job {given.get('id')!r} does not have the id of its content; it was changed on the way"
            )
        return Job(
            number=int(given["number"]),
            id=int(given["client"]),
            program=str(given["program"]),
            payload=payload,
            key=tuple(given["key"]),
            memory=memory,
            version=int(given["version"]),
            began=float(given["began"]),
            judge=str(given["judge"]),
            samples=int(given["samples"]),
        )


class TooLarge(MessageError):
    """A message larger than the plan allows."""


class NotFinite(MessageError):
    """A message with NaN or infinity in it."""


@dataclass(frozen=True)
class Reply:
    """What a job came to, as it leaves its site.

    Attributes:
        message: as the channel encoded it, None where there is none.
        work: steps, FLOPs and memory of each training, for the clock.
        changed: whether the client's memory has a new version.
        excluded: why it does not count, None where it does.
        asked: bytes of questions in mid-job, up and down.
    """

    message: Message | None = None
    work: list[list[float]] = field(default_factory=list[list[float]])
    booked: dict[str, float] = field(default_factory=dict[str, float])
    changed: bool = False
    excluded: str | None = None
    asked: list[int] = field(default_factory=lambda: [0, 0])

    @staticmethod
    def of(outcome: Outcome, encoded: Message | None) -> Reply:
        """Of an outcome, with the message as it is to be sent.

        Raises:
            NotSupported: it starts jobs at other clients.
        """
        if outcome.outbox:
            raise NotSupported("a client sends its peers a job, and sites connect to the coordinator alone")
        return Reply(
            message=encoded if outcome.excluded is None else None,
            work=[[float(part) for part in work] for work in outcome.work],
            booked=outcome.booked,
            asked=[outcome.asked.up, outcome.asked.down],
            changed=outcome.memory is not None and outcome.excluded is None,
            excluded=None if outcome.excluded is None else outcome.excluded[:_REASON],
        )

    @staticmethod
    def without(why: object) -> Reply:
        """A reply that does not count, and why."""
        return Reply(excluded=str(why)[:_REASON])

    def pieces(self) -> list[bytes | memoryview]:
        return pieces({name: getattr(self, name) for name in self.__dataclass_fields__})

    def dumps(self) -> bytes:
        return b"".join(self.pieces())

    @staticmethod
    def loads(body: bytes, largest: int) -> Reply:
        """A reply from bytes of whatever origin, checked.

        Raises:
            MessageError: malformed, or as `check`.
        """
        with reading("reply"):
            reply = Reply._of(loads(body))
            reply.check(largest)
        return reply

    @staticmethod
    def load(path: Path) -> Reply:
        """A reply from a file; its tensors are mapped, not read, and nothing is checked.

        Raises:
            MessageError: malformed.
        """
        with reading("reply"):
            return Reply._of(load(path))

    @staticmethod
    def _of(given: Any) -> Reply:
        if not is_mapping(given) or set(given) != set(Reply.__dataclass_fields__):
            raise MessageError("not a reply: its fields are others")
        return Reply(**given)

    def check(self, largest: int) -> None:
        """Refuse what cannot be a reply.

        Args:
            largest: bytes it may take once it is read: compressed and sparse tensors are small on the wire.

        Raises:
            MessageError: of a wrong type, too large, or not finite.
        """
        fine = (
            (self.message is None or isinstance(self.message, Message))
            and is_row(self.work)
            and all(is_row(part) and len(part) == 3 and _all(part, float) for part in self.work)
            and is_mapping(self.booked)
            and len(self.booked) <= _ENTRIES
            and all(isinstance(name, str) and len(name) <= _REASON for name in self.booked)
            and _all(self.booked.values(), float, int)
            and isinstance(self.changed, bool)
            and is_row(self.asked)
            and len(self.asked) == 2
            and _all(self.asked, int)
            and (self.excluded is None or (isinstance(self.excluded, str) and len(self.excluded) <= _REASON))
        )
        if not fine:
            raise MessageError(
                "not a reply: a field has the wrong type, a negative or an infinite number, or too much in it"
            )
        if self.message is not None:
            check_size(self.message, largest)
            message = opened(self.message)
            try:
                check_finite(message, "reply")
            except MessageError as e:
                raise NotFinite(str(e)) from None

    def opened(self, plan: Plan, judge: str) -> Message | None:
        """The message as the server program reads it; where it judges, sums of which every metric makes its figures.

        Raises:
            MessageError: by this plan it cannot be read.
        """
        with reading("reply"):
            if self.message is None:
                return None
            if not judge:
                return opened(plan.channel.decode(self.message))
            check_counts(self.message, plan.task.metrics)
            return self.message

    def outcome(self, job: Job, plan: Plan, id: str) -> Outcome:
        """What the engine hands on: the message as the server program reads it, and the name of the new memory."""
        outcome = self.head(job, id)
        outcome.message = self.opened(plan, job.judge)
        return outcome

    def head(self, job: Job, id: str) -> Outcome:
        """All of the outcome but its message."""
        outcome = Outcome(job, None, None, dict(self.booked), excluded=self.excluded)
        outcome.work = [Work(int(steps), flops, int(memory)) for steps, flops, memory in self.work]
        outcome.asked = Ledger(up=self.asked[0], down=self.asked[1])
        outcome.memory = {VERSION: id} if self.changed else None
        if self.message is not None:
            outcome.nbytes = 0 if job.judge else nbytes(self.message)
        return outcome


def check_counts(message: Message, metrics: Sequence[Metric]) -> None:
    """Refuse an evaluation of which these metrics could not make their figures, also once it is added to others.

    Raises:
        MessageError: it is none.
    """
    with reading("evaluation"):
        figures = [f for k, metric in enumerate(metrics) for f in metric.finish(Message(message[f"m{k}"])).values()]
        numbers = [n for n in leaves(message) if not isinstance(n, Tensor)]
        if any(isinstance(f, complex) for f in figures) or not all(abs(n) <= _MOST for n in numbers):
            raise MessageError("not an evaluation: its numbers are none that can be counted")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What is read here may be anything: whatever goes wrong, it is malformed, and nothing else has failed."""
    try:
        yield
    except MessageError:
        raise
    except Exception as e:
        raise MessageError(f"no {what} that can be read: {type(e).__name__}: {e}") from None


def check_tree(path: Path, largest: int) -> None:
    """Refuse a file whose tree of JSON, however little it says, would take more than `largest` bytes to read.

    Raises:
        TooLarge: how much there is of it.
    """
    with open(path, "rb") as f:
        tree = int.from_bytes(f.read(8), "little")
    if min(tree, path.stat().st_size) * _UNFOLDS > max(largest, _ALWAYS):
        raise TooLarge(f"{tree:,} bytes of JSON, which would be more than {largest:,} bytes, the most the plan allows")


def check_size(value: Any, largest: int) -> None:
    """Refuse a message that would take more than `largest` bytes when it is read.

    Raises:
        MessageError: how much, and how much may be.
    """
    if _room(value) > largest:
        raise TooLarge(f"a message of more than {largest:,} bytes, the most the plan allows")


def _room(value: Any) -> int:
    """Bytes of one value once it is read; of what unpacks to more than it holds, also of all that it holds."""
    if isinstance(value, Tensor):
        return nbytes(value)
    if is_mapping(value):
        return sum(map(_room, value.values()))
    if is_row(value):
        return sum(map(_room, value))
    if is_dataclass(value):
        held = sum(_room(getattr(value, f.name)) for f in fields(value))
        return max(held, _dense(value))
    return sum(map(nbytes, leaves(value)))


def _dense(value: Any) -> int:
    """Bytes of one record once it is dense, as it says itself; 0 where it does not."""
    if isinstance(value, At):
        rows = max(value.values.shape[0], 1)
        return max(0, int(value.size)) * max(1, value.values.numel() // rows) * value.values.element_size()
    shape = getattr(value, "shape", None)  # what compressors pack says what it unpacks to
    if shape is not None:
        if not _all(shape, int):
            raise MessageError(f"a packed tensor of the shape {shape!r}")
        return 8 * math.prod(shape)
    if hasattr(value, "size"):
        rows = max(len(value.index), 1) if hasattr(value, "index") else 1
        inner = _room(value.values) // (8 * rows) if hasattr(value, "values") else 1
        return max(0, int(value.size)) * 8 * max(1, inner)
    return 0


def _all(values: Any, *kinds: type) -> bool:
    return all(type(v) in kinds and 0 <= v <= _MOST for v in values)
