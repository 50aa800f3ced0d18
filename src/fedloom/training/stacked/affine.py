"""Affine steps of SGD: FedAvg, FedProx, SCAFFOLD, FedDyn, decay, momentum, clipping. No gradient tensor is built.

`w' = b w + a g + c`, or with a velocity `v' = p v + q g + r w + c_v`, `w' = b w + c + e v'` (symbols.py). Dense layers
with few local samples are lazy; the gradients of all others go straight into the weights or the velocity.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedloom.training.symbols import Affine, leaf, with_leaf

from .batches import Step, samples
from .cohort import Cohort, Shift, built
from .fold import Notes
from .forward import Forward
from .lazy import LazyDense, Move
from .repeat import LARGEST, Repeat
from .rows import NOTHING, Piece, Terms, combined
from .sinks import Fused, Moving
from .steps import Blocks, Track, clip_scale, differentiate
from .twin import Twin


class AffineSteps:
    """Steps of one affine form, the same for all clients.

    Args:
        moving: names of the parameters that train.
        notes: how the network uses its weights; decides which dense layers may be lazy.
    """

    def __init__(
        self, cohort: Cohort, twin: Twin, forward: Forward, form: Affine, moving: set[str], notes: Notes
    ) -> None:
        self.cohort, self.forward, self.form = cohort, forward, form
        self.clip = cohort.solver.clip
        velocity = form.velocity
        shift = cohort.shift(form.constants, lambda: twin.vectors("shift", cohort.k))
        pull = cohort.shift(velocity.constants, lambda: twin.vectors("pull", cohort.k)) if velocity else Shift()
        layers = lazy_layers(cohort, twin, form, moving, notes, shift, pull)
        names = {n for pair in layers for n in pair if n is not None}
        self.blocks = Blocks(cohort, twin, moving, names)
        start = self.blocks.starts[0] if cohort.start is not None else None
        self.lazies = [self._lazy(twin.lazy(w, b), start, shift, pull, rank) for (w, b), rank in layers.items()]
        if not twin.mixing:  # else partial batches are not padded
            self._look_ahead(notes)
        self.how = "lazy dense layers" if self.lazies else "fused update"
        self.shift = self._pieces(shift, start)
        self.pull = self._pieces(pull, start)
        self.speed: dict[str, Tensor] = {}
        if velocity is None:
            self.blocks.sink(Fused(form.w, form.gradient, bool(self.clip)))
        else:
            self.speed = twin.blocks("velocity", (w.name for w in self.blocks.weights), cohort.k)
            for name, block in self.speed.items():
                self._begin_velocity(name, block)
            self.blocks.sink(Moving(self.speed, velocity.keep, velocity.gradient, bool(self.clip)))
        self.repeat = self._repeat(twin)

    def _repeat(self, twin: Twin) -> Repeat | None:
        """Steps of small networks are repeated; a loss of the caller's own may read what nobody knows of."""
        model, lazies = self.cohort.model, self.lazies
        built = self.cohort.layout.size - sum(layer.out * layer.width for layer in lazies)
        if twin.mixing or built > LARGEST or self.forward.hook is not None:
            return None
        beside = [*self.speed.values(), *(self.shift or ()), *(self.pull or ())]
        parts = tuple(w.name for w in self.blocks.weights), tuple(len(t) == self.cohort.k for t in beside)
        kind = (str(model.block), model.training, self.form, self.clip, *parts, *(layer.kind for layer in lazies))
        return Repeat(twin.repeated, kind, twin.lasting)

    def inside(self) -> list[Tensor]:
        """What a step reads and changes."""
        mine = [*self.blocks.stacks, *self.speed.values(), *self.speeds, *self.shifts, *self.pulls]
        return [*mine, *(t for layer in self.lazies for t in layer.tensors())]

    @property
    def place(self) -> tuple[Any, ...]:
        """How far the lazy layers have come."""
        return tuple(layer.place for layer in self.lazies)

    @place.setter
    def place(self, places: tuple[Any, ...]) -> None:
        for layer, place in zip(self.lazies, places):
            layer.place = place

    def _lazy(self, layer: LazyDense, start: Tensor | None, shift: Shift, pull: Shift, rank: int) -> LazyDense:
        form, velocity, layout = self.form, self.form.velocity, self.cohort.layout
        assert start is not None
        vectors = shift.vectors if shift.vectors is not None else pull.vectors

        def piece(name: str | None, of: Tensor | None) -> Tensor | None:
            return None if of is None or name is None else layout.view(of, name)

        w0 = layout.view(start, layer.weight)
        move = Move(form.w, form.gradient, start=shift.start, shift=float(shift.vectors is not None))
        speed = None
        if velocity is not None:
            pulled = float(pull.vectors is not None)
            speed = Move(velocity.keep, velocity.gradient, velocity.w, pull.start, pulled)
        step = velocity.step if velocity is not None else 0.0
        layer.begin(self.cohort.k, rank, w0, piece(layer.bias, start), move, speed, step)
        layer.p, layer.pb = piece(layer.weight, vectors), piece(layer.bias, vectors)
        layer.start = {id(self.cohort.start): (start, 1.0)}
        layer.sums = shift.terms if shift.vectors is not None else pull.terms
        return layer

    def _look_ahead(self, notes: Notes) -> None:
        """Where a layer's inputs are the batch, those of all steps are known before the first."""
        for layer in self.lazies:
            field = notes.inputs.get((layer.weight, layer.bias))
            if field is not None and layer.p is not None and not layer.shared:
                layer.look_ahead(field, samples(self.cohort.requests, field))

    def _pieces(self, shift: Shift, start: Tensor | None) -> list[Tensor] | None:
        """The constant of the step for each block, `(k or 1, *shape)`."""
        layout = self.cohort.layout
        out = [shift.piece(layout.span(w.name), layout.shapes[w.name], start) for w in self.blocks.weights]
        return None if any(p is None for p in out) else out  # type: ignore[return-value]

    def _begin_velocity(self, name: str, block: Tensor) -> None:
        path = self.form.velocity.leaf if self.form.velocity else None
        if path is None:
            block.zero_()
            return
        for row, r in zip(block, self.cohort.requests):
            row.copy_(self.cohort.layout.view(built(leaf(path, r.extras, r.carry)), name))

    # ------------------------------------------------------------ stepping
    def active(self, k: int) -> None:
        self.forward.active(k)
        self.blocks.active(k)
        for layer in self.lazies:
            layer.active(k)
        self.shifts = [p[:k] for p in self.shift or ()]
        self.pulls = [p[:k] for p in self.pull or ()]
        self.speeds = [v[:k] for v in self.speed.values()]

    def step(self, step: Step, track: Track) -> None:
        losses = self.once(step) if self.repeat is None else self.repeat(step, self)
        track(losses, step.seed(losses), step.active)

    def once(self, step: Step) -> Tensor:
        """The step, and the losses at the weights it began with."""
        losses = self.forward.losses(step, self.forward.hook)
        differentiate(losses, step.seed(losses))
        scale = None
        weights, lazies = self.blocks.weights, self.lazies
        with torch.no_grad():
            if self.clip:
                for w in weights:
                    w.collect()
                scale = clip_scale(self.clip, [x.square() for x in (*weights, *lazies)])
            for w in weights:
                w.flush(scale)
            for layer in lazies:
                layer.flush(scale)
            self._move()
        return losses

    def _move(self) -> None:
        """What is left of a step once the gradients are in: constants, and the velocity."""
        stacks, form = self.blocks.stacks, self.form
        if not stacks:
            return
        if form.velocity is not None:
            speed = self.speeds
            if form.velocity.w:
                torch._foreach_add_(speed, stacks, alpha=form.velocity.w)
            if self.pulls:
                torch._foreach_add_(speed, self.pulls)
            if form.w != 1:
                torch._foreach_mul_(stacks, form.w)
            torch._foreach_add_(stacks, speed, alpha=form.velocity.step)
        if self.shifts:
            torch._foreach_add_(stacks, self.shifts)

    # ------------------------------------------------------------ results
    def pieces(self) -> list[Piece]:
        layout = self.cohort.layout
        lazies = [
            LazyPiece(x, layout.span(x.weight), None if x.bias is None else layout.span(x.bias)) for x in self.lazies
        ]
        return [*self.blocks.pieces(), *lazies]

    def carry(self, j: int) -> Any:
        request, velocity = self.cohort.requests[j], self.form.velocity
        if velocity is None or velocity.leaf is None:
            return request.carry
        vector = built(leaf(velocity.leaf, request.extras, request.carry)).detach().clone()
        for name, block in self.speed.items():
            vector[self.cohort.layout.span(name)] = block[j].flatten()
        return with_leaf(request.carry, velocity.leaf, vector)


class LazyPiece:
    """The entries of one lazy layer in the trained vectors."""

    def __init__(self, layer: LazyDense, weight: slice, bias: slice | None) -> None:
        self.layer, self.weight, self.bias = layer, weight, bias

    def _views(self, vector: Tensor) -> tuple[Tensor, Tensor | None]:
        shape = (self.layer.out, self.layer.width)
        return vector[self.weight].view(shape), None if self.bias is None else vector[self.bias]

    def copy(self, j: int, out: Tensor, a: float = 1.0, terms: Terms = NOTHING) -> None:
        known, parts = self.layer.beside(j)
        whole = combined(terms, known, a).values()
        parts = [*((*self._views(t), c) for t, c in whole), *((w, b, a * u) for w, b, u in parts)]
        self.layer.copy(j, *self._views(out), a, parts)

    def copy_all(self, out: Tensor) -> None:
        for j, vector in enumerate(out):
            self.copy(j, vector)

    def add(self, acc: Tensor, js: Any, weights: Tensor) -> None:
        self.layer.add(*self._views(acc), js, weights)

    def finite(self) -> bool:
        return self.layer.finite()


def fusible(form: Affine, cohort: Cohort) -> bool:
    """Whether the gradient goes to one place only."""
    return form.velocity is None or form.gradient == 0


def lazy_layers(
    cohort: Cohort, twin: Twin, form: Affine, moving: set[str], notes: Notes, shift: Shift, pull: Shift
) -> dict[tuple[str, str | None], int]:
    """Dense layers that pay as a sum of products, and the rank they will reach.

    With r rows of input (samples times steps) against `in * out` weights, building the weights at every step costs
    more as long as `r < in * out / (in + out)`. Below 8192 weights everything is dispatch and the choice is moot.
    """
    if cohort.start is None or (form.velocity is not None and form.velocity.leaf is not None):
        return {}
    if shift.vectors is not None and pull.vectors is not None:
        return {}
    met: dict[str, int] = {}
    for pair in notes.dense:
        for name in pair:
            if name is not None:
                met[name] = met.get(name, 0) + 1
    width = max(s.index.shape[1] for r in cohort.requests for s in r.schedules.values())
    out = {}
    for (weight, bias), rows in notes.dense.items():
        names = {n for n in (weight, bias) if n is not None}
        o, i = cohort.layout.shapes[weight]
        rank = int(cohort.steps[0] * width * rows + 0.5)
        alone = names <= moving and not names & notes.other and all(met[n] == 1 for n in names)
        if alone and o * i > 8192 and rank < o * i / (o + i):
            out[weight, bias] = rank
    return out
