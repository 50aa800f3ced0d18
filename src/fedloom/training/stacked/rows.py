"""Results that stay deferred: a trained vector is a row of its chunk, summed without ever being built.

Most trained vectors only enter a sum. A `Row` is a tensor to everybody who looks at it (it is built then), but
`row - start` is still a row, and `add_rows` adds the rows of a chunk in one product per layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

SHORT = 1 << 13
"""Numbers in a vector up to which putting off an operation costs more than doing it."""


class Piece(Protocol):
    """Some entries of the vectors of a chunk's clients, in whatever form training left them."""

    def copy(self, j: int, out: Tensor) -> None:
        """Write client j's entries into its vector `(d,)`."""
        ...

    def copy_all(self, out: Tensor) -> None:
        """Write the entries of the first clients into their vectors `(k, d)`."""
        ...

    def add(self, acc: Tensor, js: Sequence[int], weights: Tensor) -> None:
        """`acc += sum_i weights[i] * vector[js[i]]` on these entries."""
        ...

    def finite(self) -> bool:
        """Whether all entries of all clients are finite; False also where a cheap look cannot tell."""
        ...


class Shared:
    """Entries that no client changed."""

    def __init__(self, start: Tensor, span: slice) -> None:
        self.start, self.span = start, span

    def copy(self, j: int, out: Tensor) -> None:
        out[self.span] = self.start[self.span]

    def copy_all(self, out: Tensor) -> None:
        out[:, self.span] = self.start[self.span]

    def add(self, acc: Tensor, js: Sequence[int], weights: Tensor) -> None:
        acc[self.span].add_(self.start[self.span], alpha=float(weights.sum()))

    def finite(self) -> bool:
        return bool(torch.isfinite(self.start[self.span].sum()))


class Dense:
    """One row of a matrix `(n, size)` per client."""

    def __init__(self, matrix: Tensor, span: slice) -> None:
        self.matrix, self.span = matrix, span

    def copy(self, j: int, out: Tensor) -> None:
        out[self.span] = self.matrix[j]

    def copy_all(self, out: Tensor) -> None:
        out[:, self.span] = self.matrix[: len(out)]

    def add(self, acc: Tensor, js: Sequence[int], weights: Tensor) -> None:
        acc[self.span].addmv_(picked(self.matrix, js).t(), weights)

    def finite(self) -> bool:
        return bool(torch.isfinite(self.matrix.sum()))


def picked(stack: Tensor, js: Sequence[int]) -> Tensor:
    """`stack[js]`, as a view where these are neighbours."""
    if list(js) == list(range(js[0], js[0] + len(js))):
        return stack[js[0] : js[0] + len(js)]
    return stack[torch.tensor(js, device=stack.device)]


class Chunk:
    """The results of clients trained together. Its memory is used again by the next chunk: `release` first builds
    the rows that somebody still holds."""

    def __init__(self, pieces: Sequence[Piece], like: Tensor) -> None:
        self.pieces: Sequence[Piece] | None = pieces
        self.size, self.dtype, self.device = like.shape[0], like.dtype, like.device
        self._handles: list[weakref.ref[Handle]] = []
        self._finite: bool | None = None

    def vectors(self, starts: Sequence[Tensor]) -> list[Tensor]:
        """The trained vectors of the first clients: deferred, or, where they are short, as they are."""
        if self.size > SHORT:
            return [self.row(j, start) for j, start in enumerate(starts)]
        matrix = torch.empty(len(starts), self.size, dtype=self.dtype, device=self.device)
        for piece in self.parts():
            piece.copy_all(matrix)
        return [row.clone() for row in matrix.unbind()]  # who keeps one does not keep all

    def row(self, j: int, start: Tensor) -> Row:
        """Client j's trained vector, deferred."""
        handle = Handle(self, j)
        self._handles.append(weakref.ref(handle))
        return Row(handle, start)

    def parts(self) -> Sequence[Piece]:
        """Raises RuntimeError: the memory belongs to a later chunk by now."""
        if self.pieces is None:
            raise RuntimeError(
                "a trained vector was read after its memory had been used again; call .build() on it before another "
                "thread trains the next chunk"
            )
        return self.pieces

    def build(self, j: int) -> Tensor:
        out = torch.empty(self.size, dtype=self.dtype, device=self.device)
        for piece in self.parts():
            piece.copy(j, out)
        return out

    def finite(self) -> bool:
        if self._finite is None:
            self._finite = all(p.finite() for p in self.parts())
        return self._finite

    def release(self) -> None:
        """Build what is still held, and give the memory up."""
        for ref in self._handles:
            if (handle := ref()) is not None:
                handle.vector()
        self.pieces = None


class Handle:
    """One client's result: in its chunk, or built."""

    __slots__ = ("__weakref__", "chunk", "j", "value")

    def __init__(self, chunk: Chunk, j: int) -> None:
        self.chunk, self.j = chunk, j
        self.value: Tensor | None = None

    def vector(self) -> Tensor:
        if self.value is None:
            self.value = self.chunk.build(self.j)
        return self.value


def _plain(x: Any) -> Any:
    return x.build() if isinstance(x, Row) else x


class Row(Tensor):
    """`a * w + b * start` for one trained vector w `(d,)`: a tensor that is built when something needs its numbers."""

    _handle: Handle
    _start: Tensor
    _a: float
    _b: float
    _built: Tensor | None

    @staticmethod
    def __new__(cls, handle: Handle, start: Tensor, a: float = 1.0, b: float = 0.0) -> Row:
        c = handle.chunk
        row = Tensor._make_wrapper_subclass(cls, (c.size,), dtype=c.dtype, device=c.device)  # type: ignore[attr-defined]
        row._handle, row._start, row._a, row._b, row._built = handle, start, a, b, None
        return row

    def __init__(self, *_: Any) -> None:
        """Everything is set in `__new__`, where a wrapper gets its shape."""

    def build(self) -> Tensor:
        """The numbers, as an ordinary tensor of its own memory."""
        if self._built is None:
            self._built = self._combined(self._handle.vector())
        return self._built

    def _combined(self, w: Tensor) -> Tensor:
        a, b = self._a, self._b
        if b == 0:
            return w if a == 1 else w * a
        if a == 0:
            return _plain(self._start) * b
        out = torch.add(w, _plain(self._start), alpha=b / a)
        return out if a == 1 else out.mul_(a)

    def deferred(self) -> bool:
        """Whether the chunk still holds it, so that `add_rows` need not build it."""
        return self._built is None and self._handle.chunk.pieces is not None

    def _scaled(self, factor: float, shift: float = 0.0) -> Row:
        return Row(self._handle, self._start, self._a * factor, self._b * factor + shift)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if not kwargs and func in _STILL_ROWS and (row := _STILL_ROWS[func](*args)) is not None:
            return row
        name = getattr(func, "__name__", "")
        if isinstance(args[0] if args else None, Row) and _in_place(name):
            args[0]._built = args[0].build().clone()  # others may hold what was built
            func(args[0]._built, *_all_plain(args[1:]), **tree_map(_plain, kwargs))
            return args[0]
        return func(*_all_plain(args), **(tree_map(_plain, kwargs) if kwargs else {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_all_plain(args), **(tree_map(_plain, kwargs) if kwargs else {}))


def _all_plain(args: Sequence[Any]) -> list[Any]:
    """Operands, most of which are no lists."""
    return [tree_map(_plain, x) if isinstance(x, list | tuple | dict) else _plain(x) for x in args]


def _in_place(name: str) -> bool:
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name in _AUGMENTED


_AUGMENTED = {f"__{n}__" for n in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow")}


def _of_tensor(names: str) -> list[Any]:
    """Methods and properties of tensors as `__torch_function__` is told of them."""
    found = [getattr(Tensor, n) for n in names.split()]
    return [f if callable(f) else f.__get__ for f in found]


# Questions that need no numbers.
_LOOKS = {
    *_of_tensor("size dim ndimension numel nelement element_size __len__ __hash__ is_floating_point is_complex"),
    *_of_tensor("shape ndim dtype device layout requires_grad is_leaf grad_fn grad is_cuda is_sparse is_quantized"),
    *_of_tensor("is_meta is_nested is_mkldnn nbytes itemsize"),
    *(torch.is_floating_point, torch.is_complex, torch.numel),
}


def _number(x: object) -> bool:
    return isinstance(x, int | float)


def _minus(x: Any, y: Any) -> Any:
    if isinstance(x, Row) and x._built is None and y is x._start:
        return x._scaled(1.0, -1.0)
    if isinstance(y, Row) and y._built is None and x is y._start:
        return y._scaled(-1.0, 1.0)
    return None


def _times(x: Any, y: Any) -> Any:
    row, factor = (x, y) if isinstance(x, Row) else (y, x)
    return row._scaled(float(factor)) if _number(factor) and row._built is None else None


def _over(x: Any, y: Any) -> Any:
    return x._scaled(1.0 / y) if isinstance(x, Row) and _number(y) and y != 0 and x._built is None else None


def _all_finite(x: Any) -> Any:
    if x._built is None and x._handle.chunk.pieces is not None and x._handle.chunk.finite():
        return torch.ones((), dtype=torch.bool, device=x.device).expand(x.shape)
    return None


_STILL_ROWS = {
    **dict.fromkeys((Tensor.sub, Tensor.__sub__, torch.sub), _minus),
    **dict.fromkeys((Tensor.__rsub__,), lambda x, y: _minus(y, x)),
    **dict.fromkeys((Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul), _times),
    **dict.fromkeys((Tensor.div, Tensor.__truediv__, torch.div), _over),
    **dict.fromkeys((Tensor.neg, Tensor.__neg__, torch.neg), lambda x: _times(x, -1.0)),
    **dict.fromkeys((Tensor.detach,), lambda x: x),
    **dict.fromkeys((Tensor.isfinite, torch.isfinite), _all_finite),
}


def add_rows(acc: Tensor, rows: Sequence[Tensor], weights: Sequence[float]) -> None:
    """`acc += sum_k weights[k] * rows[k]`, one product per layer for the deferred rows of one chunk.

    Args:
        acc: `(d,)`, changed in place.
        rows: rows and ordinary tensors `(d,)`, in any order.
        weights: one number each.
    """
    chunks: dict[int, tuple[Chunk, list[int], list[float]]] = {}
    starts: dict[int, tuple[Tensor, float]] = {}
    for row, weight in zip(rows, weights):
        if not isinstance(row, Row) or row._built is not None:
            acc.add_(_plain(row), alpha=weight)
            continue
        chunk = row._handle.chunk
        if row._handle.value is not None or chunk.pieces is None:  # adding what is there is cheaper than a product
            acc.add_(row._handle.vector(), alpha=weight * row._a)
        else:
            _, js, factors = chunks.setdefault(id(chunk), (chunk, [], []))
            js.append(row._handle.j)
            factors.append(weight * row._a)
        if row._b:
            start, total = starts.get(id(row._start), (row._start, 0.0))
            starts[id(row._start)] = (start, total + weight * row._b)
    for chunk, js, factors in chunks.values():
        order = sorted(range(len(js)), key=js.__getitem__)
        t = torch.tensor([factors[i] for i in order], dtype=acc.dtype, device=acc.device)
        for piece in chunk.parts():
            piece.add(acc, [js[i] for i in order], t)
    for start, total in starts.values():
        acc.add_(_plain(start), alpha=total)
