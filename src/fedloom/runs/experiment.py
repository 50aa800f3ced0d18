"""An experiment: a method on a task in a federation, for some rounds. Run it, kill it, resume it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedloom.channel.stage import Channel, Stage
from fedloom.checked import Checked, as_python
from fedloom.data import Federation
from fedloom.data.population import stand_in
from fedloom.engines.base import Behaviour, Plan
from fedloom.engines.team import Cluster
from fedloom.errors import ConfigError, unknown
from fedloom.keyed import seed_of
from fedloom.method import Method
from fedloom.model import Model
from fedloom.models import build
from fedloom.models.registry import seeded
from fedloom.task import Task
from fedloom.timing.clock import Clock
from fedloom.timing.world import World
from fedloom.training.solvers import SGD
from fedloom.trees import is_mapping

from .door import check_arguments, check_plan
from .loop import Run

if TYPE_CHECKING:
    from .recipe import Recipe

Observer = Callable[[dict[str, Any]], None]


@dataclass
class Experiment(Checked):
    """Everything a run needs. Nothing is done until `run()`.

    Args:
        method: what is tried, with its hyperparameters.
        task: network and loss.
        federation: whose data.
        rounds: server steps, >= 0.
        seed: of everything random.
        engine: "auto", "sequential", "stacked", "pool", "ray" or "debug"; `workers` of the pool or the cluster.
        cluster: for "ray": its address, and what each actor may use; default one on this machine.
        device: "cpu" or "cuda"; dtype: of the weights.
        channel: stages every reply passes on its way up.
        world: devices, links and availability, for virtual time.
        clock: what goes by it; default virtual seconds, `fl.WallClock(speed=60)` lets a minute of them take a second.
        behave: client id -> a program around the honest one (adversaries).
        evaluate_every: rounds between evaluations (the last round is always evaluated); 0: never.
        per_client: log every client's own figures in every evaluated round, not in the last alone.
        out: folder for log, checkpoints and report; None keeps everything in memory.
        checkpoint_seconds: at most this often (0: after every round).
        before: an earlier run, or its state, which the method starts from.
        on_failure: "raise", or "exclude" (a client program that fails is counted and left out).
        observers: called with each event, a dict.
        choices: of ways to compute, made by an earlier run (its `summary["choices"]`), to be repeated, not measured.
        recipe: the names this experiment was made from, if it was; then it can be resumed by folder alone.
    """

    method: Method
    task: Task
    federation: Federation
    rounds: int = 50
    seed: int = 0
    engine: str = "auto"
    workers: int | None = None
    cluster: Cluster | None = None
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32
    channel: Channel | Stage | Sequence[Stage] | None = None
    world: World | None = None
    clock: Clock | None = None
    behave: Mapping[int, Behaviour] | None = None
    evaluate_every: int = 1
    per_client: bool = False
    out: str | Path | None = None
    checkpoint_seconds: float = 2.0
    before: Any = None
    on_failure: str = "raise"
    observers: Sequence[Observer] = ()
    choices: Mapping[str, str] | None = None
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "seed", "workers", "evaluate_every", "checkpoint_seconds"):  # which are written down
            object.__setattr__(self, name, as_python(getattr(self, name)))
        check_arguments(self)

    def plan(self) -> Plan:
        """Check that method, task, federation and channel go together, before any work is done.

        Raises:
            ConfigError, DataError, NotSupported: what does not fit, why, and what would.
        """
        device = torch.device(self.device)
        plan = Plan(
            method=self.method,
            task=self.task,
            federation=self.federation if device.type == "cpu" else self.federation.to(device),
            models=models_for(self.task, self.method, self.federation, self.seed, self.dtype, self.device),
            seed=self.seed,
            world=self.world or World(),
            channel=Channel.of(self.channel),
            behave=dict(self.behave or {}),
            device=device,
            dtype=self.dtype,
            on_failure=self.on_failure,
        )
        check_plan(plan)
        return plan

    def run(self, resume: bool = False) -> Run:
        """Run to the end; with `resume`, from the newest checkpoint in `out`."""
        return Run(self, resume=resume).go()


def run(method: Method, task: Task, federation: Federation, rounds: int = 50, seed: int = 0, **options: Any) -> Run:
    """Run a method: `run(FedAvg(cohort=10), Classification(model=MyNet), federation, rounds=50)`.

    Options are those of `Experiment`.

    Raises:
        ConfigError, DataError, NotSupported: an argument of the wrong kind, or parts that do not go together; before
            any work is done.
        ClientFailure, RoundFailure: code of the method's or the network's failed at a client, or at the server.
    """
    check_options(options, "a run")
    return Experiment(method, task, federation, rounds, seed, **options).run()


def check_options(options: Mapping[str, Any], of: str, instead: Mapping[str, str] = MappingProxyType({})) -> None:
    """Refuse what is no argument of `Experiment`, by its name; `instead`: those that are called otherwise."""
    known = {instead.get(f.name, f.name) for f in fields(Experiment)}
    for name in options:
        if name in instead:
            raise ConfigError(f"{name} is called {instead[name]} in {of}: {instead[name]}=...")
        if name not in known:
            raise unknown(f"option of {of}", name, known, _elsewhere(name))


def _elsewhere(name: str) -> str:
    """Where an option belongs that is no run's: to the solver, or to the method."""
    if name in {f.name for f in fields(SGD)}:
        return f"It is the solver's: fl.FedAvg(solver=fl.SGD({name}=...))."
    return f"It is the method's: fl.FedAvg({name}=...)." if name in ("cohort", "solver", "server_lr") else ""


def models_for(
    task: Task, method: Method, federation: Federation, seed: int, dtype: torch.dtype, device: str | torch.device
) -> dict[str, Model]:
    """The task's networks as models, by name.

    Raises:
        DataError: samples that the task cannot train on. ConfigError: a network that cannot be.
    """
    first = next((id for id in federation.ids if federation.size(id)), 0)
    sample = federation.local(first).train
    task.check(sample)
    example = tuple(x[:1] for x in task.inputs(stand_in(sample.slice(0, 1))))
    spec = task.model
    named: Mapping[str, Any] = spec if is_mapping(spec) else {_name(spec): spec}
    if not named:
        raise ConfigError("Task(model={}) names no network")
    models: dict[str, Model] = {}
    for k, (name, source) in enumerate(named.items()):
        init = seed_of(seed, "model", k)
        classes = (federation.classes or _targets(sample)) if isinstance(source, str) else 0
        made: Any = _Network(source, tuple(example[0].shape[1:]), classes, method, dtype, device)
        if isinstance(source, nn.Module):
            with seeded(init):  # of layers the method adds
                made = made()
        cast = tuple(x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in example)
        models[name] = Model(made, task, buffers=task.buffers, seed=init, example=cast, name=name)
    return models


@dataclass(frozen=True)
class _Network:
    """Makes a task's network as the method trains it; other processes can be sent it."""

    source: Any
    shape: tuple[int, ...]
    classes: int
    method: Method
    dtype: torch.dtype
    device: str | torch.device

    def __call__(self) -> nn.Module:
        if isinstance(self.source, str):
            net = build(self.source, input_shape=self.shape, classes=self.classes, seed=torch.initial_seed())
        else:
            net = self.source if isinstance(self.source, nn.Module) else _made(self.source)
        _sized(net)
        return self.method.module(net).to(device=self.device, dtype=self.dtype)


def _sized(net: nn.Module) -> None:
    for name, p in net.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ConfigError(
                f"{name} of {type(net).__name__} has no shape before the network has met data, and clients begin from "
                f"one vector. Give layers their sizes (nn.Linear(20, 5), not nn.LazyLinear(5)), or call the network "
                f"once on a sample before you hand it over"
            )


def _made(source: Any) -> nn.Module:
    wanted = "Task(model=...) is a name, an nn.Module, or a class or function that makes one without arguments"
    if not callable(source):
        raise ConfigError(f"{wanted}; given {source!r}")
    try:
        inspect.signature(source).bind()
    except TypeError as e:
        raise ConfigError(f"{wanted}, as in model=lambda: MyNet(10); {_name(source)}: {e}") from None
    except ValueError:  # no signature to be had: the call will say
        pass
    try:
        net = source()
    except Exception as e:  # whatever code of the user's own raises
        raise ConfigError(f"the network {_name(source)!r} cannot be made: {type(e).__name__}: {e}") from e
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{wanted}; {_name(source)} gave {net!r}")
    return net


def _name(spec: Any) -> str:
    if isinstance(spec, str):
        return spec
    return type(spec).__name__ if isinstance(spec, nn.Module) else getattr(spec, "__name__", "model")


def _targets(sample: Any) -> int:
    y = sample.y
    return int(y[0].numel()) if y.is_floating_point() else int(y.max()) + 1
