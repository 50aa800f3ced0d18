"""Recognise what a step hook does by calling it once with symbols instead of vectors.

A step is *affine* when the new weights are a linear combination of the weights, the batch gradient and
vectors that do not change during the job: FedProx, SCAFFOLD, FedDyn, weight decay, momentum. Such a step
fuses with the update, so a hook written as the paper writes it costs no more than SGD. Nothing is declared; a
hook that does anything else to a vector (`f(v)`, a norm, a comparison, a torch function, the step number) is
simply not affine and runs as written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn, TypeAlias

from torch import Tensor

from .request import StepHook, code_key
from .solvers import SGD, Solver

Path: TypeAlias = tuple[Any, ...]
"""Where a vector lies: `("extras", "shift")`, `("carry", "moment")`, `("carry",)`, `("extras", "all", 0)`."""
Terms: TypeAlias = tuple[tuple[Path, float], ...]
"""Vectors that stay the same during the job, with their coefficients."""


@dataclass(frozen=True)
class Velocity:
    """`v' = keep * v + gradient * g + w * w + sum c * constant`, one buffer `(d,)` beside the weights.

    Attributes:
        leaf: the part of the carry this is (it starts there and is given back there); None for the solver's
            own momentum, which starts at zero and is dropped.
        step: what the NEW velocity adds to the weights.
    """

    leaf: Path | None
    keep: float
    gradient: float
    w: float
    constants: Terms
    step: float


@dataclass(frozen=True)
class Affine:
    """One step, learning rate included: `w' = w * w + gradient * g + sum c * constant + velocity.step * v'`.

    `g` is the batch gradient, after clipping where the solver clips. Equal for requests whose steps can be
    fused into one; scalars of extras and carry have become coefficients. With a velocity, `gradient` is 0
    unless the hook also moves along the bare gradient.

    Example: FedProx, direction `g + mu * (w - anchor)`, is `Affine(w=1 - lr * mu, gradient=-lr,
    constants=((("extras", "anchor"), lr * mu),))`.
    """

    w: float
    gradient: float
    constants: Terms = ()
    velocity: Velocity | None = None


def recognise(step: StepHook | None, carry: Any, extras: Mapping[str, Any], solver: Solver, size: int) -> Affine | None:
    """The affine form of one step of this hook under this solver, or None.

    Args:
        step: the user's hook; None is the plain gradient.
        carry: the tree it starts from.
        extras: what else it is given. Vectors `(size,)` become symbols, numbers and 0-dim tensors stay
            numbers (so clients with different numbers have different forms), other values may be passed on,
            not used.
        solver: `SGD` is folded in (step size, momentum, weight decay); any other solver is not affine.
        size: length d of the weights.
    """
    if not isinstance(solver, SGD):
        return None
    if step is None and carry is None:  # the plain gradient: nothing to look at, and the usual case
        key: Any = (None, solver)
    else:
        key = (code_key(step), solver, size, _key(carry, size), _key(extras, size))
    try:
        found = _FORMS.get(key)
    except TypeError:  # an unhashable callable: recognised anew each time
        return _recognise(step, carry, extras, solver, size)
    if found is None:
        if len(_FORMS) >= 1024:
            _FORMS.clear()
        # The hook is kept with its form: its key holds ids of what it closes over, which must not be reused.
        found = _FORMS[key] = (_recognise(step, carry, extras, solver, size), step)
    return found[0]


def leaf(path: Path, extras: Mapping[str, Any], carry: Any) -> Any:
    """The vector a path means."""
    at: Any = extras if path[0] == "extras" else carry
    for part in path[1:]:
        at = at[part]
    return at


def with_leaf(tree: Any, path: Path, value: Any) -> Any:
    """A carry with one leaf replaced; containers on the way are copied. `path` starts with "carry"."""
    if len(path) == 1:
        return value
    part = path[1]
    inner = with_leaf(tree[part], path[1:], value)
    if isinstance(tree, Mapping):
        return {**tree, part: inner}
    return _sequence(tree, [inner if i == part else x for i, x in enumerate(tree)])


_FORMS: dict[Any, tuple[Affine | None, StepHook | None]] = {}


# ---------------------------------------------------------------- symbols
class NotAffine(Exception):
    """Raised inside a hook that does more than combine vectors linearly."""


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise NotAffine


class _Opaque:
    """Something the hook may pass on but not look at (the step number, a matrix, the batch)."""

    __slots__ = ()
    __getattr__ = __getitem__ = __call__ = __iter__ = __len__ = __bool__ = __index__ = __int__ = __float__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __mod__ = __rmod__ = __rfloordiv__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _refuse
    __neg__ = __pos__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __contains__ = _refuse
    __and__ = __or__ = __xor__ = __invert__ = __round__ = __hash__ = _refuse

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        raise NotAffine


class Symbol(_Opaque):
    """A linear combination of named vectors: closed under + and -, and under * and / by numbers."""

    __slots__ = ("terms",)
    terms: dict[Path, float]

    def __init__(self, terms: dict[Path, float]) -> None:
        self.terms = terms

    def __add__(self, other: Any) -> Symbol:
        if isinstance(other, Real) and other == 0:  # sum([...]) begins with 0
            return self
        if not isinstance(other, Symbol):
            raise NotAffine
        names = self.terms.keys() | other.terms.keys()
        return Symbol({n: self.terms.get(n, 0.0) + other.terms.get(n, 0.0) for n in names})

    __radd__ = __add__

    def __mul__(self, factor: Any) -> Symbol:
        if isinstance(factor, Tensor) and factor.dim() == 0:
            factor = factor.item()
        if not isinstance(factor, Real):
            raise NotAffine
        return Symbol({n: c * float(factor) for n, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Symbol:
        if isinstance(factor, _Opaque):
            raise NotAffine
        return self * (1.0 / float(factor))

    def __neg__(self) -> Symbol:
        return self * -1.0

    def __pos__(self) -> Symbol:
        return self

    def __sub__(self, other: Any) -> Symbol:
        return self + -other if isinstance(other, Symbol) else self + other

    def __rsub__(self, other: Any) -> Symbol:
        return -self + other

    def __getitem__(self, name: Path) -> float:
        raise NotAffine

    def coefficient(self, name: Path) -> float:
        return self.terms.get(name, 0.0)


_W, _G, _V = ("w",), ("g",), ("velocity",)


class _Objective(_Opaque):
    """Stands for `f`: only the gradient of the training loss at the current weights has a symbol."""

    __slots__ = ()

    def grad(self, v: Any, loss: Any = None) -> Symbol:
        if loss is not None or not isinstance(v, Symbol) or _tidy(v.terms) != {_W: 1.0}:
            raise NotAffine
        return Symbol({_G: 1.0})


# ---------------------------------------------------------------- from symbols to a form
def _recognise(step: StepHook | None, carry: Any, extras: Mapping[str, Any], solver: SGD, size: int) -> Affine | None:
    w = Symbol({_W: 1.0})
    given = _symbols(carry, ("carry",), size)
    try:
        if step is None:
            direction, returned = Symbol({_G: 1.0}), given
        else:
            # a copy of the containers: a hook may write `carry["t"] = ...`, and that is a change
            direction, returned = step(w, _Objective(), _Opaque(), _copied(given), _symbols(extras, ("extras",), size))
        if not isinstance(direction, Symbol):
            return None
        moved = dict(_changes(given, returned, ("carry",)))
    except Exception:  # whatever it was, a hook with a fault of its own raises it again on real vectors
        return None
    direction = direction + solver.weight_decay * w
    if solver.momentum:
        moved[_V] = direction = solver.momentum * Symbol({_V: 1.0}) + direction
    new = w - solver.lr * direction
    if not all(map(math.isfinite, (c for s in (new, *moved.values()) for c in s.terms.values()))):
        return None
    if not moved:
        return Affine(new.coefficient(_W), new.coefficient(_G), _constants(new.terms))
    return _with_velocity(new, *next(iter(moved.items()))) if len(moved) == 1 else None


def _with_velocity(new: Symbol, name: Path, velocity: Symbol) -> Affine | None:
    """Write `w'` with the NEW velocity: by preference so that the gradient goes into the velocity alone."""
    keep, gain = velocity.coefficient(name), velocity.coefficient(_G)
    choices = [new.coefficient(_G) / gain] if gain else []
    choices += [new.coefficient(name) / keep] if keep else [0.0]
    for share in choices:
        rest = _tidy(
            {
                n: _difference(new.coefficient(n), share * velocity.coefficient(n))
                for n in new.terms.keys() | velocity.terms.keys()
            }
        )
        if name not in rest:
            held = Velocity(
                None if name == _V else name,
                keep,
                gain,
                velocity.coefficient(_W),
                _constants(velocity.terms, name),
                share,
            )
            return Affine(rest.get(_W, 0.0), rest.get(_G, 0.0), _constants(rest), held)
    return None


def _difference(a: float, b: float) -> float:
    """`a - b`, without the rounding that would hide an exact 0 or 1 (and cost a pass over the weights)."""
    d = a - b
    slack = 4e-16 * (abs(a) + abs(b))
    return 0.0 if abs(d) <= slack else 1.0 if abs(d - 1.0) <= slack else d


def _tidy(terms: dict[Path, float]) -> dict[Path, float]:
    return {n: c for n, c in terms.items() if c != 0.0}


def _constants(terms: dict[Path, float], *without: Path) -> Terms:
    return tuple(sorted(((n, c) for n, c in terms.items() if c != 0 and n not in (_W, _G, *without)), key=repr))


def _symbols(tree: Any, path: Path, size: int) -> Any:
    """The same tree with vectors as symbols and numbers as numbers."""
    if isinstance(tree, Tensor):
        if tree.dim() == 0:
            return tree.item()
        return Symbol({path: 1.0}) if tree.shape == (size,) else _Opaque()
    if isinstance(tree, Mapping):
        return {k: _symbols(v, (*path, k), size) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return _sequence(tree, [_symbols(v, (*path, i), size) for i, v in enumerate(tree)])
    return tree if isinstance(tree, bool | int | float | str | type(None)) else _Opaque()


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _copied(v) for k, v in tree.items()}
    return _sequence(tree, [_copied(v) for v in tree]) if isinstance(tree, list | tuple) else tree


def _sequence(like: Any, items: list[Any]) -> Any:
    """A list, tuple or named tuple, as `like` is."""
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)


def _changes(given: Any, returned: Any, path: Path) -> Iterator[tuple[Path, Symbol]]:
    """Leaves of the carry that became another combination. A number that changes is beyond an affine step."""
    if isinstance(given, Symbol):
        if not isinstance(returned, Symbol):
            raise NotAffine
        if _tidy(returned.terms) != {path: 1.0}:
            yield path, returned
    elif isinstance(given, Mapping):
        if not isinstance(returned, Mapping) or given.keys() != returned.keys():
            raise NotAffine
        for k in given:
            yield from _changes(given[k], returned[k], (*path, k))
    elif isinstance(given, list | tuple):
        if type(given) is not type(returned) or len(given) != len(returned):
            raise NotAffine
        for i, (a, b) in enumerate(zip(given, returned)):
            yield from _changes(a, b, (*path, i))
    elif returned is not given:
        raise NotAffine


def _key(tree: Any, size: int) -> object:
    """What `_symbols` sees of a tree, as a key: its structure, which leaves are vectors, its numbers."""
    if isinstance(tree, Tensor):
        return tree.item() if tree.dim() == 0 else tree.shape == (size,)
    if isinstance(tree, Mapping):
        return tuple((k, _key(v, size)) for k, v in tree.items())
    if isinstance(tree, list | tuple):
        return (type(tree), *(_key(v, size) for v in tree))
    return (type(tree), tree) if isinstance(tree, bool | int | float | str | type(None)) else type(tree)
