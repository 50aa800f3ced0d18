"""Where claims and their results lie: `benchmarks/claims` and its `results/`."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedloom.errors import ConfigError, unknown
from fedloom.method import catalogue

from .claim import Claim


def folder() -> Path:
    """`benchmarks/claims` of the repository this package is installed from, or of the current directory.

    Raises:
        ConfigError: neither is a checkout.
    """
    for root in (Path(__file__).resolve().parents[3], Path.cwd()):
        if (root / "benchmarks" / "claims").is_dir():
            return root / "benchmarks" / "claims"
    raise ConfigError("claims are part of the repository, not of the installed package: clone it, and run there")


def available(family: str | None = None) -> dict[str, Path]:
    """Claims by name; only those of methods of a family where one is given."""
    found = {p.stem: p for p in sorted(folder().glob("*.py")) if not p.stem.startswith("_")}
    if family is None:
        return found
    families = {cls.card.family for cls in catalogue().values()}
    if family not in families:
        raise unknown("family", family, families)
    return {n: p for n, p in found.items() if catalogue()[load(n).method].card.family == family}


def load(name: str) -> Claim:
    """The claim in `benchmarks/claims/<name>.py`.

    Raises:
        ConfigError: no such file, or it has no `claim`.
    """
    found = available()
    if name not in found:
        raise unknown("claim", name, found)
    if str(folder()) not in sys.path:
        sys.path.insert(0, str(folder()))  # claims share settings: `from _settings import images`
    spec = importlib.util.spec_from_file_location(f"fedloom_claim_{name.replace('-', '_')}", found[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    claim = getattr(module, "claim", None)
    if not isinstance(claim, Claim):
        raise ConfigError(f"{found[name]} defines no `claim = Claim(...)`")
    return claim


def results() -> dict[str, dict[str, Any]]:
    """Every result on file, by claim."""
    return {p.stem: json.loads(p.read_text()) for p in sorted((folder() / "results").glob("*.json"))}


def outdated(name: str) -> str:
    """Why a claim is to be run: it has no result, or what was changed since the commit of its result; "" where neither.

    Looked at are the claim, the settings it shares with others, and the files of its arms' methods, with those of the
    family that they build on.
    """
    path = folder() / "results" / f"{name}.json"
    if not path.exists():
        return "not run yet"
    result = json.loads(path.read_text())
    arms = {arm["method"] for arm in result["arms"].values()}
    code = {cls.__module__ for id in arms if id in catalogue() for cls in catalogue()[id].__mro__}
    files = [sys.modules[module].__file__ for module in code if module.startswith("fedloom.methods.")]
    files += _with_settings(available()[name])
    try:
        changed = _git("diff", "--name-only", str(result["commit"]), "--", *map(str, files))
    except (OSError, subprocess.CalledProcessError):
        return "nobody knows what has changed since it was run"
    listed = ", ".join(sorted(Path(line).name for line in changed.splitlines()))
    return f"changed since: {listed}" if listed else ""


def _with_settings(claim: Path) -> list[Path]:
    """The file of a claim, and those beside it that it imports, or that these import."""
    found = [claim]
    for file in found:  # it grows
        shared = re.findall(r"^(?:from|import) (_\w+)", file.read_text(), re.MULTILINE)
        there = [path for name in shared if (path := file.with_name(f"{name}.py")).exists()]
        found += [path for path in dict.fromkeys(there) if path not in found]
    return found


def commit() -> dict[str, Any]:
    """Commit of the checkout, and whether anything but what claims write differs from it."""
    written = re.compile(r"benchmarks/claims/(results/|curves/|\w+\.md$)")
    try:
        changed = [line for line in _git("status", "--porcelain").splitlines() if not written.search(line)]
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder(), capture_output=True, text=True, check=True).stdout.strip()
