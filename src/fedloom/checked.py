"""Arguments that are told at once when their name is unknown, or their value of another kind than the annotation says.

Kinds that are checked: numbers, texts, truth values, choices, tuples of these, and records that are checked themselves.
What a value may be beyond its kind (lr > 0), each class says itself.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar, Literal, NoReturn, ParamSpec, Self, TypeVar, Union, get_args, get_origin

import numpy as np

from .errors import ConfigError, unknown

P = ParamSpec("P")
T = TypeVar("T")

_PLAIN: dict[Any, tuple[Any, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    bool: (bool, "true or false"),
    types.NoneType: (types.NoneType, "none"),
}


class Checked:
    """Base of the dataclasses a user makes: what they are given is checked before anything is done with it.

    Attributes:
        such: a call that makes one, for messages.
    """

    such: ClassVar[str] = ""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        if args or given:  # a copy is made with neither
            check(cls.__name__, kinds_of(cls), functools.partial(_defaults, cls), args, given)
        return super().__new__(cls)


def checked(make: Callable[P, T]) -> Callable[P, T]:
    """The same of the arguments of a function that makes something; its first one, a class, is not looked at."""

    @functools.wraps(make)
    def called(*args: P.args, **given: P.kwargs) -> T:
        parameters = [*inspect.signature(make).parameters.values()][1:]
        own = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        kinds = {p.name: _resolved(p.annotation, make.__module__) for p in own}
        here = given if own == parameters else {name: given[name] for name in given if name in kinds}  # others pass on
        most = sum(p.kind is not p.KEYWORD_ONLY for p in own)
        check(make.__name__, kinds, functools.partial(_given_by, own), args[1:], here, most)
        return make(*args, **given)

    return called


def check(
    title: str,
    kinds: Mapping[str, Any],
    defaults: Callable[[], Mapping[str, Any]],
    args: tuple[Any, ...],
    given: Mapping[str, Any],
    positional: int | None = None,
) -> None:
    """Refuse arguments of a call `title(*args, **given)`.

    Args:
        kinds: the annotation of each parameter, in order; `positional`: how many may come without their name.
        defaults: those of the parameters, for messages.

    Raises:
        ConfigError: too many, an unknown name, or a value that is not of its kind.
    """
    most = len(kinds) if positional is None else positional
    if len(args) > most:
        raise ConfigError(
            f"{title} takes {most} arguments without a name; given {len(args)}. It is {_call(title, defaults())}"
        )
    for name, value in {**dict(zip(kinds, args)), **given}.items():
        if name not in kinds:
            near = _near(name, value, kinds, defaults())
            raise ConfigError(f"{title} takes no {name!r}.{near} It is {_call(title, defaults())}")
        if not fits(value, kinds[name]):
            _refuse(title, name, value, kinds[name], defaults().get(name, MISSING))


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's kind; True for kinds that are not checked."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is Literal:
        return isinstance(value, tuple(map(type, args))) and value in args
    if kind is None or kind in _PLAIN:
        plain = _PLAIN[types.NoneType if kind is None else kind][0]
        return isinstance(value, plain) and (plain is bool or not isinstance(value, bool)) and value == value  # no NaN
    if origin is tuple or kind is tuple:
        return isinstance(value, tuple) and _each_fits(value, args)
    if isinstance(kind, type) and issubclass(kind, Checked):
        return isinstance(value, kind)
    return True


def as_python(value: Any) -> Any:
    """A number of NumPy as the Python number of its value; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value  # pyright: ignore[reportUnknownVariableType]


def spell(kind: Any) -> str:
    """A type in words a user types: `a number`, `a whole number or none`, `one of mean, sum`, `sgd or adam`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(spell(a) for a in args if a is not int or float not in args)  # a whole number is a number
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (tuple, list, frozenset):
        return "a comma-separated list of " + (spell(args[0]) if args else "values")
    if kind is None or kind in _PLAIN:
        return _PLAIN[types.NoneType if kind is None else kind][1]
    if isinstance(kind, type) and hasattr(kind, "spelled"):  # a class that has words of its own
        return getattr(kind, "spelled")()  # noqa: B009
    if isinstance(kind, type) and is_dataclass(kind):
        return " or ".join(c.__name__.lower() for c in family(kind))
    return "module:function" if origin is not None else getattr(kind, "__name__", str(kind))


def family(kind: type[Any]) -> list[type[Any]]:
    """The class and all below it that can be named: not those that only say what all of them have."""
    every = (kind, *(c for sub in kind.__subclasses__() for c in family(sub)))
    return [c for c in every if "abstract" not in vars(c) and not inspect.isabstract(c)]


@functools.cache
def kinds_of(cls: type[Any]) -> dict[str, Any]:
    """Argument -> annotation of a dataclass; `Any` where a name in it is known to type checkers alone."""
    homes = {name: c.__module__ for c in reversed(cls.__mro__) for name in vars(c).get("__annotations__", ())}
    return {f.name: _resolved(f.type, homes[f.name]) for f in fields(cls) if f.init}


# --------------------------------------------------------------------------------------------------- pieces


def _resolved(annotation: Any, module: str) -> Any:
    try:
        return eval(annotation, vars(sys.modules[module])) if isinstance(annotation, str) else annotation
    except (NameError, TypeError):
        return Any


def _each_fits(value: tuple[Any, ...], args: tuple[Any, ...]) -> bool:
    if not args:
        return True
    if args[-1] is Ellipsis:
        return all(fits(v, args[0]) for v in value)
    return len(value) == len(args) and all(map(fits, value, args))


def _defaults(cls: type[Any]) -> dict[str, Any]:
    every = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(cls) if f.init}
    return {name: default for name, default in every.items() if default is not MISSING}


def _given_by(parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _refuse(title: str, name: str, value: Any, kind: Any, default: Any) -> NoReturn:
    if get_origin(kind) is Literal and isinstance(value, str):
        raise unknown(name, value, map(str, get_args(kind)))
    given = f"the class {value.__name__}" if isinstance(value, type) else shown(value)
    such = f", as in {name}={shown(default)}" if default is not MISSING and default is not None else ""
    raise ConfigError(f"{title}({name}={given}) cannot be: {name} takes {_in_python(kind)}{such}")


def _in_python(kind: Any) -> str:
    """A type in words, as a value is given in Python."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_python(a) for a in args if a is not int or float not in args)
    if origin is tuple or kind is tuple:
        return "a tuple"
    if isinstance(kind, type) and issubclass(kind, Checked):
        return f"an instance of {kind.__name__}" + (f", such as {kind.such}" if kind.such else "")
    return spell(kind)


def shown(value: Any) -> str:
    """A value as it would be written: of a record, what is not as it is by default."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    own = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    default = _defaults(type(value))
    told = {name: v for name, v in own.items() if name not in default or default[name] != v}
    return _call(type(value).__name__, told)


def _near(name: str, value: Any, kinds: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The nearest names; or where a record inside has that very field, the record with it."""
    for field, default in defaults.items():
        if is_dataclass(default) and name in {f.name for f in fields(default)}:
            return f" Did you mean {field}={type(default).__name__}({name}={value!r})?"
    near = difflib.get_close_matches(name, kinds, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _call(title: str, defaults: Mapping[str, Any]) -> str:
    return title + "(" + ", ".join(f"{name}={shown(default)}" for name, default in defaults.items()) + ")"
