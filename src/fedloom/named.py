"""Code of one's own by name: `package.module:Class`, or `folder/file.py:Class`; its settings behind it."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import ConfigError


def split(text: str, kind: str = "method") -> tuple[str, list[str]]:
    """`"fedprox:mu=1,server_lr=2"` as its name and settings; a colon before a class is part of the name."""
    found = re.fullmatch(r"([^=]*?)(?::([\w.]+=.*))?", text)
    if found is None:
        raise ConfigError(f"a {kind} with settings is written NAME:key=value,key=value; given {text!r}")
    name, rest = found[1], found[2] or ""
    own, _, bare = name.rpartition(":")
    if is_own(own):
        raise ConfigError(f"settings of {own} are written name=value: {own}:width=5; given {text!r} with {bare!r}")
    return name, [part for part in re.split(r",(?=[\w.]+=)", rest) if part]


def is_own(name: str) -> bool:
    """Whether a name without settings says where the code is: something, a colon, and what is in it."""
    return re.fullmatch(r".+:[^\W\d][\w.]*", name) is not None


def own(name: str, kind: str) -> Any:
    """What `module:Class` or `file.py:Class` names, imported.

    Args:
        kind: what it is to be, for messages: "method", "network".

    Raises:
        ConfigError: it cannot be loaded; says what Python says.
    """
    where, _, what = name.rpartition(":")
    try:
        return attrgetter(what)(_file(where) if where.endswith(".py") else importlib.import_module(where))
    except ConfigError:
        raise
    except Exception as e:  # whatever code of the user's own raises
        said = f"no file {where!r} in {Path.cwd()}" if isinstance(e, FileNotFoundError) else f"{type(e).__name__}: {e}"
        raise ConfigError(f"cannot load the {kind} {name!r}: {said}") from e


def name_of(thing: Any) -> str:
    """What `own` finds a class or function by: its module and name, or its file where that is how it was named."""
    return f"{_FILES.get(thing.__module__, thing.__module__)}:{thing.__qualname__}"


_FILES: dict[str, str] = {}
"""Modules that were named by their file, and how."""


def sources() -> dict[str, str]:
    """Modules that were named by their file, as text: who has not the file makes them of it."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in _FILES}
    return {name: Path(file).read_text() for name, file in files.items() if file and Path(file).exists()}


def _file(where: str) -> ModuleType:
    """A file as a module called as it is; what lies beside it can be imported there, as under `python file.py`."""
    path = Path(where).resolve()
    name = path.stem
    if (there := sys.modules.get(name)) is not None:
        if Path(there.__file__ or "").resolve() == path:
            return there
        raise ConfigError(f"{where} cannot be loaded: another module is called {name!r}. Give the file another name")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _FILES[name] = where
    return module
