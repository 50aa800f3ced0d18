"""One job being run: its coroutine, what it waits for, and what it came to. Never saved; it is run again instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import CoroutineType
from typing import Any

from torch import Tensor

from fedloom.channel.stage import Sender
from fedloom.client import Ask, Client, Query, Unanswered, handed, settled, suspend
from fedloom.errors import ClientFailure, Declined, FedloomError
from fedloom.message import Message, nbytes, opened
from fedloom.training.chance import repeatable
from fedloom.training.inference import BATCH, evaluate, gradient, predict
from fedloom.training.request import Training, code_key
from fedloom.training.single import singles_told
from fedloom.training.work import Work

from .base import Job, Outcome, Plan


class Turn:
    """Runs a client program from await to await.

    Attributes:
        request: what it waits for (`Training`, `Query`, `Ask`), None once it has ended.
        outcome: filled when it has ended.
    """

    def __init__(self, plan: Plan, job: Job) -> None:
        self.plan, self.job = plan, job
        self.outcome = Outcome(job)
        self.request: Training | Query | Ask | None = None
        self.result: Message | None = None
        self.client = Client(plan, job.id, job.key, job.memory, job.began)
        honest = plan.enclosed(job.program) if job.program else _given
        behaviour = None if job.judge else plan.behave.get(job.id)
        payload = handed(job.payload)
        self.client.given = (*payload.values(), *job.memory.values())
        try:
            if job.judge:
                self.coroutine = _judged(self.client, honest, job.judge, payload)
            elif behaviour:
                self.coroutine = behaviour(self.client, honest, **payload)
            else:
                self.coroutine = honest(self.client, **payload)
        except TypeError as e:
            raise self._failure(f"could not be called with its payload: {e}") from e
        if not isinstance(self.coroutine, CoroutineType):
            raise self._failure("is not a coroutine: write it as `async def`")

    def advance(self, value: Any = None) -> None:
        """Continue with the answer to the last request, up to the next one or the end."""
        self._go_on(self.coroutine.send, value)

    def fail(self, error: Exception) -> None:
        """The awaited work itself failed: the program hears of it where it waits."""
        try:
            self._go_on(self.coroutine.throw, error)
        finally:
            del error  # see `_go_on`

    def answer(self, query: Query) -> None:
        """Work without training, done on the spot."""
        try:
            if self._timed:
                self.outcome.queried += self.plan.counted.query(query, partial(answered, self.plan))
            result = answered(self.plan, query)
        except Exception as e:
            self.fail(e)
        else:
            self.advance(result)

    def hear(self, question: Ask, answer: Any) -> None:
        """Continue with the answer to a question in mid-job. Its bytes have been sent, whatever becomes of the job."""
        asked, size = self.outcome.asked, nbytes(question.message)
        if question.of is None:
            asked.up += size
        else:
            asked.peers += size * len(question.of)
        if isinstance(answer, Unanswered):
            self.fail(FedloomError(answer.reason))
            return
        if question.of is None:
            asked.down += nbytes(answer)
        else:
            asked.peers += sum(nbytes(reply.message) for reply in answer)
        self.advance(answer)

    def _go_on(self, step: Callable[[Any], Any], value: Any) -> None:
        self.request = None
        try:
            try:
                self.request = step(value)
            except StopIteration as end:
                self._end(end.value)
            finally:
                del value  # an error that was thrown in and comes out has this frame in its traceback: a cycle
        except Declined as e:
            self.outcome.excluded = f"declined: {e}"
        except FedloomError as e:
            if self.plan.on_failure == "raise":
                raise
            self.outcome.excluded = str(e)
        except Exception as e:
            failure = self._failure(f"raised {type(e).__name__}: {e}")
            if self.plan.on_failure == "raise":
                raise failure from e
            self.outcome.excluded = str(failure)
        if isinstance(self.request, Training):
            self._takes_on(self.request)

    def _takes_on(self, request: Training) -> None:
        """What the training will cost; a device too small for it gives up, as a process without memory does."""
        if not self._timed:
            self.outcome.work.append(Work(request.steps))
            return
        work, device = self.plan.counted.training(request), self.plan.world.device(self.job.id)
        self.outcome.work.append(work)
        if work.memory > device.memory:
            self.coroutine.close()
            self.request = None
            self.outcome.excluded = f"out of memory: training needs {work.memory:,} bytes of {device.memory:,.0f}"

    @property
    def _timed(self) -> bool:
        """Whether time depends on what is computed."""
        return self.plan.world.counts and not self.job.judge

    def _end(self, result: Any) -> None:
        if result is not None and not isinstance(result, Message):
            raise self._failure(f"returned {type(result).__name__}; it returns a Message(...) or None")
        memory = self.client.memory
        if self.job.judge:
            self.result = result
            return
        if result is not None:
            result = self._through_channel(result)
        self.result = result
        self.outcome.memory = memory.version() if memory.changed else None
        self.outcome.booked, self.outcome.outbox = self.client.book.added, self.client.outbox

    def _through_channel(self, message: Message) -> Message:
        """Encode, count, decode: what the server will read."""
        channel = self.plan.channel
        if channel.stages:
            message = Message(settled(dict(message)))
            sender = Sender(
                self.job.id,
                self.client.memory,
                self.client.rng,
                self.job.samples,
                self.job.program,
            )
            message = channel.encode(message, sender)
        self.outcome.nbytes = message.nbytes
        return opened(channel.decode(message))

    def _failure(self, what: str) -> ClientFailure:
        job = self.job
        where = f"client {job.id}, round {job.version}, payload {shapes(job.payload)}"
        return failure(self.plan, job, f"{what} ({where}). Run it with engine='debug' to see the inputs")


def failure(plan: Plan, job: Job, what: str) -> ClientFailure:
    """The error that says what a job's program did."""
    text = f"{type(plan.method).__name__}.{job.program} {what}"
    return ClientFailure(text, client=job.id, program=job.program, round=job.version)


def shapes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by their shapes, all else as it is."""
    return {k: tuple(v.shape) if hasattr(v, "shape") else v for k, v in values.items()}


def answered(plan: Plan, query: Query) -> Any:
    """Predictions, a gradient, or figures."""
    with singles_told(query.client, len(query.data), BATCH, "other samples than these"):
        return _answered(plan, query)


def _answered(plan: Plan, query: Query) -> Any:
    if query.kind == "predict":
        kind = ("predict", query.model.key(), code_key(query.fn))
        work = partial(predict, query.model, query.vector, query.data, query.fn)
        return repeatable(work, query.key, kind, plan.device)
    if query.kind == "gradient":
        assert isinstance(query.vector, Tensor)
        return gradient(query.model, query.vector, query.data, key=query.key)
    totals = evaluate(query.model, query.vector, query.data)
    if query.kind == "sums":
        return totals
    return {k: v for metric, part in zip(plan.task.metrics, totals) for k, v in metric.finish(part).items()}


async def _given(client: Client, answer: Any) -> Any:
    return answer


async def _judged(client: Client, program: Any, split: str, payload: Mapping[str, Any]) -> Message:
    """A program's answer, judged on one split of the client's data: sums, by metric."""
    answer = await program(client, **payload)
    data = getattr(client.data, split)
    totals = await suspend(Query("sums", client.id, client.model, answer, data))
    return Message({f"m{k}": dict(total) for k, total in enumerate(totals)})
