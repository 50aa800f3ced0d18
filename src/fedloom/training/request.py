"""Heavy work a client program awaits, as data: which vector, on which samples, in which order, by which rule."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fedloom.data.fields import Data, kind_of
from fedloom.trees import is_mapping, is_row

from .solvers import Solver

if TYPE_CHECKING:
    from fedloom.model import Model

LossHook: TypeAlias = Callable[..., Tensor]
"""`loss(model, w, batch, extras)` -> one value per sample."""
StepHook: TypeAlias = Callable[..., tuple[Tensor, Any]]
"""`step(w, f, k, carry, extras) -> (direction, carry)`: `f(v)` loss at v on this batch, `f.grad(v)` its gradient,
`f.grad(v, other_loss)`, `f.batch`, `f.model`; the solver moves along the direction."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which samples make up each step: `index` int64 `(steps, batch)`, of which the first `counts[k]` are real."""

    index: Tensor
    counts: Sequence[int]

    @staticmethod
    def epochs(n: int, batch_size: int, steps: int, rng: torch.Generator) -> Schedule:
        """Epochs of shuffled batches, each sample once an epoch, the last batch of an epoch partial."""
        b = min(batch_size, n)
        per_epoch = -(-n // b)
        passes = max(1, -(-steps // per_epoch))  # no steps: a schedule of none
        parts = [torch.randperm(n, generator=rng) for _ in range(passes)]
        if padding := per_epoch * b - n:
            fill = torch.zeros(padding, dtype=torch.int64)
            parts = [part for order in parts for part in (order, fill)]
        index = (parts[0] if len(parts) == 1 else torch.cat(parts)).view(-1, b)
        counts = ([b] * (per_epoch - 1) + [b - padding]) * passes
        return Schedule(index if len(counts) == steps else index[:steps], counts[:steps])

    @staticmethod
    def given(order: Tensor) -> Schedule:
        """A caller's own order, `(steps, batch)` positions."""
        return Schedule(order.long(), [order.shape[1]] * len(order))


@dataclass(eq=False)
class Training:
    """A request to train: everything one client's local optimisation needs.

    `data` and `schedules` have one entry per stream; a single stream is named "" and its batch is passed plainly,
    several are passed as a dict of batches. `carry` is a tree of tensors; `extras` maps names to tensors or values.
    `key` seeds ordinary torch randomness (dropout) inside the step. `given` is what the job was given (payload and
    memory), which nobody changes in place: results may refer to it.
    """

    client: int
    model: Model
    start: Tensor
    solver: Solver
    steps: int
    data: Mapping[str, Data]
    schedules: Mapping[str, Schedule]
    loss: LossHook | None = None
    step: StepHook | None = None
    carry: Any = None
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])
    only: Tensor | None = None
    key: tuple[Any, ...] = ()
    given: tuple[Any, ...] = ()

    def batch(self, k: int) -> Any:
        """The samples of step `k`."""
        out: dict[str, Data] = {}
        for name, schedule in self.schedules.items():
            index = schedule.index[k, : schedule.counts[k]]
            data = self.data[name]
            out[name] = Data(**{f: t.index_select(0, index) for f, t in data.items()})
        return out.get("", out)

    def alike(self) -> tuple[Any, ...]:
        """Equal for requests that may be trained as one computation."""
        return (
            self.model.key(),
            self.start.shape,
            self.start.dtype,
            self.solver,
            code_key(self.loss),
            code_key(self.step),
            tuple([(n, kind_of(d)) for n, d in self.data.items()]),
            tuple(self.schedules),
            tuple([(n, value_key(v)) for n, v in self.extras.items()]),
            value_key(self.carry),
            self.only is not None,
        )


@dataclass(frozen=True, eq=False)
class Trained:
    """What `await client.train(...)` gives.

    Attributes:
        vector: the trained weights `(d,)`.
        steps: steps done (fewer than asked when cut short).
        lr: the step size they used.
        carry: the step hook's carry after the last step.
        loss: mean training loss over the steps, NaN when there were none.
    """

    vector: Tensor
    steps: int
    lr: float
    carry: Any = None
    loss: float = float("nan")


def code_key(hook: Callable[..., Any] | None) -> object:
    """Hooks are compared by code and closure: a function written inside a program is a new object for each client."""
    if hook is None or not isinstance(hook, types.FunctionType):
        return hook
    closure = tuple(_cell(c.cell_contents) for c in hook.__closure__ or ())
    defaults = tuple(_cell(d) for d in hook.__defaults__ or ())
    return (hook.__code__, closure, defaults)


def _cell(value: Any) -> object:
    if isinstance(value, int | float | str | bool | type(None)):
        return (type(value), value)
    return code_key(value) if isinstance(value, types.FunctionType) else id(value)


def value_key(value: Any) -> object:
    """Shape of a tensor, the value of a plain number or text, structure of a tree."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if is_mapping(value):
        return tuple((k, value_key(v)) for k, v in value.items())
    if is_row(value):
        kind: type = type(value)
        return (kind, tuple(map(value_key, value)))
    return _cell(value)
