"""Names and specs of the reference networks: `build("cnn:width=0.5", (1, 28, 28), 10)`.

A spec is `name[:option,...]`. An option is `key=value`; bare values belong to the network's first option, so
that `mlp:64,64` is `mlp:hidden=64x64`. A list of numbers after `=` is written with `x`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import nn

from fedloom.errors import ConfigError, unknown
from fedloom.keyed import seed_of

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)


@dataclass(frozen=True)
class Entry:
    """One registered network: its name and builder, and what the builder's signature and docstring say."""

    name: str
    builder: Builder

    @property
    def summary(self) -> str:
        """The first line of the builder's docstring."""
        return (inspect.getdoc(self.builder) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their defaults, in the order of the builder's signature."""
        parameters = inspect.signature(self.builder).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_entries: dict[str, Entry] = {}
_initialising = threading.RLock()


def register(name: str) -> Callable[[B], B]:
    """Register `builder(input_shape, classes, *, option=default, ...) -> nn.Module` under a name.

    An option's default gives its type: a number, a string, a truth value or a tuple of whole numbers; None
    stands for a whole number that may be left out. Raises ConfigError when the name is taken.
    """

    def add(builder: B) -> B:
        if name in _entries:
            raise ConfigError(f"model {name!r} is already registered by {_entries[name].builder.__module__}")
        _entries[name] = Entry(name, builder)
        return builder

    return add


def names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_entries)


def describe(name: str) -> Entry:
    """The entry of one name: `describe("cnn").options`. Raises ConfigError for a name that is not known."""
    if name not in _entries:
        raise unknown("model", name, _entries, call="Use models.build('cnn', (1, 28, 28), 10).")
    return _entries[name]


def build(
    spec: str, input_shape: Sequence[int], classes: int, *, seed: int | torch.Generator = 0, **options: Any
) -> nn.Module:
    """The network a spec names, freshly initialised.

    input_shape: shape of one sample, without the batch axis: (channels, height, width), (channels, steps),
        (features,) or, for text, (tokens,).
    classes: number of outputs, at least 1 (1: a regression, or one logit); for `char-*` the alphabet's size.
    seed: the weights are a function of this alone; torch's global state is neither read nor changed. From a
        Generator one number is drawn.
    options: the same as in the spec, for callers that hold values: build("mlp", (64,), 10, hidden=(32,)).

    Raises ConfigError for an unknown name or option, a value of the wrong kind, a shape it cannot take.
    """
    name, given = parse(spec)
    if not _whole(classes) or classes < 1:
        raise ConfigError(f"classes must be a whole number of at least 1, not {classes!r}")
    sizes = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if not sizes or not all(_whole(n) and n >= 1 for n in sizes):
        raise ConfigError(f"input_shape must be the shape of one sample, such as (1, 28, 28), not {input_shape!r}")
    entry = describe(name)
    for key, value in options.items():
        _check_option(entry, key)
        if not _fits(entry.options[key], value):
            raise _refusal(entry, key, value)
    with seeded(seed):
        return entry.builder(tuple(int(n) for n in sizes), int(classes), **(given | options))


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and typed options: `parse("mlp:64,64,dim=32") == ("mlp", {"hidden": (64, 64), "dim": 32})`."""
    name, _, rest = spec.partition(":")
    entry = describe(name.strip())
    texts: dict[str, list[str]] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            key, value = next(iter(entry.options), key), key
        elif key in texts:
            raise ConfigError(f"option {key!r} is given twice in {spec!r}")
        _check_option(entry, key)
        texts.setdefault(key, []).append(value)
    return entry.name, {key: _typed(entry, key, values) for key, values in texts.items()}


def _check_option(entry: Entry, key: str) -> None:
    if key not in entry.options:
        raise unknown(f"option of the model {entry.name}:", key, entry.options)


_TAKES: dict[type, str] = {
    tuple: "whole numbers such as 64x64",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def _typed(entry: Entry, key: str, texts: list[str]) -> Any:
    """The value of an option, read as the type of its default."""
    default = entry.options[key]
    kind: type = int if default is None else type(default)
    try:
        if kind is tuple:
            return tuple(int(number) for text in texts for number in text.split("x"))
        (text,) = texts
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise _refusal(entry, key, ",".join(texts)) from None


def _fits(default: Any, value: Any) -> bool:
    """Whether a value is of the kind this default shows."""
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(_whole(number) for number in value)
    if default is None:
        return value is None or _whole(value)
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    return _whole(value) or (isinstance(default, float) and isinstance(value, Real) and not isinstance(value, bool))


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _refusal(entry: Entry, key: str, given: Any) -> ConfigError:
    default = entry.options[key]
    wanted = _TAKES.get(int if default is None else type(default), "one value")
    return ConfigError(f"option {key!r} of model {entry.name!r} takes {wanted}, not {given!r}")


@contextmanager
def seeded(seed: int | torch.Generator) -> Iterator[None]:
    """Run torch's default initialisers from a seed and put the global generator back afterwards.

    They draw from the generator of the process, hence the lock: two threads that build at once must not share
    its draws.
    """
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(1 << 62, (), generator=seed, device=seed.device))
    with _initialising, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "initial weights"))
        yield
