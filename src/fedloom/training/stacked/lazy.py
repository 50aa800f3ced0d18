"""Dense layers whose weights are never built: `w_t = s * w_0 + u * p + C^T A`.

With few local samples the change of a dense layer has low rank: A holds the layer's inputs so far, C the output
gradients times the step size. A step appends rows; the product with the shared start w_0 is one GEMM for all clients.
Exact for affine steps whose constants are multiples of the start (FedAvg, FedProx, weight decay, momentum) and of one
more vector p, which may differ per client (SCAFFOLD, FedDyn). The bias rides along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, cast

import torch
from torch import Tensor

from fedloom.training.products import product, products, shaped

from .fold import NotStackable, field_of
from .perclient import PerClient
from .rows import NOTHING, Terms, combined, picked
from .weight import GRAPH, once


@dataclass(frozen=True)
class Move:
    """`x' = keep * x + gradient * g + w * w + start * w_0 + shift * p`."""

    keep: float
    gradient: float
    w: float = 0.0
    start: float = 0.0
    shift: float = 0.0


class Coefficients:
    """What a vector is made of: `s * w_0 + u * p + C^T A`.

    Attributes:
        rows: C, `(n, capacity, out)`; `live` those of the clients that go on.
    """

    def __init__(self) -> None:
        self.s, self.u = 0.0, 0.0
        self.rows = self.live = torch.empty(0, 0, 0)

    def moved(self, move: Move, w: Coefficients, r: int) -> None:
        """One step on what is there; the rows of the new gradient are appended by the layer."""
        if self is not w and move.w:
            self.live[:, :r].mul_(move.keep).add_(w.live[:, :r], alpha=move.w)
        elif move.keep != 1:
            self.live[:, :r].mul_(move.keep)
        self.s = move.keep * self.s + move.w * w.s + move.start
        self.u = move.keep * self.u + move.w * w.u + move.shift


_Parts: TypeAlias = tuple[Tensor, Tensor | None, float]
"""A vector's part for a layer's weight and bias, and its factor."""


class LazyDense:
    """One dense layer of k clients.

    Args:
        weight, bias: names in the layout; `bias` None for none.
        shape: `(out, in)`.

    Attributes:
        w0, b0: pieces of the shared start; `start` is all of it.
        p, pb: the second vector's pieces, `(n, out, in)` and `(n, out)`, or one `(1, ...)`.
        sums: for each client what p is the sum of, where that is known.
        inputs: A, `(n, capacity, in)`.
        ahead: x p^T for the inputs x of all steps, `(n, steps, batch, out)`, where these are a `field` of the batch.
        live, live_p, live_pb, live_ahead: those of the clients that go on.
        r: rows so far.
    """

    start: Terms
    w0: Tensor
    b0: Tensor | None

    def __init__(self, weight: str, bias: str | None, shape: Sequence[int]) -> None:
        self.weight, self.bias = weight, bias
        self.out, self.width = shape
        self.inputs = self.live = torch.empty(0, 0, 0)
        self.w, self.v = Coefficients(), Coefficients()
        self.p = self.live_p = cast("Tensor | None", None)
        self.pb = self.live_pb = cast("Tensor | None", None)
        self.ahead = self.live_ahead = cast("Tensor | None", None)
        self.field = ""
        self.sums: Sequence[Terms] | None = None
        self.held: list[tuple[Tensor, Tensor]] = []
        self.k = self.r = 0
        self.stopped: dict[int, tuple[float, float, int]] = {}

    # ------------------------------------------------------------ one chunk
    def begin(
        self, n: int, rank: int, w0: Tensor, b0: Tensor | None, move: Move, velocity: Move | None, step: float
    ) -> None:
        """Start anew from shared weights; memory is kept from chunk to chunk."""
        self.w0, self.b0 = w0, b0
        self.move, self.velocity, self.step = move, velocity, step
        self.w.s, self.w.u, self.v.s, self.v.u = 1.0, 0.0, 0.0, 0.0
        self.k, self.r, self.held, self.stopped, self.ahead = n, 0, [], {}, None
        self.inputs = _room(self.inputs, n, rank, self.width, w0)
        self.w.rows = _room(self.w.rows, n, rank, self.out, w0)
        if velocity is not None:
            self.v.rows = _room(self.v.rows, n, rank, self.out, w0)

    def look_ahead(self, field: str, inputs: Tensor) -> None:
        """Take the products of p with the inputs of all steps, `(n, steps, batch, ...)`, at once: p, which may be
        large, is then read once and not at every step."""
        assert self.p is not None
        self.field = field
        n, steps, batch = inputs.shape[:3]
        self.ahead = products(inputs.view(n, steps * batch, -1), self.p).view(n, steps, batch, self.out)

    def active(self, k: int) -> None:
        """Only the first k clients go on."""
        for j in range(k, self.k):
            self.stopped[j] = (self.w.s, self.w.u, self.r)
        self.k = k
        self.live, self.w.live = self.inputs[:k], self.w.rows[:k]
        self.live_p, self.live_pb, self.live_ahead = (
            None if p is None else p[:k] for p in (self.p, self.pb, self.ahead)
        )
        if self.velocity is not None:
            self.v.live = self.v.rows[:k]

    # ------------------------------------------------------------ for those who repeat its steps
    @property
    def shared(self) -> bool:
        """Whether p is one vector for all clients."""
        return self.p is not None and len(self.p) == 1

    @property
    def kind(self) -> tuple[Any, ...]:
        """What its steps have in common, whoever takes part."""
        moved = self.p is not None, self.pb is not None, self.shared, self.ahead is not None
        return self.weight, self.bias, *moved, self.inputs.shape[1], self.w.rows.shape[1], self.v.rows.shape[1]

    @property
    def place(self) -> tuple[float, ...]:
        """How far it has come, all but its tensors; it can be set."""
        return self.r, self.w.s, self.w.u, self.v.s, self.v.u

    @place.setter
    def place(self, place: tuple[Any, ...]) -> None:
        self.r, self.w.s, self.w.u, self.v.s, self.v.u = place

    def tensors(self) -> list[Tensor]:
        """What its steps read and write."""
        mine = [self.live, self.w.live, self.w0, self.b0, self.live_p, self.live_pb, self.live_ahead]
        return [t for t in (*mine, *([self.v.live] if self.velocity else ())) if t is not None]

    # ------------------------------------------------------------ one step
    def square(self) -> Tensor | None:
        """Squared norm of the held gradient per client, bias included."""
        if not self.held:
            return None
        x, g = self._one()
        gram = torch.bmm(x, x.mT)
        if self.bias is not None:
            gram.add_(1.0)
        return (gram * torch.bmm(g, g.mT)).sum((1, 2))

    def _one(self) -> tuple[Tensor, Tensor]:
        if len(self.held) > 1:
            self.held = [(torch.cat([x for x, _ in self.held], 1), torch.cat([g for _, g in self.held], 1))]
        return self.held[0]

    def flush(self, scale: Tensor | None = None) -> None:
        """End of a step: move what is there, append what the backward pass handed over, times `scale` `(k,)`."""
        r = new = self.r
        if self.held:
            x, g = self._one()
            self.held = []
            new = r + x.shape[1]
            if new > self.inputs.shape[1]:
                self._grow(new)
            if scale is not None:
                g = g * scale.view(-1, 1, 1)
            self.live[:, r:new].copy_(x)
            torch.mul(g, self.move.gradient, out=self.w.live[:, r:new])
            if self.velocity is not None:
                torch.mul(g, self.velocity.gradient, out=self.v.live[:, r:new])
        if self.velocity is not None:
            self.v.moved(self.velocity, self.w, r)
        self.w.moved(self.move, self.w, r)
        if self.velocity is not None:
            self.w.live[:, :new].add_(self.v.live[:, :new], alpha=self.step)
            self.w.s += self.step * self.v.s
            self.w.u += self.step * self.v.u
        self.r = new

    def _grow(self, rank: int) -> None:
        def longer(x: Tensor) -> Tensor:
            out = x.new_empty(x.shape[0], 2 * rank, x.shape[2])
            out[:, : self.r] = x[:, : self.r]
            return out

        self.inputs, self.w.rows = longer(self.inputs), longer(self.w.rows)
        if self.velocity is not None:
            self.v.rows = longer(self.v.rows)
        self.active(self.k)

    # ------------------------------------------------------------ results
    def _state(self, j: int) -> tuple[float, float, int]:
        return self.stopped.get(j, (self.w.s, self.w.u, self.r))

    def beside(self, j: int) -> tuple[Terms, list[_Parts]]:
        """What of client j's weights is no product: a sum of vectors `(d,)`, and what is only known here."""
        s, u, _ = self._state(j)
        known = combined(NOTHING, self.start, s)
        if self.p is None:
            return known, []
        mine = j if len(self.p) > 1 else 0
        if self.sums is not None:
            return combined(known, self.sums[j], u), []
        return known, [(self.p[mine], None if self.pb is None else self.pb[mine], u)]

    def copy(self, j: int, weight: Tensor, bias: Tensor | None, a: float, terms: Sequence[_Parts]) -> None:
        """Write `a * w + terms` of client j: weight `(out, in)` and bias, of which `terms` gives the same parts."""
        _, _, r = self._state(j)
        c, x = self.w.rows[j, :r], self.inputs[j, :r]
        if a != 1:
            c = c * a
        _into(weight, product(c.t(), x.t()), [(w, f) for w, _, f in terms])
        if bias is not None:
            _into(bias, c.sum(0), [(b, f) for _, b, f in terms if b is not None])

    def add(self, weight: Tensor, bias: Tensor | None, js: Sequence[int], weights: Tensor) -> None:
        """`weight += sum_i weights[i] * w[js[i]]`, and the bias: one product for all clients of equal length."""
        factors = weights.tolist()
        states = [self._state(j) for j in js]
        s = sum(f * st[0] for f, st in zip(factors, states))
        weight.add_(self.w0, alpha=s)
        if bias is not None and self.b0 is not None:
            bias.add_(self.b0, alpha=s)
        if self.p is not None:
            us = torch.tensor([f * st[1] for f, st in zip(factors, states)], dtype=weight.dtype, device=weight.device)
            for target, p in ((weight, self.p), (bias, self.pb)):
                if target is not None and p is not None:
                    mine = picked(p, js) if len(p) > 1 else p
                    target.view(-1).addmv_(mine.flatten(1).t(), us if len(p) > 1 else us.sum().view(1))
        at = 0
        while at < len(js):  # neighbours that stopped at the same step
            end = at + 1
            while end < len(js) and states[end][2] == states[at][2]:
                end += 1
            r = states[at][2]
            if r:
                c = picked(self.w.rows, js[at:end])[:, :r] * weights[at:end].view(-1, 1, 1)
                a = picked(self.inputs, js[at:end])[:, :r]
                weight.add_(product(c.flatten(0, 1).t(), a.flatten(0, 1).t()))
                if bias is not None:
                    bias.add_(c.sum((0, 1)))
            at = end

    def finite(self) -> bool:
        n = max([self.k, *(j + 1 for j in self.stopped)])
        ok = self.w0.sum()
        for j in range(0, n):
            r = self._state(j)[2]
            ok = ok + self.w.rows[j, :r].sum() + self.inputs[j, :r].sum()
        for p in (self.p, self.pb):
            ok = ok if p is None else ok + p.sum()
        return bool(torch.isfinite(ok))


def _into(out: Tensor, product: Tensor, terms: Sequence[tuple[Tensor, float]]) -> None:
    """`out = product + terms`."""
    if not terms:
        out.copy_(product)
        return
    (t, f), *others = terms
    torch.add(product, t, alpha=f, out=out)
    for t, f in others:
        out.add_(t, alpha=f)


def _room(old: Tensor, n: int, rank: int, width: int, like: Tensor) -> Tensor:
    """Memory `(>= n, >= rank, width)`, the old where it is large enough."""
    if old.shape[0] >= n and old.shape[1] >= rank and old.dtype == like.dtype:
        return old
    return like.new_empty(max(n, old.shape[0]), max(rank, old.shape[1]), width)


class LazyWeight(PerClient):
    """Stands for the weight or bias of a lazy layer: only `F.linear` may meet it."""

    def __init__(self, layer: LazyDense, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.layer, self._shape, self._dtype = layer, torch.Size(shape), dtype

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self.layer.w0.device

    @property
    def stack(self) -> NoReturn:  # type: ignore[override]
        raise NotStackable("a dense layer kept as a sum of products is read as a matrix", "linear")


class _Lazy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Tensor, l: LazyDense) -> Tensor:
        k, r, s = l.k, l.r, l.w.s
        x3 = x.reshape(k, -1, x.shape[-1])
        ctx.l, ctx.x = l, x3
        out = product(x3.flatten(0, 1), l.w0, l.b0)
        z = (out if s == 1 else out.mul_(s)).view(k, -1, l.out)
        if r:
            t = torch.bmm(x3, l.live[:, :r].mT)
            z.baddbmm_(t if l.b0 is None else t.add_(1.0), l.w.live[:, :r])
        if l.live_p is not None and l.w.u:
            if l.live_ahead is not None and l.live_ahead.shape[2] == x3.shape[1] and field_of(x) == l.field:
                z.add_(l.live_ahead[:, r // x3.shape[1]], alpha=l.w.u)
            else:
                _add_shift(z, x3, l.live_p.mT, l)
            if l.live_pb is not None:
                z.add_(l.live_pb.unsqueeze(1), alpha=l.w.u)
        return out if x.dim() == 2 else shaped(out, (*x.shape[:-1], l.out))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g = once(grads)
        l, x3 = ctx.l, ctx.x
        k, r = l.k, l.r
        g3 = g.reshape(k, -1, l.out)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = product(g3.flatten(0, 1), l.w0.t()).view(k, -1, l.width)
            if l.w.s != 1:
                dx.mul_(l.w.s)
            if r:
                dx.baddbmm_(torch.bmm(g3, l.w.live[:, :r].mT), l.live[:, :r])
            if l.live_p is not None and l.w.u:
                _add_shift(dx, g3, l.live_p, l)
            dx = dx.view(*g.shape[:-1], l.width)
        l.held.append((x3, g3))
        return dx, None, None


def _add_shift(z: Tensor, x: Tensor, p: Tensor, l: LazyDense) -> None:
    """`z += u * x p` for k clients, p `(k, in, out)`, or one `(1, in, out)` for all."""
    if l.shared:
        z.view(-1, z.shape[-1]).addmm_(x.flatten(0, 1), p[0], alpha=l.w.u)
    else:
        z.baddbmm_(x, p, alpha=l.w.u)


def lazy_linear(x: Tensor, layer: LazyDense) -> Tensor:
    """The layer's output for folded inputs `(k*B, ..., in)`."""
    return _Lazy.apply(x, GRAPH, layer)  # type: ignore[no-any-return]
