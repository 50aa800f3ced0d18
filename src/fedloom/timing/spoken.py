"""Parts of a world that can be said on a command line: `wifi`, `markov:0.9,0.5`, `ai-benchmark:since=2018`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Self

from fedloom.errors import ConfigError, unknown


class Spoken:
    """Base of frozen dataclasses with a short text form: a name, then values in the order of the fields or by name.

    A family (devices, networks, availability) is a class whose `known()` lists what can be named; the text changes the
    fields of one of these.
    """

    family: ClassVar[str] = "part"

    @classmethod
    def known(cls) -> Mapping[str, Any]:
        """What each name stands for."""
        raise NotImplementedError

    @classmethod
    def spelled(cls) -> str:
        """What an option that takes such a part is called."""
        return f"one of {', '.join(cls.known())}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The part a text names.

        Raises:
            ConfigError: an unknown name or field, one said twice, or a value that is not of its field's type.
        """
        name, _, rest = text.strip().partition(":")
        if name not in cls.known():
            raise unknown(cls.family, name, cls.known())
        base = cls.known()[name]
        places = [f.name for f in fields(base) if f.name != "name"]
        changed: dict[str, Any] = {}
        for k, piece in enumerate(p for p in re.split(r"\s*,\s*", rest) if p):
            field, equals, value = piece.partition("=")
            if not equals:
                field, value = (places[k] if k < len(places) else ""), piece
            if field not in places:
                raise ConfigError(f"{cls.family} {name!r} takes {_listed(base)}; given {piece!r}")
            if field in changed:
                raise ConfigError(f"{cls.family} {text.strip()!r} says {field} twice: {changed[field]} and {value}")
            try:
                changed[field] = _like(getattr(base, field), value)
            except ValueError:
                was = f"{field}={getattr(base, field)}"
                raise ConfigError(f"{cls.family} {name!r} takes a number, as in {was}; given {piece!r}") from None
        return replace(base, **changed)

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        given: Any = self
        for name, base in self.known().items():
            if type(base) is type(self) and getattr(base, "name", name) == getattr(self, "name", name):
                changed = [f for f in fields(given) if getattr(self, f.name) != getattr(base, f.name)]
                told = ",".join(f"{f.name}={getattr(self, f.name)}" for f in changed)
                return name + (f":{told}" if told else "")
        raise ConfigError(f"{self!r} cannot be written as text; a run with it is repeated from Python")


def _like(old: str | int | float, text: str) -> str | int | float:
    """A value of the same type."""
    return text if isinstance(old, str) else int(text) if isinstance(old, int) else float(text)


def _listed(base: Any) -> str:
    return ", ".join(f"{f.name}={getattr(base, f.name)}" for f in fields(base) if f.name != "name") or "no values"
