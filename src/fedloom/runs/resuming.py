"""What a run is continued from: all of it that lasts, as checkpoints hold it, and whether that is of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedloom.channel.stage import Channel
from fedloom.engines.base import Plan
from fedloom.errors import CheckpointError
from fedloom.method import Method
from fedloom.timing.world import World
from fedloom.written import dumps

from . import checkpoint
from .describe import said

if TYPE_CHECKING:
    from .experiment import Experiment
    from .loop import Run

UNFINISHED = f"{checkpoint.FOLDER}/unfinished"
"""Before the method's last word, so that more rounds can follow."""


def identity(e: Experiment) -> dict[str, str]:
    """What must be the same for a checkpoint to be continued; `before` only until the method has started."""
    before = getattr(e.before, "state", e.before)
    task = {f.name: getattr(e.task, f.name) for f in fields(e.task) if f.name != "model"}
    return {
        "method": e.method.card.id,
        "hyperparameters": said(e.method),
        "seed": str(e.seed),
        "data": e.federation.sha256,
        "dtype": str(e.dtype),
        "channel": said(Channel.of(e.channel).stages),
        "world": said(e.world or World()),
        "task": f"{type(e.task).__name__} with {said(task)}",
        "behave": said(dict(sorted((e.behave or {}).items()))),
        "before": "none" if before is None else f"{type(before).__name__} {sha256(dumps(before)).hexdigest()[:12]}",
    }


def networks(plan: Plan) -> list[str]:
    """The networks in words, piece by piece: what the numbers of a vector are."""
    return [
        f"{name}: {piece} {tuple(shape)}" + ("" if layout.offsets[piece] < layout.trainable else ", statistics")
        for name, layout in ((name, model.layout) for name, model in plan.models.items())
        for piece, shape in layout.shapes.items()
    ]


def content(run: Run) -> dict[str, Any]:
    """What a checkpoint of a run holds."""
    host = run.host
    return {
        "identity": run.identity,
        "networks": networks(run.plan),
        "state": host.state,
        "started": run.started,
        "memories": host.memories,
        "books": host.books,
        "holds": host.holds,
        "ledger": host.ledger,
        "spent": host.spent,
        "now": host.now,
        "meter": host.meter,
        "version": host.version,
        "posted": host.posted,
        "jobs": list(host.dispatch.jobs.values()),
        "mail": host.dispatch.mail,
        "cuts": host.dispatch.cuts_seen,
        "rows": run.rows,
        "wall": run.wall,
        "chosen": run.choices,
        "finished": len(run.rows) == run.experiment.rounds > 0,
        "draws": host.draws,
        "turns": host.turns,
        "notes": host.notes,
        "excluded": host.excluded,
        "participants": host.participants,
    }


def read(e: Experiment, out: Path, mine: Mapping[str, str]) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint in a run's folder from which this experiment can go on, and what is to be said of it; None
    where it was killed before there was one.

    Args:
        mine: the identity of the experiment.

    Raises:
        CheckpointError: there is none that is whole, or it is another run's, or further than this one goes.
    """
    written = [(out / name).exists() for name in ("config.toml", "metrics.jsonl")]
    if written == [True, False] and not checkpoint.found(out / checkpoint.FOLDER):
        return None, ["killed before its first checkpoint: it starts again"]
    device = torch.device(e.device)
    _, saved, notes = checkpoint.load(out / checkpoint.FOLDER, device)
    own_finish = type(e.method).finish is not Method.finish
    if own_finish and saved["finished"] and saved["version"] < e.rounds:
        _, saved, more = checkpoint.load(out / UNFINISHED, device)
        notes += more
    its = saved["identity"]
    if its.keys() != mine.keys() or "networks" not in saved:
        raise CheckpointError(f"{out} was written by another version of Fedloom; run it anew")
    differ = [k for k in its if mine[k] != its[k] and not (k == "before" and saved["started"])]
    if differ:
        told = "; ".join(f"{k}: then {its[k]}, now {mine[k]}" for k in differ)
        raise CheckpointError(f"{out} belongs to another experiment ({told})")
    if saved["version"] > e.rounds:
        raise CheckpointError(
            f"{out} has {saved['version']} rounds already, and rounds={e.rounds} is fewer; give "
            f"rounds={saved['version']} or more, or another folder"
        )
    return saved, notes


def restore(run: Run, saved: Mapping[str, Any]) -> None:
    """A run as it was when this was saved.

    Raises:
        CheckpointError: it was a run of another network.
    """
    host = run.host
    for then, now in zip_longest(saved["networks"], networks(run.plan), fillvalue="nothing more"):
        if then != now:
            raise CheckpointError(f"{run.out} belongs to another model (its weights: then {then}, now {now})")
    host.state = saved["state"]
    host.memories, host.books, host.holds = saved["memories"], saved["books"], saved["holds"]
    host.ledger, host.spent = saved["ledger"], saved["spent"]
    host.clock.set(saved["now"])
    host.meter = saved["meter"]
    host.version, host.posted = saved["version"], saved["posted"]
    host.dispatch.jobs = {p.number: p for p in saved["jobs"]}
    host.dispatch.mail = saved["mail"]
    host.dispatch.cuts_seen = saved["cuts"]
    host.notes, host.excluded, host.participants = saved["notes"], saved["excluded"], saved["participants"]
    host.draws, host.turns = saved["draws"], saved["turns"]
    host.dispatch.revive()
    run.rows, run.wall = saved["rows"], saved["wall"]
    if not saved["finished"] and host.version == run.experiment.rounds:
        del run.rows[host.version - 1 :]  # of a round like any other then, which is the last now
    run.resumed_from, run.started = host.version, saved["started"]
