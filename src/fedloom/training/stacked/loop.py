"""Train like requests as one computation: choose the way to step, run the steps, hand out the results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fedloom.training.chance import repeatable
from fedloom.training.request import Trained, Training, code_key
from fedloom.training.solvers import SGD, Adam
from fedloom.training.symbols import Affine, recognise

from .adam import AdamSteps
from .affine import AffineSteps, fusible
from .batches import steps
from .cohort import Cohort
from .explicit import ExplicitSteps, NeedsFullBatches
from .fold import NotStackable
from .forward import Forward, survey
from .rows import Chunk
from .steps import Steps
from .twin import Twin, twin_of


def train_stacked(requests: Sequence[Training]) -> list[Trained]:
    """Train requests whose `alike()` keys are equal as one computation, in order.

    Vectors are deferred (`rows.py`): they are built when looked at, and summed by `add_rows` without being built.

    Raises:
        NotStackable: with the reason and the operator; nothing has changed, and `train_plain` will do.
    """
    if not requests:
        return []
    first = requests[0]
    kind = ("stacked", first.model.key(), code_key(first.loss), code_key(first.step))
    key = ("stacked", *(r.key for r in requests))
    try:
        return repeatable(lambda: _grouped(requests), key, kind, first.start.device)
    except NotStackable:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError) as e:
        # Perhaps the caller's mistake, perhaps folding: one by one the same request says which.
        raise NotStackable(f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}") from e


def _grouped(requests: Sequence[Training]) -> list[Trained]:
    twin = twin_of(requests[0].model, requests[0].start)
    if not twin.mixing:
        try:
            return _together(requests, twin)
        except NeedsFullBatches:
            pass
    groups: dict[object, list[int]] = {}
    for i, r in enumerate(requests):
        key = tuple((s.index.shape[1], *s.counts[: r.steps]) for s in r.schedules.values())
        groups.setdefault(key, []).append(i)
    out: dict[int, Trained] = {}
    for members in groups.values():
        out.update(zip(members, _together([requests[i] for i in members], twin, exact=True)))
    return [out[i] for i in range(len(requests))]


def _together(requests: Sequence[Training], twin: Twin, exact: bool = False) -> list[Trained]:
    cohort = Cohort(requests)
    if cohort.steps[0] == 0:
        return [_untouched(r) for r in requests]
    if twin.chunk is not None:
        twin.chunk.release()
        twin.chunk = None
    stepping = _way(cohort, twin)
    tracked = _loop(cohort, twin, stepping, exact)
    twin.how = stepping.how
    chunk = twin.chunk = Chunk(stepping.pieces(), cohort.first.start)
    vectors = chunk.vectors(cohort.requests)
    out: dict[int, Trained] = {}
    for j, (i, r) in enumerate(zip(cohort.order, cohort.requests)):
        if r.steps == 0:
            out[i] = _untouched(r)
        else:
            carry, loss = stepping.carry(j), tracked[j] / r.steps
            out[i] = Trained(vectors[j], r.steps, r.solver.lr, carry, loss)
    return [out[i] for i in range(len(requests))]


def _untouched(r: Training) -> Trained:
    return Trained(r.start.detach().clone(), r.steps, r.solver.lr, r.carry, math.nan)


def _loop(cohort: Cohort, twin: Twin, stepping: Steps, exact: bool) -> list[float]:
    """All steps; gives the sum of each client's mean losses."""
    track = _Track(cohort)
    active = 0
    for step in steps(cohort.requests, cohort.first.start.dtype, twin.clashes, exact):
        if step.active != active:
            active = step.active
            stepping.active(active)
        stepping.step(step, track)
    stepping.active(cohort.k)
    return track.sums()


class _Track:
    """Mean losses per client, summed over steps; losses are only held at first, and added many at a time."""

    def __init__(self, cohort: Cohort) -> None:
        self.total = torch.zeros(cohort.k, dtype=torch.float64, device=cohort.first.start.device)
        self.held: list[tuple[Tensor, Tensor, int]] = []
        self.heard = False

    def __call__(self, losses: Tensor, seed: Tensor, active: int) -> None:
        """One step's losses `(active*B,)` and what backward began with."""
        self.held.append((losses.detach(), seed, active))
        self.heard = True
        if len(self.held) >= 256:
            self.settle()

    def settle(self) -> None:
        by_width: dict[int, list[tuple[Tensor, Tensor, int]]] = {}
        for losses, seed, active in self.held:
            by_width.setdefault(losses.numel() // active, []).append((losses, seed, active))
        for width, held in by_width.items():
            losses, seeds = torch.cat([losses for losses, *_ in held]), torch.cat([seed for _, seed, _ in held])
            means = (losses * seeds).double().view(-1, width).sum(1)
            counts = [active for *_, active in held]
            if counts[0] == counts[-1]:  # all went on to the end
                self.total[: counts[0]] += means.view(len(held), -1).sum(0)
                continue
            by_step = means.new_zeros(len(held), len(self.total))
            clients = torch.arange(len(self.total)) < torch.tensor(counts).unsqueeze(1)
            places = clients.flatten().nonzero().flatten().to(means.device)
            # Each place once and then a sum: a GPU adds to one place in any order, and so to other bits.
            self.total += by_step.view(-1).index_copy_(0, places, means).view(by_step.shape).sum(0)
        self.held = []

    def sums(self) -> list[float]:
        """By client; NaN where no step looked at the loss that is trained on."""
        self.settle()
        return self.total.tolist() if self.heard else [math.nan] * len(self.total)


def _way(cohort: Cohort, twin: Twin) -> Steps:
    """The cheapest way to step that is exact for these requests."""
    first, solver = cohort.first, cohort.solver
    notes = survey(twin, cohort.requests)
    forward = Forward(cohort, twin)
    moving, partial = _moving(twin, cohort.only)
    if not (partial or notes.direct):
        if isinstance(solver, SGD):
            form = _common(cohort, solver)
            if form is not None and fusible(form, cohort):
                return AffineSteps(cohort, twin, forward, form, moving, notes)
        elif isinstance(solver, Adam) and first.step is None:
            return AdamSteps(cohort, twin, forward, moving)
    if not isinstance(solver, SGD | Adam):
        raise NotStackable(f"there is no stacked rule for the solver {type(solver).__name__}")
    return ExplicitSteps(cohort, twin, forward)


def _moving(twin: Twin, only: Tensor | None) -> tuple[set[str], bool]:
    """Names of the parameters that train, and whether one of them does so only in part."""
    if only is None:
        return set(twin.weights), False
    if only.dim() == 2:
        return set(), True
    spans = {n: only[twin.layout.span(n)] for n in twin.weights}
    some = {n for n, s in spans.items() if bool(s.any())}
    return some, any(not bool(spans[n].all()) for n in some)


def _common(cohort: Cohort, solver: SGD) -> Affine | None:
    """The affine form of the step, where all clients have the same one."""
    size, first = cohort.layout.size, cohort.first
    # Like requests have equal numbers, so only numbers that are tensors can make their forms differ.
    numbers = any(isinstance(x, Tensor) and x.dim() == 0 for x in tree_leaves((dict(first.extras), first.carry)))
    among = cohort.requests if numbers else [first]
    forms = {recognise(r.step, r.carry, r.extras, solver, size) for r in among}
    return forms.pop() if len(forms) == 1 else None
