"""Runs: experiments, checkpoints, logs, recipes, reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedloom.errors import CheckpointError

from .comparison import Comparison, compare
from .experiment import Experiment, Observer, run
from .loop import Run
from .recipe import Recipe


def resume(folder: str | Path, observers: Sequence[Observer] = ()) -> Run:
    """Continue the run in a folder, to the same end as if it had never stopped.

    Raises:
        CheckpointError: nothing to resume from, or the run was made from Python objects (run that program with
            `Experiment(...).run(resume=True)`).
    """
    folder = Path(folder)
    config = folder / "config.toml"
    if not config.exists():
        inside = sorted(str(path.parent) for path in folder.glob("*/config.toml"))
        hint = f". Runs are in {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}" if inside else ""
        if inside and (folder / inside[0]).name.rpartition("-seed")[1]:
            hint += f"; a comparison goes on with its own line again, and --out {folder}"
        raise CheckpointError(f"{folder} holds no run: there is no config.toml in it{hint}")
    if "made_in_python" in config.read_text():
        raise CheckpointError(
            f"{folder} was made by a Python program from objects; continue it there, with "
            f"Experiment(..., out={str(folder)!r}).run(resume=True)"
        )
    experiment = Recipe.from_toml(config).experiment(out=folder)
    experiment.observers = observers
    return experiment.run(resume=True)


__all__ = ["Comparison", "Experiment", "Observer", "Recipe", "Run", "compare", "resume", "run"]
