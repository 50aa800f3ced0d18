"""The sequential path: one client after the other on one live module. Any module, any loss, any step.

Two loops. Steps that are affine (symbols.py) are fused: what autograd gives goes straight into the weights.
All others (Adam, SAM, a rule of your own, a mask inside a parameter) take the gradient as one flat vector.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports no public names for its fused operations on lists of tensors)
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedloom.data.fields import Data
from fedloom.errors import ConfigError, NotSupported
from fedloom.message import mapped

from .chance import Steady, repeatable
from .live import Live, LiveModel, Selection, live_of
from .request import LossHook, Schedule, Trained, Training, code_key
from .single import singles_told
from .solvers import SGD, Adam, Solver
from .symbols import Affine, Terms, Velocity, leaf, recognise, with_leaf

if TYPE_CHECKING:
    from fedloom.model import Model


def train_plain(requests: Sequence[Training]) -> list[Trained]:
    """Every request on its own, in order."""
    return [train_one(r) for r in requests]


def train_one(request: Training) -> Trained:
    """One client's local training. `start` is not touched; the result is a fresh vector.

    A loss that is not finite is no error here: the result shows it, and the engine judges replies.

    Raises:
        ConfigError: a hook returned something of the wrong shape, or `only` does not fit.
        DataError: a batch of one sample, from which a normalisation over batches cannot be computed.
        NotSupported: a solver this path does not know.
    """
    kind = (request.model.key(), code_key(request.loss), code_key(request.step))
    samples, batch_size = max(map(len, request.data.values()), default=0), request.solver.batch_size
    with singles_told(request.client, samples, batch_size, "another batch_size of the solver"):
        return repeatable(lambda: _train(request), request.key, kind, request.start.device)


def _train(request: Training) -> Trained:
    live = live_of(request.model, request.start)
    live.load(request.start)
    moving = live.selection(request.only)
    form = recognise(request.step, request.carry, request.extras, request.solver, live.vector.numel())
    track = Mean()
    if form is None or moving.partial:
        vector, carry = _explicit(request, live, moving, track)
    else:
        vector, carry = _fused(request, live, moving, form, track)
    moving.restore(vector, request.start)
    return Trained(vector, request.steps, request.solver.lr, carry, track.value())


# ---------------------------------------------------------------- affine steps
def _fused(request: Training, live: Live, moving: Selection, form: Affine, track: Mean) -> tuple[Tensor, Any]:
    """`w' = w * w + gradient * g + constants (+ velocity)`, in place, without a flat gradient."""
    losses, targets = _losses(request.model, request.loss, request, live, moving)
    clip, pieces = request.solver.clip, moving.views
    drift = _drift(request, moving, live.vector, form.w, form.constants)
    velocity = None if form.velocity is None else _Momentum(request, moving, live.vector, form.velocity)
    for batch in batches(request):
        each = losses(batch)
        track.add(each)
        grads = _complete(live.gradients(each, targets), moving)
        if clip:
            grads = _dense(grads)
        scale = 1.0
        if clip and live.vector.is_cuda:  # nobody waits for a number
            grads = list(torch._foreach_mul(grads, _shrunk(grads, clip)))
        elif clip:
            scale = min(1.0, clip / max(_norm(grads), 1e-300))
        if velocity is not None:
            velocity.take(grads, scale)
        if drift is not None:
            drift()
        if form.gradient:
            torch._foreach_add_(pieces, grads, alpha=form.gradient * scale)
        if velocity is not None:
            velocity.move()
    carry = request.carry if velocity is None else velocity.carry(request.carry)
    return live.vector.clone(), carry


def _drift(
    request: Training, moving: Selection, vector: Tensor, keep: float, constants: Terms
) -> Callable[[], object] | None:
    """The part of a step without gradient, `w <- keep * w + constants`, in one pass; None if nothing."""
    if not constants and keep == 1.0:
        return None
    into = moving.cut(vector)
    if not constants:
        return lambda: torch._foreach_mul_(into, keep)
    path, c = constants[0]
    if len(constants) == 1:
        towards = moving.cut(leaf(path, request.extras, request.carry).to(vector))
        if keep == 1.0:
            return lambda: torch._foreach_add_(into, towards, alpha=c)
        if math.isclose(keep + c, 1.0, rel_tol=1e-15):  # proximal: a step towards the anchor
            return lambda: torch._foreach_lerp_(into, towards, c)
    shift = moving.cut(_sum(request, constants, vector))

    def both() -> None:
        for w, s in zip(into, shift):
            torch.add(s, w, alpha=keep, out=w)

    return both


def _sum(request: Training, constants: Terms, like: Tensor) -> Tensor:
    """`sum c * constant`, a fresh vector."""
    total = torch.zeros_like(like)
    for path, c in constants:
        total.add_(leaf(path, request.extras, request.carry).to(like), alpha=c)
    return total


class _Momentum:
    """The one velocity an affine step may have."""

    def __init__(self, request: Training, moving: Selection, vector: Tensor, form: Velocity) -> None:
        self.form = form
        if form.leaf is None:
            self.buffer = torch.zeros_like(vector)
        else:
            self.buffer = leaf(form.leaf, request.extras, request.carry).to(vector, copy=True)
        self.whole, self.pieces = moving.cut(self.buffer), moving.like(self.buffer)
        self.weights = moving.cut(vector)
        self.shift: list[Tensor] | None = None
        if form.constants:
            self.shift = moving.cut(_sum(request, form.constants, vector))

    def take(self, grads: list[Tensor], scale: float) -> None:
        form = self.form
        if form.keep != 1.0:
            torch._foreach_mul_(self.whole, form.keep)
        if form.gradient:
            torch._foreach_add_(self.pieces, grads, alpha=form.gradient * scale)
        if form.w:
            torch._foreach_add_(self.whole, self.weights, alpha=form.w)
        if self.shift is not None:
            torch._foreach_add_(self.whole, self.shift)

    def move(self) -> None:
        if self.form.step:
            torch._foreach_add_(self.weights, self.whole, alpha=self.form.step)

    def carry(self, carry: Any) -> Any:
        return carry if self.form.leaf is None else with_leaf(carry, self.form.leaf, self.buffer)


# ---------------------------------------------------------------- any other step
def _explicit(request: Training, live: Live, moving: Selection, track: Mean) -> tuple[Tensor, Any]:
    """Directions as flat vectors: the step hook's, or the gradient; the solver moves along them."""
    step, carry, t = request.step, request.carry, live.layout.trainable
    # a hook may write into it: not into the caller's, whose training is repeated where ways to compute it are compared
    carry = mapped(carry, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
    f = Objective(request, live, moving, track)
    move = _mover(request.solver, moving, live.moving)
    w = live.vector if step is None else live.vector.clone()
    for k, batch in enumerate(batches(request)):
        f.begin(batch)
        if step is None:
            direction = f.grad(w)
        else:
            direction, carry = _answer(step(w, f, k, carry, request.extras), w)
            w = w.clone()  # the hook may keep the vector it was given
        move(w[:t], direction[:t])
        if step is not None:
            w[t:].copy_(live.statistics)
    return (w.clone() if w is live.vector else w), carry


def _answer(answer: Any, w: Tensor) -> tuple[Tensor, Any]:
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise ConfigError(
            f"a step hook returns (direction, carry); this one returned {type(answer).__name__}. "
            f"Write `return direction, carry`, also when there is nothing to carry"
        )
    direction = answer[0]
    if not isinstance(direction, Tensor) or direction.shape != w.shape:
        given = tuple(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise ConfigError(f"a step hook's direction is a vector {tuple(w.shape)}; this one returned {given}")
    return direction.detach(), answer[1]


class Objective:
    """`f` of a step hook: the loss on this step's batch as a function of the weights.

    `f(v)` is the mean loss (0-dim), `f.grad(v)` its gradient `(d,)`, clipped if the solver clips and zero
    wherever nothing may move; both take another loss hook as second argument. Differentiable where `v` is
    being differentiated (`requires_grad`, `torch.func`). `f.batch` and `f.model` are what loss hooks get. The
    statistics of the network and its randomness (dropout) are those of the first evaluation in a step.
    """

    def __init__(self, request: Training, live: Live, moving: Selection, track: Mean) -> None:
        self.model = LiveModel(request.model, live)
        self.batch: Any = None
        self._request, self._live, self._moving, self._track = request, live, moving, track
        self._losses: dict[LossHook | None, tuple[Callable[[Any], Tensor], Sequence[Tensor]]] = {}
        self._at: tuple[Tensor, int] | None = None
        self._evaluated = False
        self._steady = Steady(live.vector.device)

    def begin(self, batch: Any) -> None:
        """The next step."""
        self.batch, self._evaluated = batch, False
        self._at = None
        self._steady.begin()

    def __call__(self, v: Tensor, loss: LossHook | None = None) -> Tensor:
        with self._steady():
            if _followed(v):
                return self._mean(v, loss)
            with torch.no_grad():
                return self._evaluate(v, loss, lambda each, _: each.mean())

    def grad(self, v: Tensor, loss: LossHook | None = None) -> Tensor:
        with self._steady():
            if not _followed(v):
                g = self._evaluate(v, loss, self._flat)
            elif _wrapped(v):
                g = torch.func.grad(lambda u: self._mean(u, loss))(v)
            else:
                (g,) = torch.autograd.grad(self._mean(v, loss), v, create_graph=True)
        if self._moving.inside is not None:
            g = g * self._moving.inside
        clip = self._request.solver.clip
        return g if clip is None else g * (clip / torch.linalg.vector_norm(g)).clamp(max=1.0)

    def _mean(self, v: Tensor, loss: LossHook | None) -> Tensor:
        """Through the pure model, so that it can be differentiated any number of times."""
        request = self._request
        hook, model = loss or request.loss, request.model
        each = model.losses(v, self.batch) if hook is None else hook(model, v, self.batch, request.extras)
        return each.mean()

    def _evaluate(self, v: Tensor, loss: LossHook | None, use: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> Tensor:
        """`use(losses, targets)` with the live module at `v`."""
        live, hook = self._live, loss or self._request.loss
        if hook not in self._losses:
            self._losses[hook] = _losses(self._request.model, hook, self._request, live, self._moving)
        losses, targets = self._losses[hook]
        if v is not live.vector and (self._at is None or self._at[0] is not v or self._at[1] != v._version):
            live.moving.copy_(v[: live.layout.trainable])
            self._at = (v, v._version)
        keep = live.statistics.clone() if self._evaluated and live.statistics.numel() else None
        each = losses(self.batch)
        if not self._evaluated and loss is None:
            self._track.add(each)
        out = use(each, targets)
        if keep is not None:
            live.statistics.copy_(keep)
        self._evaluated = True
        return out

    def _flat(self, each: Tensor, targets: Sequence[Tensor]) -> Tensor:
        grads = _dense(_complete(self._live.gradients(each, targets), self._moving))
        out = torch.zeros_like(self._live.vector)
        if grads:
            torch._foreach_copy_(self._moving.like(out), grads)
        return out


def _followed(v: Tensor) -> bool:
    return v.requires_grad or _wrapped(v)


def _wrapped(v: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(v)  # type: ignore[attr-defined]


def _mover(solver: Solver, moving: Selection, like: Tensor) -> Callable[[Tensor, Tensor], None]:
    """`move(w, direction)` of a solver, in place, with its own moments; on `(t,)`, without statistics."""
    inside = None if moving.inside is None else moving.inside[: len(like)]
    if isinstance(solver, SGD):
        return _sgd(solver, like, inside)
    if isinstance(solver, Adam):
        return _adam(solver, like, inside)
    raise NotSupported(
        f"no local rule for the solver {type(solver).__name__}; there are SGD and Adam. "
        f"A rule of your own is a step hook: step(w, f, k, carry, extras) -> (direction, carry)"
    )


def _sgd(solver: SGD, like: Tensor, inside: Tensor | None) -> Callable[[Tensor, Tensor], None]:
    m = torch.zeros_like(like) if solver.momentum else None

    def move(w: Tensor, direction: Tensor) -> None:
        if solver.weight_decay:
            direction = direction.add(w, alpha=solver.weight_decay)
        if inside is not None:
            direction = direction * inside
        if m is not None:
            direction = m.mul_(solver.momentum).add_(direction)
        w.add_(direction, alpha=-solver.lr)

    return move


def _adam(solver: Adam, like: Tensor, inside: Tensor | None) -> Callable[[Tensor, Tensor], None]:
    m, v = torch.zeros_like(like), torch.zeros_like(like)
    (b1, b2), decay, t = solver.betas, solver.lr * solver.weight_decay, 0

    def move(w: Tensor, direction: Tensor) -> None:
        nonlocal t
        t += 1
        if inside is not None:
            direction = direction * inside
        if decay:
            w.mul_(1 - decay) if inside is None else w.sub_(w * inside, alpha=decay)
        m.lerp_(direction, 1 - b1)
        v.mul_(b2).addcmul_(direction, direction, value=1 - b2)
        scale = v.sqrt().div_(math.sqrt(1 - b2**t)).add_(solver.eps)
        w.addcdiv_(m, scale, value=-solver.lr / (1 - b1**t))

    return move


# ---------------------------------------------------------------- shared by both loops
def _losses(
    model: Model, hook: LossHook | None, request: Training, live: Live, moving: Selection
) -> tuple[Callable[[Any], Tensor], Sequence[Tensor]]:
    """The loss at the live weights as a function of the batch, and what to differentiate it by."""
    if hook is None:
        return live.losses(model), moving.parameters
    seen, extras = LiveModel(model, live), request.extras
    return lambda batch: hook(seen, live.token, batch, extras), [*moving.parameters, live.token]


def _complete(grads: Sequence[Tensor | None], moving: Selection) -> list[Tensor]:
    """One gradient for each moving piece: zero if the loss does not see it, plus what came through `w`."""
    pieces, direct = moving.views, None
    if len(grads) > len(pieces):
        *grads, direct = grads
    if any(g is None for g in grads):
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(pieces, grads)]
    if direct is not None:
        grads = torch._foreach_add(_dense(grads), moving.like(direct))  # type: ignore[arg-type]
    return list(grads)  # type: ignore[arg-type]


def _dense(grads: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of `nn.Embedding(sparse=True)` as others are: sums take them as they come, norms and copies do not."""
    return [g.to_dense() if g.is_sparse else g for g in grads]


def _norm(grads: list[Tensor]) -> float:
    """Euclidean norm of a gradient in pieces."""
    return math.hypot(*map(float, torch._foreach_norm(grads))) if grads else 0.0


def _shrunk(grads: list[Tensor], clip: float) -> Tensor:
    """What brings a gradient in pieces to the norm allowed, 0-dim."""
    return (clip / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))).clamp_(max=1.0)


_WINDOW_STEPS, _WINDOW_BYTES = 128, 1 << 22


def batches(request: Training) -> Iterator[Any]:
    """The batch of each step: `Data`, or a dict of them when there are several streams."""
    streams = {n: _stream(d, request.schedules[n], request.steps) for n, d in request.data.items()}
    if "" in streams:
        return streams[""]
    return (dict(zip(streams, together)) for together in zip(*streams.values()))


def _stream(data: Data, schedule: Schedule, steps: int) -> Iterator[Data]:
    """Batches gathered for many steps at once: one `index_select` a window, then views."""
    names, tensors, size = tuple(data), tuple(data.values()), schedule.index.shape[1]
    nbytes = size * sum(math.prod(t.shape[1:]) * t.element_size() for t in tensors)
    window = max(1, min(_WINDOW_STEPS, _WINDOW_BYTES // max(1, nbytes)))
    index = schedule.index.to(tensors[0].device) if tensors else schedule.index
    for at in range(0, steps, window):
        rows = index[at : min(at + window, steps)]
        flat = rows.reshape(-1)
        columns = [t.index_select(0, flat).view(*rows.shape, *t.shape[1:]).unbind(0) for t in tensors]
        for count, batch in zip(schedule.counts[at:], zip(*columns)):
            if count != size:
                batch = [t[:count] for t in batch]
            yield Data.cut(dict(zip(names, batch)), count)


class Mean:
    """The mean over steps of each step's mean loss, kept off the hot path: losses are only held, and added
    later."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self._total, self._steps = 0.0, 0

    def add(self, losses: Tensor) -> None:
        """One step's losses, one per sample or already their mean."""
        self._held.append(losses.detach())
        if len(self._held) >= 1024:
            self._settle()

    def value(self) -> float:
        """NaN when there were no steps."""
        self._settle()
        return self._total / self._steps if self._steps else math.nan

    def _settle(self) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for losses in self._held:
            by_shape.setdefault(losses.shape, []).append(losses)
        for shape, group in by_shape.items():
            joined = torch.cat(group) if shape else torch.stack(group)
            self._total += float(joined.sum(dtype=torch.float64)) / max(1, shape.numel())
        self._steps += len(self._held)
        self._held.clear()
