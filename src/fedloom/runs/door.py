"""What is refused before any work is done: arguments of the wrong kind, and parts that do not go together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedloom.data import Data, Federation
from fedloom.data.population import stand_in
from fedloom.engines.base import Plan
from fedloom.errors import ConfigError, FedloomWarning, NotSupported
from fedloom.method import Method, State
from fedloom.model import Model
from fedloom.task import Classification, Task
from fedloom.timing.clock import Clock
from fedloom.training.chance import seeded
from fedloom.trees import is_mapping, is_row

if TYPE_CHECKING:
    from .experiment import Experiment

_CLIENTS_TRIED = 1000
"""Clients looked at for one with samples and a given network, in a federation whose clients differ."""


def check_arguments(e: Experiment) -> None:
    """Refuse arguments of the wrong kind or out of range.

    Raises:
        ConfigError: what was given, and what to write instead.
    """
    _kind("federation", e.federation, Federation, "the clients' data, as in fl.Federation.from_arrays(x, y)")
    for name in ("rounds", "evaluate_every", "checkpoint_seconds"):
        if getattr(e, name) < 0:
            raise ConfigError(f"{name}={getattr(e, name)!r} cannot be: a number, 0 or more")
    if e.on_failure not in ("raise", "exclude"):
        raise ConfigError(f"on_failure={e.on_failure!r} cannot be: 'raise' or 'exclude'")
    if e.out is not None:
        _kind("out", e.out, (str, Path), "a folder, as in out='runs/mine'")
    if not (isinstance(e.dtype, torch.dtype) and e.dtype.is_floating_point):
        raise ConfigError(f"dtype={e.dtype!r} cannot be: a floating type of torch, as in dtype=torch.float64")
    if e.clock is not None:
        _kind("clock", e.clock, Clock, "what time goes by, as in clock=fl.WallClock(speed=60)")
    if not (is_row(e.observers) and all(map(callable, e.observers))):
        raise ConfigError(f"observers takes a list of functions of one event, a dict; given {e.observers!r}")
    if e.before is not None:
        _kind("before", getattr(e.before, "state", e.before), State, "an earlier run, or its state: before=run.state")
    _check_cohort(e.method)
    _check_device(e.device)
    _check_behaviours(e.behave, e.federation)


def _kind(name: str, given: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    if not isinstance(given, kind):
        shown = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        if isinstance(given, str | int | float):
            shown = repr(given)
        raise ConfigError(f"{name} takes {wanted}; given {shown}")


def _check_cohort(method: Method) -> None:
    """Somebody is asked: in methods inside this one, too."""
    for f in fields(method):  # type: ignore[arg-type]
        value: Any = getattr(method, f.name)
        if isinstance(value, Method):
            _check_cohort(value)
        if f.name != "cohort" or not isinstance(value, int | float):
            continue
        if not (0 < value < 1 if isinstance(value, float) else value >= 1):
            raise ConfigError(
                f"{type(method).__name__}(cohort={value!r}) cannot be: clients a round, 1 or more, as in cohort=10; or "
                f"each client's chance to be asked, between 0 and 1, as in cohort=0.1"
            )


def _check_device(name: str | torch.device) -> None:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device {name!r} is not a device: 'cpu', 'cuda' or 'cuda:1'") from None
    if device.type == "cpu":
        return
    there = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if (device.index or 0) >= there:
        seen = f"torch sees {there} CUDA devices" if there else "torch sees no CUDA device"
        raise ConfigError(f"device {name!r} is not there ({seen}); use device='cpu'")


def _check_behaviours(behave: Any, federation: Federation) -> None:
    if behave is None:
        return
    wanted = "behave is a dict: client id -> `async def behaviour(client, honest, **payload)`"
    if not is_mapping(behave):
        raise ConfigError(f"{wanted}; given {type(behave).__name__}")
    for id, program in behave.items():
        if not callable(program):
            raise ConfigError(f"{wanted}; for client {id!r} given {program!r}")
        if id not in federation.ids:
            raise ConfigError(f"behave names client {id!r}, and this federation has clients 0..{len(federation) - 1}")


def check_plan(plan: Plan) -> None:
    """Refuse parts that do not go together.

    Raises:
        ConfigError, DataError, NotSupported: what does not fit, why, and what would.
    """
    check_needs(plan)
    _check_metrics(plan.task)
    plan.channel.check(plan)
    for model in plan.models.values():
        if not model.layout.size and type(plan.task).losses is not Task.losses:
            raise ConfigError(f"the network {model.name!r} has no weight that requires a gradient: nothing to train")
        try_network(plan, model)


def check_needs(plan: Plan) -> None:
    """Refuse what a method needs and this federation has not."""
    card, federation = plan.method.card, plan.federation
    if "public" in card.needs and federation.public is None:
        raise NotSupported(
            f"{card.title} needs public data that server and clients all hold, and this federation has none. Hold some "
            f"back: Federation.from_arrays(..., public=0.1), or on the command line --public 0.1"
        )
    if "server data" in card.needs and federation.validation is None:
        raise NotSupported(
            f"{card.title} needs labelled data of the server's own, and this federation has none. Give some: "
            f"Federation.from_arrays(..., validation=0.05)"
        )
    if len(plan.models) > 1 and "families" not in card.needs:
        raise NotSupported(
            f"{card.title} trains one network at every client, but this task has {len(plan.models)}: "
            f"{', '.join(plan.models)}. Use one model, or a method for different networks (fedproto, fedmd, ...)"
        )


def _check_metrics(task: Task) -> None:
    for metric in task.metrics:
        if isinstance(metric, type) or not (hasattr(metric, "count") and hasattr(metric, "finish")):
            raise ConfigError(
                f"{type(task).__name__}(metrics=...) takes metrics that count(scores, batch) and finish(total), as in "
                f"metrics=(Accuracy(),) with `from fedloom.task import Accuracy`; given {metric!r}"
            )


def try_network(plan: Plan, model: Model) -> None:
    """Call a network and its loss once on real samples, so that what does not fit is said in the words of data and
    network, not by an operator in the first round. A network of named parts has no call of its own and is passed over.

    Raises:
        ConfigError: the network does not take the samples, the loss not what it gives, or there are more labels than
            outputs.
    """
    data = _samples(plan, model)
    if data is None or isinstance(model.module, nn.ModuleDict):
        return
    # two samples: normalisation over a batch of one is impossible, and no fault of the network
    data = stand_in(data)
    few = data.rows(torch.arange(2) % len(data))
    try:
        _try(plan, model, few)
    except ConfigError as error:
        try:
            _try(plan, model, data)  # samples that only make sense together: the nodes of a graph
        except ConfigError:
            raise error from None


def _samples(plan: Plan, model: Model) -> Data | None:
    """The train samples of the first client that has this network, and samples at all; None if that is far to seek."""
    for id in plan.federation.ids[:_CLIENTS_TRIED]:
        if plan.federation.size(id) and plan.model_of(id) is model:
            return plan.federation.local(id).train
    return None


def _try(plan: Plan, model: Model, data: Data) -> None:
    task, name = plan.task, model.name
    data = data.to(plan.device)
    inputs = tuple(task.inputs(data))
    with torch.no_grad(), seeded(("try",), plan.device):
        try:
            scores = model(model.initial(), *inputs)
        except Exception as e:
            raise ConfigError(
                f"the network {name!r} cannot be called with these samples, {_shapes(inputs)}: {type(e).__name__}: {e}"
                f"{_advice(e, inputs, data, plan.dtype)}"
            ) from e
        try:
            task.losses(scores, data)
        except NotImplementedError:  # a task whose loss is the method's
            return
        except Exception as e:
            _check_outputs(plan, model, scores)
            given = _shapes((scores,)) if isinstance(scores, Tensor) else type(scores).__name__
            raise ConfigError(
                f"{type(task).__name__} cannot compute its loss from what the network {name!r} gives, {given}, and the "
                f"fields {_fields(data)}: {type(e).__name__}: {e}. {_other_labels(scores, data)}Another loss, or other "
                f"outputs: a subclass of {type(task).__name__} with its own losses(scores, batch)"
            ) from e
    _check_outputs(plan, model, scores)
    _warn_of_shares(plan, model, scores)


def _check_outputs(plan: Plan, model: Model, scores: Any) -> None:
    """Every label has an output. A task with a loss of its own counts outputs in its own way."""
    classes, task = plan.federation.classes, plan.task
    if classes is None or type(task).losses is not Classification.losses or not isinstance(scores, Tensor):
        return
    if scores.dim() >= 2 and scores.shape[-1] < classes:
        raise ConfigError(
            f"labels go up to {classes - 1}, and the outputs of the network {model.name!r} are {scores.shape[-1]}; "
            f"labels are 0..outputs-1, so it needs {classes} of them (or labels that begin at 0: y - 1)"
        )


def _warn_of_shares(plan: Plan, model: Model, scores: Any) -> None:
    """Cross entropy takes a softmax itself: one that was taken before makes learning slow, and no error."""
    if type(plan.task).losses is not Classification.losses or not isinstance(scores, Tensor) or scores.shape[-1] < 2:
        return
    if bool((scores >= 0).all()) and bool(((scores.sum(-1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            f"the outputs of the network {model.name!r} are shares that add up to 1, and the loss takes a softmax "
            f"itself: leave the one of the network out",
            FedloomWarning,
            stacklevel=2,
        )


def _other_labels(scores: Any, data: Data) -> str:
    one_hot = isinstance(scores, Tensor) and "y" in data and data.y.dim() > 1 and data.y.shape == scores.shape
    return "Labels are numbers of classes: give y.argmax(1) for rows that are one-hot. " if one_hot else ""


def _advice(e: Exception, inputs: tuple[Tensor, ...], data: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    if isinstance(e, TypeError):
        return (
            f". The task's inputs(batch) says what a network is called with, by default (batch.x,); for several inputs "
            f"write a subclass that returns them all. Fields: {', '.join(data)}"
        )
    other = next((x.dtype for x in inputs if x.is_floating_point() and x.dtype != dtype), None)
    if "dtype" in str(e) and other:
        return f". Weights are {dtype}: give samples as they are (x.to({dtype})), or weights as samples (dtype={other})"
    if "dtype" in str(e) and any(not x.is_floating_point() for x in inputs):
        return ". Whole numbers stay whole, as a network over tokens needs them; for measurements give floats"
    if "channels" in str(e) and inputs[0].dim() == 3:
        return ". A convolution takes images (channels, height, width): give x[:, None], one channel of grey"
    if "channels" in str(e) and inputs[0].dim() == 4 and inputs[0].shape[-1] in (1, 3, 4):
        return ". A convolution takes images (channels, height, width): give x.transpose(0, 3, 1, 2), or x.permute"
    return ""


def _shapes(values: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in values)


def _fields(data: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{k} {_shapes((v,))}" for k, v in data.items())
