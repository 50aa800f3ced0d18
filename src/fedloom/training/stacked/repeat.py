"""Steps of small networks, repeated without autograd: what a step did is written down, operator by operator.

Where tensors are small a step is all dispatch, half of it autograd's and the rules'. Its operators and their order do
not change from step to step, so a step that has been looked at twice is from then on a straight line of calls, made
into a Python function. These are the very calls of the step looked at, so the results are the same to the bit.

A step is written down at several numbers of clients. Numbers in its calls that differ are `c * clients + d`; what has
the same calls for two cohorts has them for every one in between. Whatever could make two steps differ is refused:
random numbers, looks at values, shapes that follow values, and tensors that nobody has named. A network that keeps
count in Python is noticed where its count enters an operator.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .batches import Step

LARGEST = 1 << 15
"""Numbers in a vector up to which a step is mostly dispatch."""


class NotRepeatable(Exception):
    """The next step need not be like this one."""


@dataclass(frozen=True)
class Slot:
    """A tensor of a step: the first ones are given, the others are made on the way."""

    number: int


@dataclass(frozen=True)
class Scaled:
    """The number `times * clients + plus`."""

    times: int
    plus: int

    def at(self, clients: int) -> int:
        return self.times * clients + self.plus


@dataclass(frozen=True)
class Call:
    """One operator: `args` and `kwargs` with tensors as slots, and the slots of what it returns."""

    operator: Any
    args: Any
    kwargs: Any
    out: Any


class _Recorder(TorchDispatchMode):
    """Writes down all operators that run within it, those of the backward pass too.

    A tensor is known by its memory and geometry, as autograd hands out others for the same memory. All are held until
    the end, so that no memory is used again.

    Args:
        given: the tensors a step begins with.
        lasting: tensors that are the same ones at every step.
    """

    def __init__(self, given: Sequence[Tensor], lasting: Iterable[Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.constants: dict[int, Tensor] = {}
        self.refused = ""
        self._lasting = {id(t): t for t in lasting}
        self._held = list(given)
        self._slots: dict[object, int] = {}
        self._count = len(given)
        for number, t in enumerate(given):  # one may be there twice
            self._slots.setdefault(_place(t), number)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and being kept from it would import the compiler: a second, and 30 MB."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.refused:
            return func(*args, **kwargs)
        try:
            if any(tag in _UNLIKE for tag in func.tags):
                raise NotRepeatable(f"{func} is not the same at every step")
            named = self._read(args), self._read(kwargs)
        except NotRepeatable as e:  # in the middle of a step: it goes on
            self.refused = str(e)
            return func(*args, **kwargs)
        out, met = func(*args, **kwargs), self._count
        slots = self._read(out, new=True)
        if self._count > met or func._schema.is_mutable:  # anything else gave back what it was given
            self.calls.append(Call(func, *named, slots))
        return out

    def slot(self, t: Tensor) -> Slot:
        """Raises NotRepeatable: the tensor was neither given nor made here."""
        number = self._slots.get(_place(t))
        if number is None:
            if id(t) not in self._lasting:
                raise NotRepeatable(f"a tensor {tuple(t.shape)} comes from outside of the step")
            number = self._new(t)
            self.constants[number] = t
        return Slot(number)

    def _new(self, t: Tensor) -> int:
        self._held.append(t)
        number = self._slots.setdefault(_place(t), self._count)
        self._count += number == self._count
        return number

    def _read(self, x: Any, new: bool = False) -> Any:
        if isinstance(x, Tensor):
            return Slot(self._new(x)) if new else self.slot(x)
        if isinstance(x, list | tuple):
            return [self._read(v, new) for v in x]
        if isinstance(x, dict):
            return {k: self._read(v, new) for k, v in x.items()}
        return x


_UNLIKE = {
    torch.Tag.nondeterministic_seeded,
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,  # it changes the shape by which a tensor is known
}


def _place(t: Tensor) -> object:
    return t.data_ptr(), t.shape, t.stride(), t.dtype, t.is_conj(), t.is_neg()


@dataclass
class _Line:
    """The calls of a step, for cohorts of `least` to `most` clients."""

    calls: list[Call]
    out: Slot
    constants: dict[int, Tensor]
    given: int
    least: int
    most: int
    seen: int = 1
    run: Callable[..., Tensor] | None = None

    def fits(self, clients: int) -> bool:
        return self.seen > 1 and self.least <= clients <= self.most

    def joined(self, other: _Line) -> bool:
        """Take in the same step at another number of clients; whether it is the same."""
        alike = (self.out, self.given, len(self.calls)) == (other.out, other.given, len(other.calls))
        if not alike or self.constants.keys() != other.constants.keys():
            return False
        try:
            calls = [self._both(mine, its, other.most) for mine, its in zip(self.calls, other.calls)]
        except NotRepeatable:
            return False
        self.calls, self.run = calls, None
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.seen += 1
        return True

    def _both(self, x: Any, y: Any, clients: int) -> Any:
        if isinstance(x, Call):
            if x.operator is not y.operator or x.out != y.out:
                raise NotRepeatable
            return Call(x.operator, self._both(x.args, y.args, clients), self._both(x.kwargs, y.kwargs, clients), x.out)
        if isinstance(x, list) and isinstance(y, list) and len(x) == len(y):
            return [self._both(a, b, clients) for a, b in zip(x, y)]
        if isinstance(x, dict) and isinstance(y, dict) and x.keys() == y.keys():
            return {k: self._both(v, y[k], clients) for k, v in x.items()}
        if isinstance(x, Scaled):
            if type(y) is int and x.at(clients) == y:
                return x
        elif type(x) is type(y) and x == y:
            return x
        elif type(x) is int and type(y) is int and self.least == self.most != clients:
            times, rest = divmod(y - x, clients - self.most)
            if not rest:
                return Scaled(times, x - times * self.most)
        raise NotRepeatable

    def __call__(self, clients: int, given: Sequence[Tensor]) -> Tensor:
        if self.run is None:
            self.run = _written(self)
        with torch.no_grad():
            return self.run(clients, *given)


def _written(line: _Line) -> Callable[..., Tensor]:
    """A line as a Python function of the number of clients and the tensors given."""
    names: dict[str, Any] = {f"t{n}": t for n, t in line.constants.items()}

    def text(x: Any) -> str:
        if isinstance(x, Slot):
            return f"t{x.number}"
        if isinstance(x, Scaled):
            return f"{x.times} * clients + {x.plus}"
        if isinstance(x, list):
            return f"[{', '.join(map(text, x))}]"
        if x is None or type(x) in (int, bool):
            return repr(x)
        names[f"c{len(names)}"] = x
        return f"c{len(names) - 1}"

    last: dict[int, int] = {}
    for i, call in enumerate(line.calls):
        last.update((n, i) for n in _slots((call.args, call.kwargs, call.out)) if n >= line.given)
    ended: dict[int, list[int]] = {}
    for n, i in last.items():
        if n not in line.constants and n != line.out.number:
            ended.setdefault(i, []).append(n)
    body = ""
    for i, call in enumerate(line.calls):
        at = f"f{len(names)}"
        names[at] = _quickly(call.operator)
        given = ", ".join([*map(text, call.args), *(f"{k}={text(v)}" for k, v in call.kwargs.items())])
        target = _target(call.out)
        body += f"    {target}{' = ' * bool(target)}{at}({given})\n"
        if i in ended:  # its memory is the next one's, still in cache
            body += f"    {' = '.join(f't{n}' for n in ended[i])} = None\n"
    given = "".join(f", t{n}" for n in range(line.given)) + "".join(f", t{n}=t{n}" for n in line.constants)
    exec(f"def run(clients{given}):\n{body}    return {text(line.out)}\n", names)
    return names["run"]  # type: ignore[no-any-return]


def _slots(x: Any) -> Iterator[int]:
    """The numbers of all slots in there."""
    if isinstance(x, Slot):
        yield x.number
    elif isinstance(x, list | tuple | dict):
        for v in x.values() if isinstance(x, dict) else x:
            yield from _slots(v)


def _target(out: Any) -> str:
    """What a call's results are assigned to."""
    if isinstance(out, list):
        return f"[{', '.join(_target(x) or '_' for x in out)}]"
    return f"t{out.number}" if isinstance(out, Slot) else ""


_SAME = (
    *("bmm", "mm", "addmm", "baddbmm", "add", "mul", "sub", "div", "neg", "exp", "relu", "tanh", "sigmoid", "gelu"),
    *("t", "transpose", "unsqueeze", "sum", "select", "gather", "cat", "stack", "_log_softmax", "clone", "permute"),
    *("add_", "mul_", "neg_", "exp_", "baddbmm_", "scatter_add_", "copy_", "view", "expand", "addmm_", "sub_", "div_"),
    *("new_full", "new_zeros", "_foreach_add_", "_foreach_mul_", "ne", "eq", "threshold_backward", "mean"),
)
"""Operators whose Python form, 1 us quicker to call, takes the same arguments in the same order."""


def _quickly(operator: Any) -> Any:
    name = operator._schema.name.removeprefix("aten::")
    if name == "_unsafe_view":
        return Tensor.view
    return (getattr(torch, name, None) or getattr(Tensor, name, operator)) if name in _SAME else operator


@dataclass
class Repeated:
    """One kind of step: done as it comes until it has been seen, then repeated; `after` is the place it leads to.

    What never comes again (a step size that falls from round to round) is `met` once, and not looked at.
    """

    met: bool = False
    lines: list[_Line] = field(default_factory=list[_Line])
    after: Any = None
    refused: str = ""

    def learn(self, recorder: _Recorder, losses: Tensor, clients: int, given: int, after: Any) -> None:
        """Remember a step that was looked at."""
        if recorder.refused:
            raise NotRepeatable(recorder.refused)
        if self.lines and after != self.after:
            raise NotRepeatable("one step leads further than another")
        self.after = after
        line = _Line(recorder.calls, recorder.slot(losses), recorder.constants, given, clients, clients)
        if any(known.joined(line) for known in self.lines):
            return
        if len(self.lines) == _LINES or any(known.least <= clients <= known.most for known in self.lines):
            raise NotRepeatable("one step is not like another")
        self.lines.append(line)


_KINDS = 512
"""Kinds of steps that are remembered."""
_LINES = 8
"""Different lines for one kind of step, above which it is no kind."""


def _chances() -> object:
    """Where the generators are that operators do not show: what draws from them differs from step to step."""
    return random.getstate(), pickle.dumps(np.random.get_state(legacy=False))


class Repeatable(Protocol):
    """Steps that may be repeated. It keeps count, in Python, of something they depend on: `place`, moved by each."""

    place: Any

    def once(self, step: Step) -> Tensor:
        """The losses of one step, done the ordinary way."""
        ...

    def inside(self) -> list[Tensor]:
        """The tensors a step may read or change, besides its batch, in one order."""
        ...


class Repeat:
    """The steps of one cohort.

    Args:
        known: what was seen of like steps before, by kind; it is added to.
        kind: all that steps of this cohort have in common, but for their batches.
        lasting: gives the tensors a step may read that never change.
    """

    def __init__(
        self,
        known: dict[object, Repeated],
        kind: tuple[Any, ...],
        lasting: Callable[[], list[Tensor]],
    ) -> None:
        self.known, self.kind, self.lasting = known, kind, lasting
        self._at: tuple[int, Any] = (0, ())
        self._repeated = Repeated()

    def __call__(self, step: Step, steps: Repeatable) -> Tensor:
        """The losses of one step."""
        if len(step.seeds) > 1:
            return steps.once(step)
        batch = [step.batch[name] for name in step.batch]
        inside = steps.inside()
        given = [*batch, *step.seeds.values(), *inside]
        at = step.sizes[0] // step.active, steps.place
        if at != self._at:
            self._at = at
            key = (*self.kind, *at, *((name, t.shape[1:], t.dtype) for name, t in zip(step.batch, batch)))
            if key not in self.known and len(self.known) >= _KINDS:
                self.known.clear()
            self._repeated = self.known.setdefault(key, Repeated())
        repeated = self._repeated
        for line in repeated.lines:
            if line.fits(step.active):
                losses = line(step.active, given)
                steps.place = repeated.after
                return losses
        if repeated.refused or not repeated.met:
            repeated.met = True
            return steps.once(step)
        lasting = self.lasting()
        recorder, chances = _Recorder(given, lasting), _chances()
        with recorder:
            losses = steps.once(step)
        if chances != _chances():
            recorder.refused = "the network draws random numbers of Python's or NumPy's"
        if any(t is not before for t, before in zip(steps.inside(), inside)):
            recorder.refused = "its memory had to grow"
        if any(t is not before for t, before in zip(self.lasting(), lasting)):
            recorder.refused = "the network puts another tensor in the place of a buffer"
        try:
            repeated.learn(recorder, losses, step.active, len(given), steps.place)
        except NotRepeatable as e:
            repeated.refused = str(e)
        return losses
