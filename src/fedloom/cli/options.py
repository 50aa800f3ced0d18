"""The options that `run` and `compare` share, as one record."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Option

Json = Annotated[bool, Option("--json", help="Print the summary alone, as JSON.")]
Report = Annotated[bool, Option("--report/--no-report", help="Write report.html.")]


@dataclass(frozen=True)
class Training:
    """What to train and where the run goes. None: not given on the line."""

    data: Annotated[
        str | None, Option("--data", "-d", help="Data set; `fedloom data` lists them; FILE.csv:target=COLUMN. (digits)")
    ] = None
    clients: Annotated[
        int | None, Option("--clients", "-n", help="Clients. (the data's own groups, else 100 at most)")
    ] = None
    partition: Annotated[
        str | None,
        Option("--partition", "-p", help="Who holds what: dirichlet:0.1, shards:2, iid, natural, ... (the data's own)"),
    ] = None
    rounds: Annotated[int | None, Option("--rounds", "-r", help="Server steps. (50)")] = None
    cohort: Annotated[int | None, Option("--cohort", "-k", help="Clients a round. (the method's own)")] = None
    seed: Annotated[int | None, Option("--seed", "-s", help="Of everything random. (0)")] = None
    engine: Annotated[
        str | None, Option("--engine", "-e", help="auto, sequential, stacked, pool, ray or debug. (auto)")
    ] = None
    device: Annotated[str | None, Option("--device", help="cpu or cuda. (cpu)")] = None
    dtype: Annotated[str | None, Option("--dtype", help="float32 or float64. (float32)")] = None
    model: Annotated[
        str | None,
        Option(
            "--model",
            "-m",
            help="Network: cnn:width=0.5; one of your own, nets.py:Net:width=64; in turn cnn+mlp:32. (the data's own)",
        ),
    ] = None
    buffers: Annotated[
        str | None, Option("--buffers", help="Running statistics of batch norm: vector, batch or frozen.")
    ] = None
    set: Annotated[list[str] | None, Option("--set", help="Hyperparameter name=value; may be repeated.")] = None
    val: Annotated[
        float | None, Option("--val", help="Share of each client's samples that chooses the best round.")
    ] = None
    public: Annotated[float | None, Option("--public", help="Share of the samples that everybody holds.")] = None
    validation: Annotated[float | None, Option("--validation", help="Share of the samples the server holds.")] = None
    limit: Annotated[int | None, Option("--limit", help="Train samples kept, at random. (all)")] = None
    workers: Annotated[int | None, Option("--workers", help="Of the engines pool and ray. (one a core)")] = None
    address: Annotated[
        str | None, Option("--address", help="Ray cluster of the engine ray, or auto. (this machine)")
    ] = None
    worker_cpus: Annotated[float | None, Option("--worker-cpus", help="CPUs of one worker of ray. (1)")] = None
    worker_gpus: Annotated[float | None, Option("--worker-gpus", help="GPUs of one worker of ray, e.g. 0.5.")] = None
    per_client: Annotated[bool | None, Option("--per-client", help="Log every client's figures in every round.")] = None
    channel: Annotated[
        list[str] | None,
        Option("--channel", help="Stages in order: topk:0.05, randk, quantize:8, sign, clip, dp:1,1.1, secure."),
    ] = None
    devices: Annotated[
        str | None, Option("--devices", help="ai-benchmark, tiers:0.2,0.5,0.3, lognormal:0.5. (all alike)")
    ] = None
    network: Annotated[
        str | None, Option("--network", help="ethernet, wifi, 4g, 5g, wifi:spread=0.5. (messages take no time)")
    ] = None
    availability: Annotated[
        str | None,
        Option("--availability", help="bernoulli:0.8, markov:0.9,0.5, diurnal, trace:FILE, churn:crash=1e-4. (always)"),
    ] = None
    deadline: Annotated[float | None, Option("--deadline", help="Seconds after which a reply is late. (none)")] = None
    over: Annotated[float | None, Option("--over", help="Clients asked for each reply that is waited for. (1)")] = None
    world: Annotated[list[str] | None, Option("--world", help="The rest of the world, e.g. spread=0.5.")] = None
    on_failure: Annotated[
        str | None, Option("--on-failure", help="Clients that fail or have no samples: raise or exclude. (raise)")
    ] = None
    evaluate_every: Annotated[int | None, Option("--evaluate-every", help="Rounds between evaluations. (1)")] = None
    recipe: Annotated[Path | None, Option("--recipe", help="TOML file; options on the line win over it.")] = None
    out: Annotated[Path | None, Option("--out", "-o", help="Folder of the run. (runs/<time>-<method>-<data>)")] = None
    as_json: Json = False
    report: Report = True

    def given(self) -> dict[str, Any]:
        """Recipe fields that the line names."""
        from fedloom.runs.recipe import pairs

        found = {k: v for k, v in vars(self).items() if k not in _ELSEWHERE and v is not None}
        if self.set:
            found["set"] = pairs(self.set)
        if self.world:
            found["world"] = pairs(self.world, "--world")
        if self.channel:
            found["channel"] = tuple(self.channel)
        return found


_ELSEWHERE = ("set", "world", "channel", "recipe", "out", "as_json", "report")
"""Fields of `Training` that are read as lists of settings, or are none of a recipe."""


def with_training(command: Callable[..., None]) -> Callable[..., None]:
    """`command(..., options: Training)` as Typer reads it: every field of `Training` is an option of its own."""
    hints = get_type_hints(Training, include_extras=True)
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(Training)
    ]

    @functools.wraps(command)
    def called(**line: Any) -> None:
        command(**{p.name: line.pop(p.name) for p in own}, options=Training(**line))

    called.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    return called
