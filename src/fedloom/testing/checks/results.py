"""A run: something changes, all of it is finite, judging it leaves no trace."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedloom.errors import ConfigError, NotSupported
from fedloom.message import leaves
from fedloom.method import Method
from fedloom.runs import Run
from fedloom.testing.compare import difference, outcome
from fedloom.testing.tiny import SHAPE, SIZES, normed_task
from fedloom.testing.trial import Trial
from fedloom.timing.world import World
from fedloom.written import dumps

from .suite import check, equal, finite, lasting, require


@check()
def runs(trial: Trial) -> None:
    """A few rounds change something, all of it is finite, and nobody honest is left out."""
    begun, ended = trial.run(rounds=0), trial.reference
    if begun.state is None:
        begun.host.start()
    require(difference(lasting(begun), lasting(ended)), "after all rounds neither state nor memories had changed")
    reasons = sorted({reason for row in ended.rows for reason in row.get("exclusions") or ()})
    require(not reasons, f"honest clients were left out: {', '.join(reasons)}")
    require(finite(lasting(ended)), "the state or a memory holds NaN or infinity")


@check()
def evaluation(trial: Trial) -> None:
    """Every view has finite figures; every client can be sent `down` and answer; judging leaves no trace."""
    run = trial.reference
    method, host = run.plan.method, run.host
    before = outcome(run)
    kept = dumps({k: before[k] for k in ("state", "memories", "books", "ledger")})
    views = method.evaluate(host.state, host.clients)
    require(views, "evaluate gave no view of the result")
    for view, figures in views.items():
        require(dict(figures), f"view {view!r} is empty")
        for name, value in figures.items():
            require(math.isfinite(value), f"{view}.{name} is {value}")
    each = {i: method.down(host.state, i) for i in host.clients.ids}
    if type(method).personalise is not Method.personalise or all("params" in d for d in each.values()):
        personal = host.clients.evaluate(method.personalise, list(each), each=each)
        require(personal.clients, "no client could answer by personalise")
        require(finite({i: dict(m) for i, m in personal.clients.items()}), "a client's own figures are not finite")
    after = dumps({k: v for k, v in outcome(run).items() if k in ("state", "memories", "books", "ledger")})
    require(kept == after, "judging changed the state, a memory, a book or the byte count")


@check()
def continues(trial: Trial) -> None:
    """Started from an earlier run, a run begins with that run's model, and goes on from there; where what is learned
    lies at the clients, it says that it cannot."""
    earlier = trial.reference.state
    nothing = not any(isinstance(value, Tensor) for value in leaves(earlier))
    try:
        begun = trial.run(rounds=0, before=earlier)
    except ConfigError as refused:
        require(nothing or "peers" in trial.method.card.needs, f"it does not go on from a run of its own: {refused}")
        return
    if begun.state is None:
        begun.host.start()
    for name in ("params", "shared", "models"):
        if hasattr(earlier, name):
            equal(getattr(begun.state, name), getattr(earlier, name), f"`{name}` at the start and of the earlier run")
    require(finite(lasting(trial.run(rounds=1, before=earlier))), "the state or a memory holds NaN or infinity")


@check()
def attributes_stay(trial: Trial) -> None:
    """A method keeps nothing on itself: the object is after a run what it was before."""
    m = trial.method
    before = pickle.dumps(m)
    names = set(vars(m))
    trial.run()
    require(set(vars(m)) == names and pickle.dumps(m) == before, "the run changed attributes of the method")


@check()
def states_stay(trial: Trial) -> None:
    """A round leaves the state it was given as it was, dicts and all: jobs under way and checkpoints share it."""
    run = Run(trial.experiment())
    host, round = run.host, run.host.round

    def watched() -> None:
        given, kept = host.state, dumps(host.state)
        round()
        require(dumps(given) == kept, f"round {host.version} changed the state it was given; make a new one: replace()")

    host.round = watched
    run.go()


@check()
def statistics(trial: Trial) -> None:
    """Running statistics in the vector (`buffers="vector"`) are refused, or leave every loss finite: a variance below
    zero does not."""
    example = trial.example
    samples = example.federation(SIZES, torch.float64).examples(1)
    if "x" not in samples or tuple(samples.x.shape[1:]) != SHAPE:
        return  # an example with samples of its own, which the network below does not take
    several = "families" in trial.method.card.needs or isinstance(example.task.model, Mapping)
    world = replace(example.world or World(), present=0.6)
    try:
        run = trial.run(task=normed_task(several), world=world, rounds=max(6, example.rounds), evaluate_every=1)
    except NotSupported:
        return
    for row in run.rows:
        for view, figures in row.items():
            loss = figures.get("loss", 0.0) if isinstance(figures, Mapping) else 0.0
            require(
                math.isfinite(loss),
                f"with running statistics in the vector, {view}.loss is {loss} after round "
                f"{row['round']}: they are averaged, and what else the server does is for weights "
                f"(layout.keep_statistics)",
            )
