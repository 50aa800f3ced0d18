"""Hyperparameters as text: a frozen dataclass changed by dotted names, and written out again.

    configure(FedProx, {"mu": "0.1", "solver.lr": "0.05"}) == FedProx(mu=0.1, solver=SGD(lr=0.05))
    written(FedProx()) == {"mu": 0.01, "solver": "sgd", "solver.lr": 0.1, ...}

A value is read as the annotation of its field says. A field that holds a record (a solver, a partition, a
method inside a method) is chosen by name and then set by dotted names: `inner=fedprox`, `inner.mu=0.1`.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fedloom.checked import as_python, family, spell
from fedloom.data.partitions import Partition, parse_partition
from fedloom.errors import ConfigError
from fedloom.method import Method, method_named
from fedloom.named import is_own, name_of, own
from fedloom.timing.spoken import Spoken

T = TypeVar("T")
Scalar = str | int | float | bool
Options = Mapping[str, Scalar]

_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NONE = ("none", "null")


def configure(cls: type[T], options: Options, owner: str = "") -> T:
    """An instance of a dataclass with its defaults, changed by `options`.

    Args:
        options: field name or dotted path -> text (or a number or truth value, as TOML holds them).
        owner: what messages call it, by default the class.

    Raises:
        ConfigError: an unknown field (all fields with their defaults are listed), a value its field cannot
            take, a required field that is missing, or whatever the class refuses itself.
    """
    return _build(cls, {}, options, owner or _title(cls))


def written(thing: Any, prefix: str = "") -> dict[str, Scalar]:
    """Every hyperparameter by dotted name, in a form `configure` reads back.

    Raises:
        ConfigError: a value that text cannot name (a lambda, a tensor).
    """
    flat: dict[str, Scalar] = {}
    for f in _settable(type(thing)):
        value, name = getattr(thing, f.name), prefix + f.name
        flat[name] = _write(value, name)
        if is_dataclass(value) and not isinstance(value, Partition | Spoken):
            flat.update(written(value, name + "."))
    return flat


def listing(cls: type[Any]) -> str:
    """The fields with types and defaults on one line: `mu: a number = 0.01, cohort: a whole number = 10`."""
    hints = _hints(cls)
    return ", ".join(
        f"{f.name}: {spell(hints[f.name])}" + ("" if _default(f) is MISSING else f" = {_default(f)!r}")
        for f in _settable(cls)
    )


# --------------------------------------------------------------------------------------------------- building


def _build(cls: type[T], current: Mapping[str, Any], options: Options, owner: str) -> T:
    known = {f.name: f for f in _settable(cls)}
    for name in options:
        _check_known(name, known, cls, owner)
    hints, values = _hints(cls), dict(current)
    for name, f in known.items():
        nested = {n.partition(".")[2]: v for n, v in options.items() if n.startswith(name + ".")}
        if name in options:
            values[name] = _read(hints[name], options[name], f"{name} of {owner}")
        if nested:
            inner = values.get(name, _default(f))
            if inner is MISSING or not is_dataclass(inner):
                raise ConfigError(
                    f"{name} of {owner} has no options of its own; given {name}.{next(iter(nested))}. "
                    f"Set it whole: {name}=VALUE ({spell(hints[name])})"
                )
            values[name] = _build(type(inner), _values(inner), nested, f"{name} of {owner}")  # type: ignore[arg-type]
        elif name not in values and _default(f) is MISSING:
            raise ConfigError(f"{owner} needs {name} ({spell(hints[name])}): --set {name}=VALUE")
    return cls(**values)


def _check_known(name: str, known: Mapping[str, Any], cls: type[Any], owner: str) -> None:
    head = name.partition(".")[0]
    if head in known:
        return
    paths = [f"{f}.{g.name}" for f in known for g in _inner_fields(known[f])]
    near = difflib.get_close_matches(name, [*known, *paths], n=2, cutoff=0.5)
    # a key of a record inside, named without its path: `lr` for `solver.lr`
    near = [p for p in paths if p.partition(".")[2] == head] or near
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"{owner} has no option {name!r}.{hint} It takes: {listing(cls) or 'no options'}")


def _inner_fields(f: Field[Any]) -> tuple[Field[Any], ...]:
    inner = _default(f)
    return _settable(type(inner)) if inner is not MISSING and is_dataclass(inner) else ()


def _settable(cls: type[Any]) -> tuple[Field[Any], ...]:
    return tuple(f for f in fields(cls) if f.init)


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _values(thing: Any) -> dict[str, Any]:
    return {f.name: getattr(thing, f.name) for f in _settable(type(thing))}


def _title(cls: type[Any]) -> str:
    return cls.card.id if issubclass(cls, Method) and hasattr(cls, "card") else cls.__name__


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a name that is imported for type checkers only: the default's type says enough
        return {f.name: Any if _default(f) in (None, MISSING) else type(_default(f)) for f in _settable(cls)}


# --------------------------------------------------------------------------------------------- text to values


def _read(kind: Any, given: Scalar, what: str) -> Any:
    """The value of one field from text; numbers and truth values of a TOML file are read as their text."""
    text = str(given).lower() if isinstance(given, bool) else str(given).strip()
    try:
        return _value(kind, text)
    except ValueError as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"{what} takes {spell(kind)}; given {text!r}") from None


def _value(kind: Any, text: str) -> Any:
    """Raises ValueError where `text` is not of that kind."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _first(sorted(args, key=_RANK), text)
    if origin is Literal:
        return {str(a): a for a in args}[text] if text in map(str, args) else _refuse(text)
    if kind in (tuple, list, frozenset) or origin in (tuple, list, frozenset):
        return _sequence(origin or kind, args, text)
    if kind is None or kind is types.NoneType:
        return None if text.lower() in _NONE else _refuse(text)
    if kind is bool:
        return text.lower() in _YES if text.lower() in (*_YES, *_NO) else _refuse(text)
    if kind in (int, float):
        number = kind(text)
        return _refuse(text) if math.isnan(number) else number
    if kind in (str, Path):
        return kind(text)
    if isinstance(kind, type):
        if issubclass(kind, Partition):
            return parse_partition(text)
        if issubclass(kind, Spoken):
            return kind.parse(text)
        if issubclass(kind, Method):
            return method_named(text)()
        if is_dataclass(kind):
            return _record(kind, text)
    if origin is Callable or kind is Callable or str(origin) == "<class 'collections.abc.Callable'>":
        return _function(text)
    return _first([int, float, str], text) if kind is Any else _refuse(text)


def _RANK(kind: Any) -> int:
    """In a union None is tried first, numbers before records, text last (it reads anything)."""
    order = [types.NoneType, bool, int, float]
    return order.index(kind) if kind in order else (9 if kind is str else 5)


def _first(kinds: list[Any], text: str) -> Any:
    said: ConfigError | None = None  # a kind that knows better what is wrong
    for kind in kinds:
        try:
            return _value(kind, text)
        except ConfigError as e:
            said = e
        except ValueError:
            continue
    raise said or ValueError(text)


def _sequence(kind: Any, args: tuple[Any, ...], text: str) -> Any:
    parts = [p.strip() for p in text.strip("()[] ").split(",") if p.strip()]
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(parts) != len(args):
            return _refuse(text)
        return tuple(_value(a, p) for a, p in zip(args, parts))
    of = args[0] if args else Any
    return kind(_value(of, p) for p in parts)


def _record(kind: type[Any], text: str) -> Any:
    known = {c.__name__.lower(): c for c in family(kind)}
    return known[text.lower()]() if text.lower() in known else _refuse(text)


def _function(text: str) -> Any:
    return own(text, "function") if is_own(text) else _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


# --------------------------------------------------------------------------------------------- values to text


def _write(value: Any, name: str) -> Scalar:
    value = as_python(value)
    if value is None:
        return _NONE[0]
    if isinstance(value, str | int | float):  # bool is an int
        return value
    if isinstance(value, Path | Partition | Spoken):
        return str(value)
    if isinstance(value, tuple | list | frozenset):
        return ",".join(str(_write(v, name)) for v in value)
    if isinstance(value, Method):
        cls = type(value)
        ours = cls.__module__.startswith("fedloom.")
        return cls.card.id if ours else name_of(cls)
    if is_dataclass(value):
        return type(value).__name__.lower()
    where = getattr(value, "__qualname__", "")
    if callable(value) and where and "<" not in where:
        return name_of(value)
    raise ConfigError(f"{name}={value!r} cannot be written as text; a run with it is repeated from Python")


@dataclass(frozen=True)
class Setting:
    """One hyperparameter in words: its dotted name, what it takes, and its default ("" where it is required)."""

    name: str
    kind: str
    default: str


def fields_of(cls: type[Any]) -> list[Setting]:
    """Every hyperparameter of a dataclass, those of records inside by dotted name."""
    hints, found = _hints(cls), []
    for f in _settable(cls):
        default = _default(f)
        found.append(Setting(f.name, spell(hints[f.name]), "" if default is MISSING else str(_shown(default, f.name))))
        if default is not MISSING and is_dataclass(default) and not isinstance(default, Partition | Spoken):
            found += [Setting(f"{f.name}.{s.name}", s.kind, s.default) for s in _inner(default)]
    return found


def _inner(thing: Any) -> list[Setting]:
    """The settings of a record, with its own values as defaults."""
    values = {name: str(value) for name, value in written(thing).items()}
    return [Setting(s.name, s.kind, values.get(s.name, s.default)) for s in fields_of(type(thing))]


def _shown(value: Any, name: str) -> Scalar:
    try:
        return _write(value, name)
    except ConfigError:
        return repr(value)
