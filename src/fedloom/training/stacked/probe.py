"""Decide by trying: is the stacked result that of each client alone, and is it faster?"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedloom.errors import FedloomError
from fedloom.keyed import generator
from fedloom.training.plain import train_plain
from fedloom.training.request import Schedule, Trained, Training
from fedloom.training.solvers import SGD

from .chunk import choose_chunk
from .fold import NotStackable
from .loop import train_stacked
from .rows import add_rows
from .twin import twin_of

if TYPE_CHECKING:
    from fedloom.model import Model

_WORTHWHILE = 1.1  # times as fast: below, one by one is simpler, and a near tie would be decided by chance
_SECONDS = 0.5  # of timing, about, for each path


@dataclass
class _Found:
    """What was found out about like requests.

    Attributes:
        fault: why they cannot be stacked.
        seen: lengths of the batches that were compared.
        held: what their key has the ids of.
    """

    fault: str | None
    seen: _Lengths
    held: object


@dataclass(frozen=True)
class _Lengths:
    """Of batches: the shortest and the longest of one client, and the longest of a chunk, which is one batch."""

    shortest: int
    longest: int
    together: int

    @staticmethod
    def of(requests: Sequence[Training]) -> _Lengths:
        counts = [s.counts for r in requests for s in r.schedules.values() if s.counts] or [[0]]
        longest = max(own[0] for own in counts)  # only last batches are partial
        return _Lengths(min(map(min, counts)), longest, longest * len(requests))

    def __or__(self, other: _Lengths) -> _Lengths:
        shortest = min(self.shortest, other.shortest)
        return _Lengths(shortest, max(self.longest, other.longest), max(self.together, other.together))


_FOUND: dict[object, _Found] = {}


def probe(requests: Sequence[Training]) -> str | None:
    """Why these requests cannot be trained as one computation; None if they can. Kept by `alike()` key.

    Two clients with different weights, data and odd batch sizes take two steps, stacked and one by one, and all of a
    chunk their largest and their smallest batch. That finds what raises no error: samples that mix, an axis that is not
    the batch, a network that looks at how long its batch is. A later chunk is compared where its batches are shorter or
    longer than any before.
    """
    r, key, lengths = requests[0], requests[0].alike(), _Lengths.of(requests)
    found = _FOUND.get(key)
    if found is None:
        if len(_FOUND) >= 1024:
            _FOUND.clear()
        rest = [x for x in tree_leaves((dict(r.extras), r.carry)) if not isinstance(x, Tensor)]
        with _exactly(r.start.device):
            _FOUND[key] = found = _Found(_fault(requests, _all), lengths, (r.model, r.loss, r.step, rest))
    elif found.fault is None and found.seen | lengths != found.seen:
        with _exactly(r.start.device):
            found.fault = _fault(requests, _as_they_are)
        found.seen |= lengths
    return found.fault


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """On a GPU convolutions are compared in whole float32, and by kernels that repeat themselves: in TF32, which they
    take by default, two ways to compute the same thing agree in the first three digits or so."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic = "ieee", False, True
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic = before


_Trials: TypeAlias = list[tuple[Callable[[int], list[Training]], float]]
"""Requests that are compared, of one draw or another, and by how much of a step results may differ."""


def _fault(requests: Sequence[Training], trials: Callable[[Sequence[Training]], _Trials]) -> str | None:
    """Why stacked results are not those of each client alone."""
    busy = [r for r in requests if r.steps > 0]
    if not busy:
        return None
    bits = torch.finfo(busy[0].start.dtype).bits
    try:
        for made, allowed in trials(busy):
            if bits == 16:  # a second step repeats what rounding did to the first
                allowed = max(allowed, 0.3)
            elif bits == 64:
                allowed = min(allowed, 1e-6)
            # By rounding one activation may fall on the other side of its bend: what is wrong is so in both draws.
            worst = _differ(made(0))
            if not worst <= allowed and not (worst := _differ(made(1))) <= allowed:
                return (
                    f"its result differs from that of each client alone (by {100 * worst:.2g} % of a step), as where "
                    f"samples mix, the length of a batch is looked at, or weights are met around autograd"
                )
    except NotStackable as e:
        return str(e)
    except FedloomError:
        return None  # the caller's mistake: whoever trains will hear of it
    return None


def _differ(made: list[Training]) -> float:
    return max(map(_apart, train_stacked(made), train_plain(made), made))


def _all(busy: Sequence[Training]) -> _Trials:
    """Two clients and steps of all kinds, and the batches there are.

    Raises:
        NotStackable: there is nothing to compare with.
    """
    pair = (busy[0], busy[-1])
    hooked, bare = _changes(pair[0])
    unequal, equal = ((5, 2), (3, 3)), ((3, 3), (3, 3))
    made = _small(pair, unequal, True, bare)
    again = max(map(_apart, train_plain(made), train_plain(_reseeded(made)), made))
    if again > (1e-4 if pair[0].start.is_cuda else 1e-6):  # some kernels of a GPU add in any order
        raise NotStackable("it draws random numbers that cannot be switched off to compare with")
    trials: _Trials = [
        (partial(_small, pair, unequal, True, bare), 1e-3),
        (partial(_small, pair, equal, True, bare), 1e-3),  # batch norm takes together whose batches are equal
        (partial(_small, pair, equal, False, bare), 1e-3),
    ]
    if pair[0].step is not None:
        # A rule like Adam's makes whole steps of what is zero but for rounding: hooks are compared roughly.
        trials.append((partial(_small, pair, unequal, False, hooked), 0.5))
    return [*trials, *_as_they_are(busy)]


def _as_they_are(busy: Sequence[Training]) -> _Trials:
    """The batches there are."""
    return [(partial(_real, busy, _changes(busy[0])[1]), 1e-2)]


def _changes(r: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is different in requests that are compared: with the step hook, and without."""
    clip, short = r.solver.clip, torch.finfo(r.start.dtype).bits == 16
    lr = (0.3 if short else 1e-2) / min(1.0, clip or 1.0)  # steps that rounding of the weights does not hide
    hooked: dict[str, Any] = {"model": _without_chance(r.model), "solver": SGD(lr=1e-2, clip=clip)}
    return hooked, {**hooked, "solver": SGD(lr=lr, clip=clip), "step": None, "carry": None}


def _small(
    pair: Sequence[Training], sizes: Sequence[tuple[int, int]], own: bool, changes: Mapping[str, Any], draw: int = 0
) -> list[Training]:
    """Two steps of each request with batches of these sizes, from starts of their own where asked."""
    made: list[Training] = []
    shared = _start(pair[0], draw)
    for j, (r, counts) in enumerate(zip(pair, sizes)):
        schedules = {}
        for name, data in r.data.items():
            index = (torch.arange(2 * max(counts)) * 7 + 3 * j) % len(data)
            schedules[name] = Schedule(index.view(2, -1), list(counts))
        start = _moved(r, j, draw) if own else shared
        made.append(replace(r, start=start, steps=2, schedules=schedules, key=("probe", j), **changes))
    return made


def _real(busy: Sequence[Training], changes: Mapping[str, Any], draw: int) -> list[Training]:
    """The first step and the one with the fewest samples, of as many requests as are trained together."""
    made: list[Training] = []
    start = _start(busy[0], draw)
    for r in busy[: choose_chunk(busy[0], len(busy))]:
        counts = [sum(at) for at in zip(*(s.counts[: r.steps] for s in r.schedules.values()))]
        at = sorted({0, counts.index(min(counts))}) if counts else [0]
        schedules = {n: Schedule(s.index[at], [s.counts[k] for k in at]) for n, s in r.schedules.items()}
        own = start if r.start is busy[0].start else r.start
        made.append(replace(r, start=own, steps=len(at), schedules=schedules, **changes))
    return made


def _start(r: Training, draw: int) -> Tensor:
    """Where a request starts, and in a second draw near to it."""
    return _moved(r, "all", draw) if draw else r.start


def _moved(r: Training, *key: int | str) -> Tensor:
    """Near to where a request starts; what begins at zero is moved as well."""
    start = r.start.detach().clone()
    noise = torch.randn(start.shape, generator=generator("probe", *key)).to(start)
    size = start.abs()
    size[: r.model.layout.trainable] += start.double().square().mean().sqrt().to(start.dtype)
    return start.add_(0.05 * noise * size)


def _reseeded(requests: Sequence[Training]) -> list[Training]:
    return [replace(r, key=("probe again", *r.key)) for r in requests]


def _apart(a: Trained, b: Trained, r: Training) -> float:
    """The difference of two results relative to how far training moved, beyond what rounding does to the weights."""
    x, y, start = a.vector.clone().double(), b.vector.clone().double(), r.start.detach().clone().double()
    rounding = torch.finfo(r.start.dtype).eps * 4 * float(start.norm())
    if not bool(torch.isfinite(y).all()):
        return 0.0
    return max(0.0, float((x - y).norm()) - rounding) / max(float((y - start).norm()), 1e-30)


def _without_chance(model: Model) -> Model:
    """The model with dropout switched off, where it has any: what is random cannot be compared."""
    from fedloom.model import _Shared

    def rate(m: nn.Module) -> str | None:
        names = ("p", "dropout") if "Dropout" in type(m).__name__ else ("dropout",)
        return next((n for n in names if isinstance(m.__dict__.get(n), float) and m.__dict__[n] > 0), None)

    if not any(rate(m) for m in model.module.modules()):
        return model
    quiet = copy.copy(model)
    frozen = {id(p): p for p in model.module.parameters() if not p.requires_grad}
    quiet.module = copy.deepcopy(model.module, dict(frozen))
    for m in quiet.module.modules():
        if (name := rate(m)) is not None:
            setattr(m, name, 0.0)
    quiet._shared = _Shared(quiet.module, model.buffers)
    return quiet


# ---------------------------------------------------------------- time
def best_path(requests: Sequence[Training]) -> tuple[str, str]:
    """The faster path, "stacked" or "plain", and why, in words for the run's configuration.

    Times a few steps of these very requests both ways, and the sum of what they come to, which is all that most
    servers ask for. Call it after `probe`.
    """
    busy = [r for r in requests if r.steps > 0]
    if len(busy) < 2:
        return "plain", "a single client"
    busy = busy[: choose_chunk(busy[0], len(busy))]
    k = len(busy)
    if k < 2:
        return "plain", "a chunk of one"
    device = busy[0].start.device
    alone = _seconds(lambda: train_plain(_shortened(busy[:1], 4)), device) / min(4, busy[0].steps)
    limit = max(3, int(_SECONDS / (alone * k)))
    some = _shortened(busy, limit)
    try:
        together = _seconds(lambda: _summed(train_stacked(some)), device)
    except NotStackable as e:
        return "plain", str(e)
    few = some if alone * sum(r.steps for r in some) < _LOOK * 5 else some[:: max(1, k // 4)]
    one_by_one = _seconds(lambda: _summed(train_plain(few)), device) * k / len(few)
    ratio = one_by_one / together
    how = f"chunk of {k}, {twin_of(busy[0].model, busy[0].start).how}: {ratio:.2g}x as fast as one by one"
    return ("stacked" if ratio > _WORTHWHILE else "plain"), how


def _shortened(requests: Sequence[Training], steps: int) -> list[Training]:
    return [replace(r, steps=min(r.steps, steps)) for r in requests]


def _summed(results: Sequence[Trained]) -> Tensor:
    first = results[0].vector
    acc = torch.zeros(first.shape, dtype=first.dtype, device=first.device)
    add_rows(acc, [r.vector for r in results], [1.0] * len(results))
    return acc


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few runs, after those that warm up: what can be repeated is by then. Short ones are run more
    often, so that what else the machine does decides nothing. A GPU has done its part when the clock is read."""

    def wait() -> None:
        if device.type == "cuda":  # a GPU that is merely there is left alone: forked workers may not even ask it
            torch.cuda.synchronize(device)

    for _ in range(3):
        work()
    wait()
    times: list[float] = []
    while len(times) < 2 or (sum(times) < _LOOK and len(times) < 20):
        begin = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times)


_LOOK = 0.02
"""Seconds of short runs that are looked at."""
