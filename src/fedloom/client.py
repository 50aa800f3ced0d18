"""What a client program sees: its own data, its memory, and heavy work to await. It lives for one job."""

from __future__ import annotations

import types
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .data.fields import Data
from .errors import ConfigError, DataError
from .keyed import generator
from .message import Message, is_set
from .model import Model
from .training.live import told_mask
from .training.request import LossHook, Schedule, StepHook, Trained, Training
from .training.solvers import Solver
from .trees import is_dict, is_row, like
from .written import record

if TYPE_CHECKING:
    from .data import Federation, Local
    from .engines.base import Plan


@dataclass(eq=False)
class Query:
    """Work without training: `kind` is "predict", "gradient" or "evaluate"; `key` seeds what it draws."""

    kind: str
    client: int
    model: Model
    vector: Tensor | Callable[..., Any]
    data: Data
    fn: Callable[..., Any] | None = None
    key: tuple[Any, ...] = ()


@dataclass(eq=False)
class Ask:
    """A question in mid-job: to the server's last state (`of` None) or to peers' memories. Nothing is changed by it."""

    program: Callable[..., Any]
    of: Sequence[int] | None
    within: float
    message: Message


@record
@dataclass(frozen=True)
class Unanswered:
    """What comes back where answering a question failed: its program hears of it where it waits."""

    reason: str


@dataclass(frozen=True)
class Sending:
    """A job this one starts at a peer (or at itself, `when` seconds later) once it has ended."""

    id: int
    program: Callable[..., Any]
    when: float | str | None
    payload: dict[str, Any]


@types.coroutine
def suspend(request: Training | Query | Ask) -> Generator[Training | Query | Ask, Any, Any]:
    """Hand work to the engine; it may do the like requests of the whole cohort together."""
    return (yield request)


class Memory(MutableMapping[str, Any]):
    """What stays at a client: reads the committed version, holds writes back until the job counts.

    To change a list or a dict that was read is a write.
    """

    __slots__ = ("_committed", "_lent", "_writes")

    def __init__(self, committed: Mapping[str, Any]) -> None:
        self._committed = committed
        self._writes: dict[str, Any] = {}
        self._lent: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name in self._writes:
            value = self._writes[name]
        else:
            if name not in self._lent:
                self._lent[name] = _own(self._committed[name])
            value = self._lent[name]
        if value is _GONE:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self._writes[name] = settled(value)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """What is kept, not what was given, where there was nothing."""
        if name not in self:
            self[name] = default
        return self[name]

    def __delitem__(self, name: str) -> None:
        self[name]
        self._writes[name] = _GONE

    def __iter__(self) -> Iterator[str]:
        names = dict.fromkeys((*self._committed, *self._writes))
        return (n for n in names if self._writes.get(n) is not _GONE)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def changed(self) -> bool:
        return bool(self._writes) or not all(_unchanged(v, self._committed[n]) for n, v in self._lent.items())

    def version(self) -> dict[str, Any]:
        """The whole memory with this job's writes."""
        return {name: value if isinstance(value, Tensor) else settled(value) for name, value in self.items()}


_GONE = object()


def handed(payload: Mapping[str, Any]) -> dict[str, Any]:
    """A payload as one program is called with it: the tensors that all are sent, in lists and dicts of its own."""
    return {name: value if isinstance(value, Tensor) else _own(value) for name, value in payload.items()}


def _own(value: Any) -> Any:
    """The same in lists, dicts and sets of its own."""
    if is_dict(value):
        return {k: _own(v) for k, v in value.items()}
    if is_row(value):
        parts = list(map(_own, value))
        shared = isinstance(value, tuple) and all(a is b for a, b in zip(parts, value))
        return value if shared else like(value, parts)
    return value.copy() if is_set(value) else value


def _unchanged(lent: Any, committed: Any) -> bool:
    """Whether what `_own` gave is as it was."""
    if is_dict(lent) and is_dict(committed):
        return list(lent) == list(committed) and all(_unchanged(v, committed[k]) for k, v in lent.items())
    if is_row(lent) and is_row(committed):
        return len(lent) == len(committed) and all(map(_unchanged, lent, committed))
    return lent == committed if is_set(lent) else lent is committed


def settled(value: Any) -> Any:
    """Deferred results built, so that they outlive the computation they came from."""
    build = getattr(value, "build", None)
    if build is not None:
        return build()
    if isinstance(value, Tensor):
        return value.detach()
    if is_dict(value):
        return {k: settled(v) for k, v in value.items()}
    if is_row(value):
        return like(value, (settled(v) for v in value))
    return value


@dataclass(slots=True)
class Book:
    """What no verdict may undo (bytes sent, privacy spent): only ever added to."""

    entries: dict[str, float] = field(default_factory=lambda: {})
    added: dict[str, float] = field(default_factory=lambda: {})

    def add(self, name: str, amount: float) -> None:
        """Raises ConfigError for a negative amount: a book only grows."""
        if amount < 0:
            raise ConfigError(f"a book only grows; given {amount} for {name!r}")
        self.added[name] = self.added.get(name, 0.0) + amount

    def __getitem__(self, name: str) -> float:
        return self.entries.get(name, 0.0) + self.added.get(name, 0.0)


class Client:
    """One client, for the length of one job: the only place that sees data.

    Attributes:
        id: its number.
        data: training samples by field (`client.data.x`), and `.train`, `.val`, `.test`.
        memory: what stays here from job to job; written back only when the job counts.
        book: what only grows.
        model: this client's network as a function of a vector; `models` all of them by name.
        public: data everybody holds, None without.
        time: virtual or wall seconds at which the job began here, its download behind it.
        device: its speed and memory.
        given: what its payload and memory held when the job began, which nobody changes in place.
    """

    def __init__(self, plan: Plan, id: int, key: tuple[Any, ...], memory: Mapping[str, Any], time: float = 0.0) -> None:
        self._plan = plan
        self.id = id
        self.key = key
        self.time = time
        self.memory = Memory(memory)
        self.book = Book()
        self.outbox: list[Sending] = []
        self.given: tuple[Any, ...] = ()
        self._trainings = self._queries = 0
        self._data: Local | None = None

    @property
    def federation(self) -> Federation:
        """What all clients know of it: how many they are, its classes. Other clients' data are not to be read."""
        return self._plan.federation

    @property
    def data(self) -> Local:
        if self._data is None:
            self._data = self._plan.federation.local(self.id)
        return self._data

    @property
    def round(self) -> int:
        """Rounds that had been done when this job was sent."""
        return self.key[1]

    @property
    def public(self) -> Data | None:
        return self._plan.federation.public

    @property
    def model(self) -> Model:
        return self._plan.model_of(self.id)

    @property
    def models(self) -> Mapping[str, Model]:
        return self._plan.models

    @property
    def device(self) -> Any:
        return self._plan.world.device(self.id)

    def rng(self, purpose: str) -> torch.Generator:
        """A generator for this purpose in this job: the same whatever the engine, order or number of workers."""
        return generator(self._plan.seed, purpose, *self.key)

    async def train(
        self,
        start: Tensor,
        *,
        solver: Solver,
        steps: int | None = None,
        loss: LossHook | None = None,
        step: StepHook | None = None,
        carry: Any = None,
        extras: Mapping[str, Any] | None = None,
        data: Data | Mapping[str, Data] | None = None,
        order: Tensor | Mapping[str, Tensor] | None = None,
        model: Model | None = None,
        only: Tensor | None = None,
    ) -> Trained:
        """Local optimisation from `start` `(d,)`.

        Args:
            solver: how to move and for how long; `steps` overrides its number of steps (0 is legal).
            loss: `loss(model, w, batch, extras)` -> one value per sample; default: the task's.
            step: `step(w, f, k, carry, extras) -> (direction, carry)`; default: the gradient.
            carry: what the step hook hands from step to step (tensors).
            extras: what hooks need: one object for all clients is passed once, tensors that differ are stacked.
            data: default this client's training samples; a dict of several makes each batch a dict.
            order: `(steps, batch)` positions from 0 instead of shuffled epochs; one may come several times.
            only: boolean `(d,)`; outside it nothing moves or decays.

        Raises:
            DataError: nothing to train on.
            ConfigError: `start`, `order`, `steps` or `only` does not fit the model or the data.
        """
        whole = self.data if data is None else data
        streams = {"": whole} if isinstance(whole, Data) else dict(whole)
        if start.device.type != "cpu":  # what a program made itself, it made on the CPU
            streams = {name: d.to(start.device) for name, d in streams.items()}
        given = order if isinstance(order, Mapping) else {"": order}
        for name, d in streams.items():
            if len(d) == 0:
                where = f" in stream {name!r}" if name else ""
                raise DataError(
                    f"client {self.id} has no samples{where} to train on; with on_failure='exclude' (--on-failure "
                    f"exclude) such clients sit out, counted"
                )
        model = model or self.model
        if start.shape != (model.layout.size,):
            raise ConfigError(
                f"train(start=...) of shape {tuple(start.shape)} does not fit {model.name}, whose vector has "
                f"{model.layout.size} numbers"
            )
        orders = {name: tuple(o.shape) for name, o in given.items() if o is not None}
        if strange := [name for name in orders if name not in streams]:
            given_for = f"for {strange[0]!r}" if strange[0] else "one tensor"
            there = f"{list(streams)}: give order={{name: positions}} for some of these"
            if "" in streams:
                there = "one, without a name: give order=positions"
            raise ConfigError(f"train(order=...) is {given_for}, and the data is {there}")
        if (steps or 0) < 0 or any(len(shape) != 2 or shape[0] < (steps or 0) for shape in orders.values()):
            raise ConfigError(
                f"train(steps={steps}) with order of shape {orders or None} cannot be: steps >= 0, or None; an order "
                f"is (steps, batch), with a row for every step"
            )
        for name, o in given.items():
            if o is not None:
                _told_positions(o, len(streams[name]))
        if only is not None:
            told_mask(only, model.layout.size)
        work = steps
        if work is None and orders:
            work = min(steps for steps, _ in orders.values())
        if work is None:
            work = solver.work(max(map(len, streams.values())))
        schedules: dict[str, Schedule] = {}
        for name, d in streams.items():
            o = given.get(name)
            if o is None:
                purpose = ("order", name, self._trainings) if name or self._trainings else ("order",)
                rng = generator(self._plan.seed, *purpose, *self.key)
                schedules[name] = Schedule.epochs(len(d), solver.batch_size, work, rng)
            else:
                schedules[name] = Schedule.given(o[:work])
        self._trainings += 1
        return await suspend(
            Training(
                client=self.id,
                model=model.train(),
                start=start,
                solver=solver,
                steps=work,
                data=streams,
                schedules=schedules,
                loss=loss,
                step=step,
                carry=carry,
                extras=extras or {},
                only=only,
                key=(self._plan.seed, "step", self._trainings, *self.key),
                given=self.given,
            )
        )

    async def predict(
        self,
        vector: Tensor,
        data: Data | None = None,
        fn: Callable[..., Any] | None = None,
        model: Model | None = None,
    ) -> Any:
        """Outputs, one row per sample: `model(vector, x)`, or what `fn(model, w, batch)` returns (features, losses)."""
        return await self._query("predict", vector, data, model, fn)

    async def gradient(self, vector: Tensor, data: Data | None = None, model: Model | None = None) -> Tensor:
        """Gradient `(d,)` of the mean loss over all of `data` (default: the training samples)."""
        return await self._query("gradient", vector, data, model)

    async def evaluate(
        self, vector: Tensor | Callable[..., Any], data: Data | str = "test", model: Model | None = None
    ) -> dict[str, float]:
        """The task's metrics of a vector (or of a function of the inputs) on a split or on given data."""
        chosen = getattr(self.data, data) if isinstance(data, str) else data
        return await self._query("evaluate", vector, chosen, model)

    async def _query(
        self,
        kind: str,
        vector: Tensor | Callable[..., Any],
        data: Data | None,
        model: Model | None,
        fn: Callable[..., Any] | None = None,
    ) -> Any:
        self._queries += 1
        key = (self._plan.seed, kind, self._queries, *self.key)
        chosen = self.data if data is None else data
        return await suspend(Query(kind, self.id, model or self.model, vector, chosen, fn, key))

    async def ask(
        self,
        program: Callable[..., Any],
        of: Sequence[int] | None = None,
        within: float = float("inf"),
        **message: Any,
    ) -> Any:
        """Ask in mid-job: `program(state, **message)` of the server's last state, or, with `of`, `program(client,
        **message)` at those peers over what they have committed. It reads and never changes."""
        peers = None if of is None else list(map(index, of))
        return await suspend(Ask(program, peers, within, Message(settled(message))))

    def send(
        self,
        ids: int | Iterable[int],
        program: Callable[..., Any],
        when: float | str | None = None,
        **message: Any,
    ) -> None:
        """Start a job at peers, or at oneself after `when` seconds, once this one has ended."""
        targets = list(map(index, ids)) if isinstance(ids, Iterable) else [index(ids)]
        payload = settled(message)
        self.outbox += [Sending(i, program, when, payload) for i in targets]


def _told_positions(order: Tensor, samples: int) -> None:
    """Refuse what is no order of so many samples: where clients are stacked, the next ones are another client's."""
    whole = not (order.is_floating_point() or order.is_complex() or order.dtype == torch.bool)
    if whole and (not len(order) or (order.shape[1] and order.min() >= 0 and order.max() < samples)):
        return
    given = str(order.dtype).removeprefix("torch.") + f" {tuple(order.shape)}"
    if whole and order.numel():
        given += f" from {int(order.min())} to {int(order.max())}"
    raise ConfigError(
        f"train(order=...) of {given} cannot be: positions among {samples} samples are whole numbers from 0 to "
        f"{samples - 1}, at least one a step, as in torch.randint({samples}, (steps, batch), "
        f"generator=client.rng('mine'))"
    )
