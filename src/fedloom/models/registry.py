"""Names and specs of networks: `build("cnn:width=0.5", (1, 28, 28), 10)`.

A spec is `name[:option,...]`. An option is `key=value`; bare values belong to the network's first option, so
that `mlp:64,64` is `mlp:hidden=64x64`. A list of numbers after `=` is written with `x`.

A network of one's own is `module:Class` or `file.py:Class`, its arguments behind it: `nets.py:Net:width=64`. Where it
has arguments called `input_shape` and `classes`, it is told them as the networks here are.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fedloom.errors import ConfigError, unknown
from fedloom.keyed import seed_of
from fedloom.named import is_own, own, split

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

    def make(self, input_shape: tuple[int, ...], classes: int, options: Mapping[str, Any]) -> nn.Module:
        """The network for samples of this shape and that many outputs."""
        return self.builder(input_shape, classes, **options)


@dataclass(frozen=True)
class Own(Entry):
    """A network of one's own: a class or function that makes one, with whatever arguments it has."""

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        named = inspect.signature(self.builder).parameters
        return {k: p for k, p in named.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    @property
    def options(self) -> dict[str, Any]:
        """Argument -> a value of its kind: its default, or what its annotation names; `...` where neither tells."""
        return {k: _such(p) for k, p in self.parameters.items() if k not in _TOLD}

    def make(self, input_shape: tuple[int, ...], classes: int, options: Mapping[str, Any]) -> nn.Module:
        """The network, told shape and outputs where it has arguments for them.

        Raises:
            ConfigError: an argument it needs is not given, its code fails, or what it gives is no network.
        """
        told = {k: v for k, v in zip(_TOLD, (input_shape, classes)) if k in self.parameters}
        missing = [k for k, p in self.parameters.items() if p.default is p.empty and k not in {**told, **options}]
        if missing:
            such = f"{self.name}:{','.join(f'{k}=VALUE' for k in missing)}"
            raise ConfigError(f"the network {self.name!r} needs {' and '.join(missing)}: {such}")
        try:
            net = self.builder(**told, **options)
        except Exception as e:  # whatever code of the user's own raises
            raise ConfigError(f"the network {self.name!r} cannot be made: {type(e).__name__}: {e}") from e
        if not isinstance(net, nn.Module):
            raise ConfigError(f"{self.name!r} makes no network, an nn.Module: it gave {net!r}")
        return net


_TOLD = ("input_shape", "classes")


def _such(p: inspect.Parameter) -> Any:
    if p.default not in (p.empty, None) and type(p.default) is not int:
        return p.default
    kinds = {"tuple": (), "list": (), "Sequence": (), "bool": False, "float": 0.0, "int": 0, "str": ""}
    said = inspect.formatannotation(p.annotation)
    return next((kinds[k] for k in kinds if re.search(rf"\b{k}\b", said)), ...)


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
    if name not in _entries and is_own(name):
        made = own(name, "network")
        if not callable(made) or isinstance(made, nn.Module):
            raise ConfigError(f"{name!r} is no class or function that makes a network, an nn.Module: it is {made!r}")
        return Own(name, cast(Builder, made))
    if name not in _entries:
        raise unknown("model", name, _entries, call="One of your own is named as file.py:Net, or mypackage.module:Net.")
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

    Raises ConfigError for an unknown name or option, a value of the wrong kind, a shape it cannot take, or code of
    one's own that cannot be loaded or makes no network.
    """
    name, given = parse(spec)
    if not _whole(classes) or classes < 1:
        raise ConfigError(f"classes must be a whole number of at least 1, not {classes!r}")
    entry = describe(name)
    sizes = tuple(input_shape) if isinstance(input_shape, Sequence) else None
    if sizes is None or not all(_whole(n) and n >= 1 for n in sizes):
        raise ConfigError(f"input_shape must be the shape of one sample, such as (1, 28, 28), not {input_shape!r}")
    if not sizes and not isinstance(entry, Own):
        raise ConfigError(
            f"input_shape must be the shape of one sample, such as (1, 28, 28), not (): the model {name} takes samples "
            f"with an axis of features. Numbers are given as x[:, None]"
        )
    for key, value in options.items():
        _check_option(entry, key)
        if not _fits(entry.options[key], value):
            raise _refusal(entry, key, value)
    with seeded(seed):
        return entry.make(tuple(int(n) for n in sizes), int(classes), given | options)


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and typed options: `parse("mlp:64,64,dim=32") == ("mlp", {"hidden": (64, 64), "dim": 32})`."""
    name, items = spec_of(spec)
    entry = describe(name)
    texts: dict[str, list[str]] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            key, value = next(iter(entry.options), key), key
        elif key in texts:
            raise ConfigError(f"option {key!r} is given twice in {spec!r}")
        _check_option(entry, key)
        texts.setdefault(key, []).append(value)
    return entry.name, {key: _typed(entry, key, values) for key, values in texts.items()}


def spec_of(spec: str) -> tuple[str, list[str]]:
    """A spec as the name of a network and its options, unread: nothing is imported."""
    name, _, rest = spec.partition(":")
    if name.strip() not in _entries and is_own(split(spec, "network")[0]):
        return split(spec, "network")
    return name.strip(), [part for text in rest.split(",") if (part := text.strip())]


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
    if kind is not str and kind not in _TAKES:
        return _number(",".join(texts))
    try:
        if kind is tuple:
            return tuple(int(number) for text in texts for number in text.split("x"))
        (text,) = texts
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise _refusal(entry, key, ",".join(texts)) from None


def _number(text: str) -> Any:
    """The number a text is, or the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _fits(default: Any, value: Any) -> bool:
    """Whether a value is of the kind this default shows."""
    if default is not None and not isinstance(default, tuple | bool | str | int | float):
        return True
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
