"""A federation and a network so small that a run takes milliseconds, and so uneven that mistakes show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fedloom.card import Need
from fedloom.data import Data, Federation
from fedloom.errors import ConfigError
from fedloom.keyed import generator
from fedloom.method import Method
from fedloom.models.images import cnn_bn
from fedloom.task import Classification, Task
from fedloom.timing.world import World
from fedloom.training import Solver

SIZES = (18, 1, 10, 4, 13, 7)
"""Samples of the six clients, not sorted, one of them with a single sample."""

CLASSES, SHAPE = 4, (1, 8, 8)

Builder = Callable[[Sequence[int], torch.dtype], Federation]
"""`build(sizes, dtype)`: a federation whose client i has `sizes[i]` samples (train, val and test together)."""


def tiny_federation(
    needs: Iterable[Need] = (),
    sizes: Sequence[int] = SIZES,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Federation:
    """Asymmetric generated data: images `(1, 8, 8)` of 4 classes, clients with skewed labels and shifted inputs.

    Args:
        needs: of a card; "public" and "server data" add what they say, the latter with a field `cluster` (0 or 1).
        sizes: samples of each client; about a fifth is its test set, and a seventh its validation set.
        dtype: of the inputs.
    """
    rng = generator(seed, "tiny centres")
    centres = torch.randn(CLASSES, *SHAPE, generator=rng, dtype=torch.float64)

    def samples(n: int, *key: Any, favourite: int | None = None) -> Data:
        rng = generator(seed, "tiny samples", *key)
        y = torch.randint(CLASSES, (n,), generator=rng)
        if favourite is not None:
            y = torch.where(torch.rand(n, generator=rng) < 0.6, torch.tensor(favourite % CLASSES), y)
        x = centres[y] + 0.7 * torch.randn(n, *SHAPE, generator=rng, dtype=torch.float64)
        if favourite is not None:
            x = x * (1 + 0.1 * favourite) + 0.05 * favourite
        return Data(x=x.to(dtype), y=y)

    clients = [samples(n, "client", i, favourite=i) for i, n in enumerate(sizes)]
    server = samples(10, "validation")
    table = Data.cat(clients)
    offsets = torch.tensor([0, *sizes]).cumsum(0).numpy()
    return Federation.from_offsets(
        table,
        offsets,
        test=samples(15, "test"),
        public=samples(12, "public") if "public" in set(needs) else None,
        validation=server.replace(cluster=server.y % 2) if "server data" in set(needs) else None,
        val=0.15,
        client_test=0.2,
        name="tiny",
        classes=CLASSES,
    )


def tiny_task(needs: Iterable[Need] = ()) -> Task:
    """A dense network of 602 numbers; four different ones, with features of one size, for methods for families."""
    if "families" in set(needs):
        return Classification(
            model={
                "dense": "mlp:8,dim=6",
                "deeper": "mlp:10,8,dim=6",
                "conv": "cnn:width=0.25,dim=6",
                "shallow": "cnn:depth=1,width=0.125,dim=6",
            }
        )
    return Classification(model="mlp:8,dim=6")


def normed_task(several: bool = False) -> Task:
    """A network whose running statistics are in its vector, or four of them: variances begin at 100, and most of the
    way to those of the data is done in one step, so that whoever goes on the same way is soon below zero."""
    if several:
        return Classification(model={f"w{k}": partial(_normed, k / 8) for k in (1, 2, 3, 4)}, buffers="vector")
    return Classification(model=partial(_normed, 1 / 4), buffers="vector")


def _normed(width: float) -> nn.Module:
    net = cnn_bn(SHAPE, CLASSES, width=width, depth=1, dim=6)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.9
            nn.init.constant_(cast("Tensor", layer.running_var), 100.0)
    return net


@dataclass(frozen=True)
class Example:
    """A setting in which a method shows all it does, in milliseconds.

    A method whose needs are unusual gives its own: `@classmethod def example(cls)` returns these arguments as a dict,
    for instance `{"method": cls(cohort=3, ranks=(2, 4)), "task": ..., "rounds": 2}`; what it leaves out is as below.

    Args:
        method: with small hyperparameters; default: cohort clipped, one epoch of batches of 4.
        task: default `tiny_task(needs)`.
        federation: `build(sizes, dtype)`; default `tiny_federation(needs, ...)`.
        rounds: server steps the checks run.
        world: default: none, or for clock methods uneven devices and links.
        stacked_tolerance: how far engines may differ in float64, relative to 1 + the value.
    """

    method: Method
    task: Task
    federation: Builder
    rounds: int = 3
    world: World | None = None
    stacked_tolerance: float = 1e-9


def example_of(method: Method | type[Method], **overrides: Any) -> Example:
    """The example of a method: its own where it gives one, the defaults elsewhere; of an object, with its settings.

    Args:
        overrides: hyperparameters that replace the example's.

    Raises:
        ConfigError: `example` returned something that is not arguments of `Example`.
    """
    cls = method if isinstance(method, type) else type(method)
    own: Any = getattr(cls, "example", None)
    given: Any = {} if own is None else own() if callable(own) else own
    if own is not None:
        unknown = set(given) - {f.name for f in fields(Example)} if isinstance(given, Mapping) else {"not a dict"}
        if unknown:
            raise ConfigError(
                f"{cls.__name__}.example() returns a dict of arguments of fedloom.testing.Example "
                f"({', '.join(f.name for f in fields(Example))}); given {', '.join(sorted(unknown))}"
            )
    needs = method.card.needs
    tiny: Any = (given.get("method") or small(method())) if isinstance(method, type) else small(method)
    defaults = {
        "task": tiny_task(needs),
        "federation": lambda sizes, dtype: tiny_federation(needs, sizes, dtype),
        "world": World(spread=0.7, jitter=0.2, latency=0.01, up=1e6, down=2e6) if "clock" in needs else None,
    }
    return Example(**{**defaults, **given, "method": replace(tiny, **overrides)})


M = TypeVar("M")


def small(method: M) -> M:
    """The same method with clipped cohorts and little local work, methods inside it too."""
    changes: dict[str, Any] = {}
    for f in fields(method):  # type: ignore[arg-type]
        value = getattr(method, f.name)
        if f.name in _COUNTS and isinstance(value, int) and not isinstance(value, bool):
            changes[f.name] = min(value, _COUNTS[f.name])
        elif isinstance(value, Solver):
            steps = None if value.steps is None else min(value.steps, 3)
            changes[f.name] = replace(
                value, epochs=min(value.epochs, 2), batch_size=min(value.batch_size, 4), steps=steps
            )
        elif isinstance(value, Method) and is_dataclass(value):
            changes[f.name] = small(value)
    return replace(method, **changes)  # type: ignore[type-var]


_COUNTS = {"cohort": 4, "concurrency": 4, "buffer": 2}
