"""Nobody there, one client, one sample; clients that decline, fail, or send what they should not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedloom.client import Client
from fedloom.errors import ClientFailure, Declined, FedloomError
from fedloom.message import At, Message, leaves, mapped
from fedloom.runs import Run
from fedloom.testing.compare import difference
from fedloom.testing.trial import Trial
from fedloom.timing.world import World

from .suite import ContractBroken, check, equal, finite, lasting, require


@check()
def nobody(trial: Trial) -> None:
    """With no client available, rounds pass and nothing breaks."""
    world = replace(trial.example.world or World(), present=1e-12)
    run = trial.run(world=world, rounds=2, evaluate_every=1)
    require(run.host.version == 2 and finite(lasting(run)), "rounds without clients did not end well")


@check()
def one_client(trial: Trial) -> None:
    """A federation of one client."""
    run = trial.run(sizes=(9,), rounds=2, evaluate_every=1)
    require(finite(lasting(run)), "the state or a memory holds NaN or infinity")


@check()
def one_sample(trial: Trial) -> None:
    """Clients with a single sample each."""
    run = trial.run(sizes=(1, 1, 1), rounds=2, evaluate_every=1)
    require(finite(lasting(run)), "the state or a memory holds NaN or infinity")


async def _declines(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    await honest(client, **payload)
    raise Declined("not today")


async def _breaks(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    await honest(client, **payload)
    raise RuntimeError("out of battery")


async def _withholds(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    if await honest(client, **payload) is not None:
        raise Declined("not told")
    return None


async def _sends_nan(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    return _spoilt(await honest(client, **payload), lambda t: t * math.nan)


async def _sends_more(client: Client, honest: Callable[..., Any], **payload: Any) -> Message | None:
    return _spoilt(await honest(client, **payload), _longer)


def _longer(t: Any) -> Any:
    return torch.cat([t, t[-1:]]) if isinstance(t, Tensor) and t.dim() and len(t) else t


def _spoilt(reply: Message | None, f: Callable[[Any], Any]) -> Message | None:
    """Every real tensor and number of a reply changed."""

    def one(v: Any) -> Any:
        if isinstance(v, At):
            more = f is _longer and len(v.index) > 0
            index = torch.cat([v.index, torch.tensor([v.size])]) if more else v.index
            return At(index, f(v.values), v.size + 1 if more else v.size, v.known)
        if hasattr(v, "dense") and not isinstance(v, Tensor):
            v = v.dense()
        real = isinstance(v, float) or (isinstance(v, Tensor) and v.is_floating_point())
        return f(v) if real else v

    return None if reply is None else mapped(reply, one)


@check()
def client_declines(trial: Trial) -> None:
    """A client that declines is counted and nothing of it remains."""
    _left_out(trial, trial.misled(_declines), everything=True)


@check()
def client_fails(trial: Trial) -> None:
    """A client that raises is named; or, excluded, it is as if it had declined."""
    try:
        trial.run(behave={trial.victim: _breaks})
    except ClientFailure as e:
        require(e.client == trial.victim, f"the error names client {e.client}, and client {trial.victim} failed")
    else:
        raise ContractBroken("a client that raises did not stop the run, though on_failure='raise'")
    run = trial.misled(_breaks)
    _left_out(trial, run, everything=True)
    equal(lasting(run), lasting(trial.misled(_declines)), "a failing and a declining client")


@check()
def client_sends_nan(trial: Trial) -> None:
    """A reply that is not finite is left out and counted; the others count as if its sender had kept it to itself."""
    if all(h.reply is None or _unspoilable(h.reply) for h in trial.spy_on_reference()):
        return  # nothing real is sent
    run = trial.misled(_sends_nan)
    _left_out(trial, run)
    if not trial.clocked:
        equal(lasting(run), lasting(trial.misled(_withholds)), "a client that sends NaN and one that sends nothing")


@check()
def client_sends_wrong_shape(trial: Trial) -> None:
    """A reply of the wrong shape is a clear error or a counted exclusion, and spoils nobody else's."""
    if all(h.reply is None or not difference(_spoilt(h.reply, _longer), h.reply) for h in trial.spy_on_reference()):
        return  # only numbers are sent
    try:
        run = trial.misled(_sends_more)
    except FedloomError:
        return
    if "replies" in trial.method.card.needs:  # the method saw the reply itself: it may cope
        require(not _shapes(run) ^ _shapes(trial.reference), "a reply of the wrong shape changed shapes of the state")
        return
    _left_out(trial, run)
    equal(
        lasting(run), lasting(trial.misled(_withholds)), "a client that sends a wrong shape and one that sends nothing"
    )


def _shapes(run: Run) -> set[tuple[int, ...]]:
    return {tuple(t.shape) for t in leaves(run.state) if isinstance(t, Tensor)}


def _unspoilable(reply: Message) -> bool:
    return not difference(_spoilt(reply, lambda t: t * math.nan), reply)


def _left_out(trial: Trial, run: Run, everything: bool = False) -> None:
    """The victim was counted as left out, and what did not count left no trace: `everything`, or its replies alone."""
    excluded = sum(row["excluded"] for row in run.rows)
    require(excluded > 0, f"client {trial.victim} should have been left out, and nobody was")
    require(finite(lasting(run)), "the state or a memory holds NaN or infinity")
    silent = any(h.reply is None for h in trial.spy_on_reference() if h.client == trial.victim)
    if everything or not silent:
        require(trial.victim not in run.memories, f"client {trial.victim} never counted, yet its memory was kept")
