"""`config.toml`: complete, so that the run can be repeated from it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from fedloom.channel.stage import Channel
from fedloom.errors import ConfigError
from fedloom.timing.world import World
from fedloom.trees import is_mapping, is_row

from . import files
from .describe import plain, said, versions
from .options import written

if TYPE_CHECKING:
    from .experiment import Experiment
    from .loop import Run


def write_config(run: Run, then: str) -> None:
    """What was decided for a run, and under `[run]` what belongs to this run alone; `then`: where the disk is full."""
    assert run.out is not None
    federation = run.experiment.federation
    more = {
        "data_sha256": federation.sha256,
        "clients": len(federation),
        "federation": {k: str(v) for k, v in federation.info.items()},
        "versions": versions(),
        "chosen": run.choices,
    }
    text = configuration(run.experiment) + "\n" + tomli_w.dumps({"run": _without_none(more)})
    files.replace(run.out / "config.toml", text, then)


def choices_in(path: Path) -> dict[str, str]:
    """What the run of this `config.toml` measured and chose; nothing where it is not there, or says nothing of it."""
    if not path.exists():
        return {}
    try:
        told = tomllib.loads(path.read_text()).get("run", {}).get("chosen", {})
    except ValueError as e:
        raise ConfigError(f"{path} is not TOML: {e}") from None
    return {str(k): str(v) for k, v in told.items()}


def configuration(e: Experiment) -> str:
    """All that was decided for a run, as TOML: its recipe, or what the objects say of themselves that it was made of.
    Such a run needs them to be repeated, and says so; runs that differ in anything but their seed differ in this."""
    return e.recipe.complete().to_toml() if e.recipe is not None else tomli_w.dumps(_without_none(_of_objects(e)))


def _of_objects(e: Experiment) -> dict[str, Any]:
    world = e.world or World()
    return {
        "method": e.method.card.id,
        "data": e.federation.name,
        "clients": len(e.federation),
        "partition": str(e.federation.info.get("partition", "")),
        "rounds": e.rounds,
        "seed": e.seed,
        "engine": e.engine,
        "workers": e.workers,
        "device": str(e.device),
        "dtype": str(e.dtype).removeprefix("torch."),
        "evaluate_every": e.evaluate_every,
        "on_failure": e.on_failure,
        "per_client": e.per_client,
        "channel": [str(stage) for stage in Channel.of(e.channel).stages],
        "made_in_python": "task, data and method are objects of a program; run it to repeat this",
        "task": said(e.task),
        "clock": None if e.clock is None else type(e.clock).__name__,
        "before": None if e.before is None else type(getattr(e.before, "state", e.before)).__name__,
        "behave": {
            str(id): getattr(program, "__qualname__", said(program)) for id, program in (e.behave or {}).items()
        },
        "set": _settings(e.method),
        "world": _settings(world),
    }


def _settings(thing: Any) -> Mapping[str, Any]:
    """As a recipe writes them; where a value has no text (a function within a function, a device for each client), as
    they print."""
    try:
        return written(thing)
    except ConfigError:
        return plain({f.name: getattr(thing, f.name) for f in fields(thing)})


def _without_none(value: Any) -> Any:
    if is_mapping(value):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if is_row(value):
        return [_without_none(v) for v in value if v is not None]
    return value
