"""Any other step: the hook, written for one client, is mapped over clients; `f.grad` is one stacked pass for all.

Also masks inside a parameter, and losses that use the weight vector itself: here the weights are a matrix `(k, d)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fedloom.data.fields import Data
from fedloom.training.chance import Steady
from fedloom.training.request import LossHook
from fedloom.training.solvers import SGD, Adam

from .batches import Step
from .cohort import Cohort, built, merged
from .fold import NotStackable
from .forward import Forward
from .rows import Dense, Piece
from .sinks import Explicit
from .steps import Track, differentiate
from .twin import Twin

Stepped = tuple[Tensor, tuple[Tensor, ...]]


class NeedsFullBatches(NotStackable):
    """Something looks at a batch as a whole, and padded samples must not be in it."""


class ExplicitSteps:
    """Steps of arbitrary hooks, with the gradient as a matrix `(k, d)`.

    Attributes:
        w: the weights `(k, d)`; m, v the solver's moments.
        now: the step under way, and who is told its first losses.
    """

    how = "explicit gradients"
    now: Step
    track: Track

    def __init__(self, cohort: Cohort, twin: Twin, forward: Forward) -> None:
        self.cohort, self.twin, self.forward = cohort, twin, forward
        self.layout, self.solver, self.hook = cohort.layout, cohort.solver, cohort.first.step
        self.starts = cohort.starts()
        self.still = None if cohort.only is None else ~cohort.only.to(self.starts.device)  # (d,) or (k, d)
        self.w = self.starts.expand(cohort.k, -1).clone()
        self.k, self.t = cohort.k, 0
        self.carried = _Carried(cohort) if self.hook is not None else None
        self.extras, self.own = self._extras()
        self.momentum = self.solver.momentum if isinstance(self.solver, SGD) else 0.0
        adam = isinstance(self.solver, Adam)
        self.m = torch.zeros_like(self.w if adam or self.momentum else self.w[:0])
        self.v = torch.zeros_like(self.w if adam else self.w[:0])
        self.evaluated = False
        self.steady = Steady(self.starts.device)
        twin.reset()

    def _extras(self) -> tuple[list[Any], list[int]]:
        """Leaves of the extras, and which of them differ per client, `(k, ...)`."""
        own: list[Tensor] = []

        def several(stack: Tensor) -> Tensor:
            own.append(stack)
            return stack

        requests = self.cohort.requests
        tree = {n: merged([r.extras[n] for r in requests], several) for n in self.cohort.first.extras}
        leaves, self.spec = tree_flatten(tree)
        places = [i for i, x in enumerate(leaves) if any(x is o for o in own)]
        return leaves, places

    # ------------------------------------------------------------ stepping
    def active(self, k: int) -> None:
        if self.carried is not None:
            self.carried.active(k)
        self.k = k

    def step(self, step: Step, track: Track) -> None:
        self.now, self.track, self.evaluated = step, track, False
        self.steady.begin()
        k = step.active
        w = self.w[:k]
        with torch.no_grad():
            direction = self.gradient(w, self.forward.hook) if self.carried is None else self._hooked(w, step)
            self._move(w, direction, k)
            for name in self.twin.statistics:
                w[:, self.layout.span(name)] = self.twin.statistics[name].stack.flatten(1)
        self.t += 1

    def _hooked(self, w: Tensor, step: Step) -> Tensor:
        """The directions `(k, d)` of the user's step hook."""
        k, carried, hook = step.active, self.carried, self.hook
        assert carried is not None
        assert hook is not None
        own = [self.extras[i][:k] for i in self.own]
        streams = step.batch if isinstance(step.batch, dict) else {"": step.batch}
        fields = {n: {f: x.unflatten(0, (k, -1)) for f, x in d.items()} for n, d in streams.items()}
        index = torch.arange(k, device=w.device)

        def one(w: Tensor, carry: list[Tensor], own: list[Tensor], fields: Any, index: Tensor) -> Stepped:
            leaves = list(self.extras)
            for i, x in zip(self.own, own):
                leaves[i] = x
            f = StackedObjective(self, index, fields)
            answer = hook(w, f, self.t, carried.tree(carry), tree_unflatten(leaves, self.spec))
            direction, new = answer
            return direction, carried.note(new)

        try:
            direction, new = torch.vmap(one, randomness="different")(w, carried.tensors, own, fields, index)
        except NotStackable:
            raise
        except Exception as e:
            raise NotStackable(f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}", "step hook") from e
        memory = w.untyped_storage().data_ptr()
        carried.tensors = [c.clone() if c.untyped_storage().data_ptr() == memory else c for c in new]
        return direction

    def gradient(self, v: Tensor, hook: LossHook | None) -> Tensor:
        """Gradients at `v` `(k, d)`: clipped, and zero where nothing may move."""
        g = torch.empty_like(v)
        losses, seed = self._evaluate(v, hook)
        names = list(self.twin.weights)
        sink = Explicit(dict(zip(names, (self.layout.view(g, n) for n in names))))
        for w in self.twin.weights.values():
            w.sink = sink
        with torch.enable_grad():
            differentiate(losses, seed)
        for w in self.twin.weights.values():
            w.flush()
        for name in self.twin.statistics:
            g[:, self.layout.span(name)] = 0
        token = self.forward.token
        if token.leaf is not None and token.leaf.grad is not None:
            g += token.leaf.grad
        token.leaf = None
        if (outside := self._outside(len(v))) is not None:
            g.masked_fill_(outside, 0.0)
        if self.solver.clip:
            g *= (self.solver.clip / torch.linalg.vector_norm(g, dim=1, keepdim=True)).clamp_(max=1.0)
        return g

    def _outside(self, k: int) -> Tensor | None:
        return self.still[:k] if self.still is not None and self.still.dim() == 2 else self.still

    def value(self, v: Tensor, hook: LossHook | None) -> Tensor:
        """Mean losses at `v`, `(k,)`."""
        losses, seed = self._evaluate(v, hook, grad=False)
        return (losses * seed).view(len(v), -1).sum(1)

    def _evaluate(self, v: Tensor, hook: LossHook | None, grad: bool = True) -> tuple[Tensor, Tensor]:
        self.forward.active(len(v))
        statistics = {n: p.stack for n, p in self.twin.statistics.items()} if self.evaluated else None
        self.twin.place(v, statistics)
        self.forward.token.matrix, self.forward.token.leaf = v, None
        with torch.set_grad_enabled(grad), self.steady():
            losses = self.forward.losses(self.now, hook)
        if statistics is not None:
            for name, stack in statistics.items():
                self.twin.statistics[name].stack = stack
        seed = self.now.seed(losses)
        if not self.evaluated and hook is self.forward.hook:
            self.track(losses, seed, len(v))
        self.evaluated = True
        return losses, seed

    def _move(self, w: Tensor, direction: Tensor, k: int) -> None:
        """The solver along the directions, in place."""
        solver = self.solver
        outside = self._outside(k)
        before = None if outside is None else w.clone()
        if outside is not None:
            direction = direction.masked_fill(outside, 0.0)
        if isinstance(solver, Adam):
            (b1, b2), t = solver.betas, self.t + 1
            m, v = self.m[:k], self.v[:k]
            w.mul_(1 - solver.lr * solver.weight_decay)
            m.lerp_(direction, 1 - b1)
            v.mul_(b2).addcmul_(direction, direction, value=1 - b2)
            w.addcdiv_(m, v.sqrt().div_(math.sqrt(1 - b2**t)).add_(solver.eps), value=-solver.lr / (1 - b1**t))
        else:
            if solver.weight_decay:
                direction = direction.add(w, alpha=solver.weight_decay)
            if self.momentum:
                direction = self.m[:k].mul_(self.momentum).add_(direction)
            w.add_(direction, alpha=-solver.lr)
        if outside is not None and before is not None:
            torch.where(outside, before, w, out=w)

    # ------------------------------------------------------------ results
    def pieces(self) -> list[Piece]:
        return [Dense(self.w, slice(0, self.layout.size))]

    def carry(self, j: int) -> Any:
        return self.cohort.requests[j].carry if self.carried is None else self.carried.of(j)


class StackedObjective:
    """`f` of a step hook, inside the map over clients: one client's loss `f(v)` and gradient `f.grad(v)`."""

    def __init__(self, steps: ExplicitSteps, index: Tensor, fields: Any) -> None:
        self._steps, self._index, self._fields = steps, index, fields

    @property
    def model(self) -> Any:
        return self._steps.cohort.model

    @property
    def batch(self) -> Any:
        if self._steps.now.padded:
            raise NeedsFullBatches("the step hook looks at its batch, and batches differ in size")
        streams = {n: Data(**fields) for n, fields in self._fields.items()}
        return streams.get("", streams)

    def __call__(self, v: Tensor, loss: LossHook | None = None) -> Tensor:
        hook = loss or self._steps.forward.hook
        return _OfVectors.apply(v, self._index, self._steps, self._steps.value, hook)  # type: ignore[no-any-return]

    def grad(self, v: Tensor, loss: LossHook | None = None) -> Tensor:
        hook = loss or self._steps.forward.hook
        return _OfVectors.apply(v, self._index, self._steps, self._steps.gradient, hook)  # type: ignore[no-any-return]


class _OfVectors(torch.autograd.Function):
    """Leaves the map: is given all clients' vectors at once. The client's index makes sure that it is mapped."""

    generate_vmap_rule = False

    @staticmethod
    def forward(v: Tensor, index: Tensor, steps: ExplicitSteps, of: Callable[..., Tensor], hook: Any) -> Tensor:
        raise NotStackable("the loss is differentiated again inside the step hook")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: it cannot be differentiated."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        v, _, _, of, hook = args
        v = v.expand(info.batch_size, -1) if in_dims[0] is None else v.movedim(in_dims[0], 0)
        return of(v.contiguous(), hook), 0


class _Carried:
    """The carry of all active clients: its tensors side by side, everything else as the hook returned it."""

    def __init__(self, cohort: Cohort) -> None:
        leaves = [tree_flatten(r.carry) for r in cohort.requests]
        first, self.spec = leaves[0]
        if any(spec != self.spec for _, spec in leaves):
            raise NotStackable("carries of different structure")
        self.leaves: list[Any] = list(first)
        self.tensors: list[Tensor] = []
        for i, x in enumerate(first):
            column = [of[i] for of, _ in leaves]
            if isinstance(x, Tensor):
                self.tensors.append(torch.stack([built(c) for c in column]))
                self.leaves[i] = _HERE
            elif any(c != x for c in column):
                raise NotStackable("carries whose numbers differ between clients")
        self.done: dict[int, Any] = {}
        self.k = cohort.k

    def tree(self, tensors: list[Tensor]) -> Any:
        """The carry with these tensors in their places."""
        return _filled(self.leaves, self.spec, tensors)

    def note(self, tree: Any) -> tuple[Tensor, ...]:
        """Remember the structure a hook returned; gives its tensors."""
        leaves, self.spec = tree_flatten(tree)
        self.leaves = [_HERE if isinstance(x, Tensor) else x for x in leaves]
        return tuple(x for x in leaves if isinstance(x, Tensor))

    def active(self, k: int) -> None:
        for j in range(k, self.k):
            self.done[j] = self.of(j)
        self.tensors = [t[:k] for t in self.tensors] if k < self.k else self.tensors
        self.k = min(k, self.k)

    def of(self, j: int) -> Any:
        """Client j's carry."""
        return self.done[j] if j in self.done else self.tree([t[j].clone() for t in self.tensors])


_HERE = object()


def _filled(leaves: list[Any], spec: TreeSpec, tensors: list[Tensor]) -> Any:
    rest = iter(tensors)
    return tree_unflatten([next(rest) if x is _HERE else x for x in leaves], spec)
