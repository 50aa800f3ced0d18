"""A run under way or ended: its loop, its folder, its results."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
import torch
from torch import Tensor, nn

from fedloom.engines import make
from fedloom.errors import ConfigError, StateMutated
from fedloom.message import leaves
from fedloom.method import Method
from fedloom.replies import Evaluation
from fedloom.written import dumps, loads, safetensors_of

from . import checkpoint, files, resuming
from .config import choices_in, write_config
from .describe import COUNTS, flat, plain, reached, spent, versions
from .host import Host

if TYPE_CHECKING:
    import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]

    from .experiment import Experiment


class Run:
    """A run under way or ended.

    Attributes:
        history: one row per round, as a DataFrame; what is measured by evaluating is NaN in rounds without.
        summary: the figures of the whole run.
        state: the method's last state; `params` its vector, if it has one; `model` an ordinary module with it.
    """

    def __init__(self, experiment: Experiment, resume: bool = False) -> None:
        self.experiment = experiment
        self.out = Path(experiment.out) if experiment.out is not None else None
        self.rows: list[dict[str, Any]] = []
        self.wall = 0.0
        self.resumed_from: int | None = None
        self.started = False
        self.chosen = dict(experiment.choices or {})
        self._told: dict[str, str] | None = None  # the choices config.toml has
        saved = self._read_checkpoint() if resume else None
        self.plan = experiment.plan()
        self.host = Host(
            self.plan,
            lambda plan, answer: make(
                experiment.engine, plan, answer, experiment.workers, self.chosen, experiment.cluster
            ),
            experiment.clock,
        )
        if saved is not None:
            self._restore(saved)
        self.host.meter.single = experiment.per_client

    def __repr__(self) -> str:
        figures = ", ".join(f"{k} {v:.4g}" for k, v in self.summary["final"].items())
        told = f"{self.plan.method.card.title}, {self.host.version} of {self.experiment.rounds} rounds"
        return f"Run({told}{': ' if figures else ''}{figures})"

    # ------------------------------------------------------------ results
    @property
    def state(self) -> Any:
        return self.host.state

    @property
    def params(self) -> Tensor | None:
        params = getattr(self.host.state, "params", None)
        return params if isinstance(params, Tensor) else None

    @property
    def model(self) -> nn.Module:
        """The trained network as an ordinary module.

        Raises:
            ConfigError: this method has no single model.
        """
        if self.params is None or self.params.dim() != 1:
            raise ConfigError(
                f"{self.plan.method.card.title} has no single global model; look at run.state and run.memories"
            )
        return self.plan.model.to_module(self.params)

    @property
    def memories(self) -> dict[int, dict[str, Any]]:
        """What clients hold, by id (a simulation can look; a server cannot)."""
        return self.host.memories

    @property
    def choices(self) -> dict[str, str]:
        """What the engine measured and chose, or was told."""
        return self.chosen | self.host.engine.choices()

    @property
    def history(self) -> pd.DataFrame:
        return pd.DataFrame([flat(r) for r in self.rows])

    @property
    def summary(self) -> dict[str, Any]:
        e, plan = self.experiment, self.plan
        nothing: dict[str, Any] = {}
        last = next((r for r in reversed(self.rows) if "global" in r or "personal" in r), nothing)
        final = {k: v for k, v in flat(last).items() if "." in k and k.partition(".")[0] not in COUNTS}
        return {
            "method": plan.method.card.id,
            "engine": self.host.engine.name,
            "rounds": self.host.version,
            "final": final,
            "best": self._best(),
            "bytes_up": self.host.ledger.up,
            "bytes_down": self.host.ledger.down,
            "bytes_peers": self.host.ledger.peers,
            "virtual_seconds": self.host.now,
            "wall_seconds": round(self.wall, 3),
            "rounds_per_second": round(self.host.version / self.wall, 3) if self.wall > 0 else None,
            "excluded": sum(r.get("excluded", 0) for r in self.rows),
            "time": spent(self.rows),
            "participation": self.host.meter.fairness(len(plan.federation)),
            "reached": reached(self.rows, plan.task.headline[0]),
            "choices": self.choices,
            "hyperparameters": plain(asdict(plan.method) if is_dataclass(plan.method) else {}),
            "channel": [str(s) for s in plan.channel.stages],
            "privacy": plan.channel.report(self.host.spent),
            "clients": len(plan.federation),
            "seed": e.seed,
            "data": plan.federation.name,
            "data_sha256": plan.federation.sha256,
            "model": "+".join(plan.models),
            "parameters": plan.model.layout.size,
            "versions": versions(),
        }

    def _best(self) -> dict[str, Any] | None:
        """The round that was best on VALIDATION data; None without any. Test figures never choose."""
        name, sign = self.plan.task.headline
        judged = [r for r in self.rows if not math.isnan(r.get("validation", {}).get(name, math.nan))]
        if not judged:
            return None
        row = max(judged, key=lambda r: sign * r["validation"][name])
        return {
            "by": f"validation {name}",
            **{k: v for k, v in flat(row).items() if k.partition(".")[0] not in COUNTS},
        }

    def plot(self) -> go.Figure:
        """The headline metric against rounds.

        Raises:
            ConfigError: nothing was evaluated.
        """
        from .report import curves

        drawn = curves([self])
        if not drawn:
            e = self.experiment
            raise ConfigError(
                f"nothing was evaluated in this run (rounds={e.rounds}, evaluate_every={e.evaluate_every}), so there "
                f"is no curve; evaluate_every=1 makes one, and run.history has what else is known of each round"
            )
        return drawn[0]

    def report(self, path: str | Path | None = None) -> Path:
        """Write the self-contained HTML report."""
        from .report import write_report

        target = Path(path) if path is not None else (self.out or Path(".")) / "report.html"
        return write_report([self], target)

    # ------------------------------------------------------------ the loop
    def go(self) -> Run:
        """Run to the end; `Experiment.run` calls it."""
        with self._folder():
            self._go()
        return self

    def _go(self) -> None:
        self._open()
        try:
            self._start()
            gc.freeze()  # until the end nobody looks for garbage among what is there now: torch, the data, the clients
            try:
                self._rounds()
            finally:
                gc.unfreeze()
        finally:
            self.host.engine.close()
        self._close()
        self._say("end", rounds=self.experiment.rounds, summary=self.summary)

    def _start(self) -> None:
        e = self.experiment
        if not self.started:
            self.host.start(_placed(e.before.state if isinstance(e.before, Run) else e.before, self.plan.device))
            self.started = True
        self._say("start", rounds=e.rounds)
        cohort, clients = getattr(self.plan.method, "cohort", None), len(self.plan.federation)
        if isinstance(cohort, int) and cohort > clients:
            self._say("note", text=f"the cohort is {cohort}, and there are {clients} clients: all take part")

    def _rounds(self) -> None:
        e = self.experiment
        saved_at, cost = time.monotonic(), 0.0
        while self.host.version < e.rounds or len(self.rows) < self.host.version:
            began = time.monotonic()
            if len(self.rows) == self.host.version:  # else the round was run before a resume, and has no row yet
                before = _versions_of(self.host.state)
                self.host.round()
                _unchanged(before, self.plan.method)
            if self.host.version == e.rounds:
                self._finish()
            self._log(began)
            self._write_config()
            now = time.monotonic()  # large memories take long to write: a tenth of the time at most
            due = not e.checkpoint_seconds or now - saved_at >= max(e.checkpoint_seconds, 9 * cost)
            if self.out is not None and (due or self.host.version == e.rounds):
                self._save()
                saved_at = time.monotonic()
                cost = saved_at - now

    def _finish(self) -> None:
        """The method's last word. What was before it is kept, so that more rounds can follow in a resume."""
        if type(self.plan.method).finish is Method.finish:
            return
        if self.out is not None:
            self._save(resuming.UNFINISHED)
        before = _versions_of(self.host.state)
        self.host.state = self.plan.method.finish(self.host.state, self.host.clients)
        _unchanged(before, self.plan.method)

    def _log(self, began: float) -> None:
        row = self._row()
        self.wall += time.monotonic() - began
        row["wall"] = round(self.wall, 4)
        self.rows.append(row)
        self._write_row(row)
        self._say("round", rounds=self.experiment.rounds, row=row)

    def _row(self) -> dict[str, Any]:
        host, e = self.host, self.experiment
        row: dict[str, Any] = {
            "round": host.version,
            "time": host.now,
            "bytes_up": host.ledger.up,
            "bytes_down": host.ledger.down,
            "bytes_peers": host.ledger.peers,
            "replies": host.participants,
            "excluded": sum(host.excluded.values()),
            "notes": dict(host.notes),
        }
        if host.excluded:
            row["exclusions"] = dict(host.excluded)
        row.update(host.meter.row())
        last = host.version == e.rounds
        if e.evaluate_every and (host.version % e.evaluate_every == 0 or last):
            keep = last or e.per_client
            views = dict(self.plan.method.evaluate(host.state, host.clients))
            params = self.params if len(self.plan.models) == 1 else None
            # the global model on each client's own test data
            if keep and params is not None and params.dim() == 1 and "global" in views and not views["global"].clients:
                views["local"] = host.clients.evaluate(params, list(host.clients.panel))
            row.update({view: self._view(result, keep) for view, result in views.items() if result})
            if params is not None and params.dim() == 1 and self._has_validation:
                row["validation"] = dict(host.clients.evaluate(params, split="val"))
        return row

    @cached_property
    def _has_validation(self) -> bool:
        f = self.plan.federation
        return f.validation is not None or any(len(f.local(id).val) for id in self.host.clients.panel)

    def _view(self, result: Evaluation, keep: bool) -> dict[str, Any]:
        name, sign = self.plan.task.headline
        view: dict[str, Any] = {**dict(result), **result.spread(name, sign)}
        if keep and result.clients:
            view["clients"] = {str(i): dict(m) for i, m in result.clients.items()}
        return view

    # ------------------------------------------------------------ the folder
    @contextmanager
    def _folder(self) -> Generator[None]:
        """It is there, and no other process works in it."""
        if self.out is None:
            yield
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigError(f"cannot make the folder of the run, {self.out}: {e.strerror}; choose another") from None
        with files.held(self.out, f"Wait for it, or stop it and continue with {self._how_to_continue}"):
            yield

    def _open(self) -> None:
        if self.out is None:
            return
        log = self.out / "metrics.jsonl"
        if self.resumed_from is None and (log.exists() or checkpoint.found(self.out / checkpoint.FOLDER)):
            raise ConfigError(
                f"{self.out} already holds a run. Continue it with {self._how_to_continue}, or choose another "
                f"{'--out' if self.experiment.recipe else 'out'}"
            )
        self._write_config()
        if self.resumed_from is None:
            self._save()  # before the log: a kill from here on leaves a folder that can be resumed
        text = "".join(json.dumps(r) + "\n" for r in self.rows)  # rows after the checkpoint are run again
        files.replace(log, text, self._then)

    @property
    def _then(self) -> str:
        """What to do when the disk is full."""
        return f"Make room, then continue with {self._how_to_continue}"

    @property
    def _how_to_continue(self) -> str:
        return f"`fedloom resume {self.out}`" if self.experiment.recipe else "Experiment(...).run(resume=True)"

    def _write_config(self) -> None:
        """Anew whenever something was chosen: whoever repeats the run from it makes the same choices."""
        if self.out is not None and self._told != (choices := self.choices):
            again = "Make room, and give the same line again"
            write_config(self, self._then if (self.out / "config.toml").exists() else again)
            self._told = choices

    def _write_row(self, row: dict[str, Any]) -> None:
        if self.out is not None:
            log = self.out / "metrics.jsonl"
            with files.writing(log, self._then), open(log, "a") as f:
                f.write(json.dumps(row) + "\n")

    def _save(self, folder: str = checkpoint.FOLDER) -> None:
        assert self.out is not None
        checkpoint.save(self.out / folder, self.host.version, resuming.content(self))

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this run."""
        return resuming.identity(self.experiment)

    def _read_checkpoint(self) -> dict[str, Any] | None:
        if self.out is None:
            raise ConfigError("resume needs the folder of a run: Experiment(..., out='runs/mine').run(resume=True)")
        saved, notes = resuming.read(self.experiment, self.out, self.identity)
        for text in notes:
            self._say("note", text=text)
        self.chosen |= choices_in(self.out / "config.toml") | (saved or {}).get("chosen", {})
        return saved

    def _restore(self, saved: dict[str, Any]) -> None:
        resuming.restore(self, saved)

    def _close(self) -> None:
        if self.out is None:
            return
        from .skew import described

        skew = described(self.plan.federation)
        files.replace(self.out / "heterogeneity.json", json.dumps(skew) + "\n", self._then)
        files.replace(self.out / "summary.json", json.dumps(self.summary, indent=2) + "\n", self._then)
        if self.params is not None and self.params.dim() == 1:
            tree = self.plan.model.layout.tree(self.params.detach().cpu())
            parts = safetensors_of({k: v.contiguous() for k, v in tree.items()})
            files.replace(self.out / "model.safetensors", parts, self._then)

    def _say(self, event: str, **content: Any) -> None:
        for observer in self.experiment.observers:
            observer({"event": event, "round": getattr(getattr(self, "host", None), "version", 0), **content})


def _placed(state: Any, device: torch.device) -> Any:
    """A state that came about on another device."""
    if all(t.device.type == device.type for t in leaves(state) if isinstance(t, Tensor)):
        return state
    return loads(dumps(state), device)


def _versions_of(state: Any) -> list[tuple[Tensor, int]]:
    return [(t, t._version) for t in leaves(state) if isinstance(t, Tensor)]


def _unchanged(before: list[tuple[Tensor, int]], method: Method) -> None:
    if any(t._version != v for t, v in before):
        raise StateMutated(
            f"{type(method).__name__}.round changed a tensor of its state in place. States are shared with jobs under "
            f"way and with checkpoints: write `params = state.params + step` instead of `state.params += step`"
        )
