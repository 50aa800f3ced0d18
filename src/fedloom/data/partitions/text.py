"""Partitions as text, the way the command line and recipes write them: `"rotation:45/dirichlet:0.3"`."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from fedloom.checked import spell
from fedloom.errors import ConfigError, unknown

from .base import Partition
from .dirichlet import Dirichlet, EmbeddingDirichlet, Quantity
from .equal import IID, Shards
from .groups import Domains, Natural
from .shifts import FEATURE_SHIFTS, ConceptShift, FeatureShift

PARTITIONS: dict[str, tuple[type[Partition], dict[str, Any]]] = {
    **{kind.spec: (kind, {}) for kind in (IID, Dirichlet, EmbeddingDirichlet, Shards, Quantity, Natural, Domains)},
    **{kind: (FeatureShift, {"kind": kind}) for kind in FEATURE_SHIFTS},
    "concept": (ConceptShift, {}),
}


def parse_partition(text: str | Partition) -> Partition:
    """A partition from its text form: `name[:value,...,key=value][/base]`.

    `"iid"`, `"dirichlet:0.1"`, `"dirichlet:0.1,least=10,by=group"`, `"shards:2"`, `"natural"`,
    `"rotation:45/dirichlet:0.3"`; `str(partition)` gives the text back.

    Raises:
        ConfigError: an unknown name or option (with the nearest known one), or a value that does not fit.
    """
    if isinstance(text, Partition):
        return text
    if not isinstance(text, str):
        raise ConfigError(f"a partition is an object or text: Dirichlet(0.1), 'dirichlet:0.1'; given {text!r}")
    own, _, base = text.strip().partition("/")
    name, _, rest = own.partition(":")
    name = name.strip().lower().replace("color", "colour")
    if name not in PARTITIONS:
        raise unknown("partition", name, PARTITIONS, 'For example "dirichlet:0.1" or "rotation:45/iid".')
    kind, preset = PARTITIONS[name]
    options = dict(preset)
    settable = [f.name for f in fields(kind) if f.name not in ("base", "encoder", *preset)]
    for i, item in enumerate(part.strip() for part in rest.split(",") if part.strip()):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            if i >= len(settable):
                raise ConfigError(f"{name} takes {', '.join(settable) or 'no values'}; given {rest!r}")
            key, value = settable[i], item
        if key not in settable:
            raise unknown(f"option of the partition {name!r}", key, settable)
        if key in options:
            raise ConfigError(f"{text!r} gives {key} twice")
        options[key] = _value(kind, name, key, value)
    if base:
        if "base" not in {f.name for f in fields(kind)}:
            raise ConfigError(
                f"{name!r} has no base partition; only {', '.join((*FEATURE_SHIFTS, 'concept'))} wrap another. "
                f"Given {text!r}"
            )
        options["base"] = parse_partition(base)
    missing = [
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING and f.name not in options
    ]
    if missing:
        raise ConfigError(f"the partition {name!r} needs {missing[0]}: for example {name}:{_EXAMPLES[name]}")
    return kind(**options)


_EXAMPLES = {
    "dirichlet": "0.1",
    "embedding": "0.1",
    "quantity": "0.5",
    "rotation": "45",
    "noise": "0.3",
    "colour": "0.5",
}


def _value(kind: type[Partition], name: str, key: str, text: str) -> Any:
    wanted = get_type_hints(kind)[key]
    try:
        return wanted(text)
    except ValueError:
        raise ConfigError(f"{key} of the partition {name!r} is {spell(wanted)}; given {text!r}") from None
