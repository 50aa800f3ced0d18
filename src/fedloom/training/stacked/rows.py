"""Results that stay deferred: a trained vector is a row of its chunk, summed without ever being built.

Most trained vectors only enter a sum. A `Row` is a tensor to everybody who looks at it (it is built then), but a
linear combination of one with vectors its job was given (payload, memory) is still a row, built in one go, where much
cancels; and `add_rows` adds the rows of a chunk in one product per layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from fedloom.training.request import Training

SHORT = 1 << 13
"""Numbers in a vector up to which putting off an operation costs more than doing it."""

_BLOCK = 1 << 15  # numbers that stay in the nearest cache while many vectors are added to them

Terms: TypeAlias = Mapping[int, tuple[Tensor, float]]
"""`sum c * t` of vectors t `(d,)`, each under its id."""
NOTHING: Terms = {}

_FARTHEST = 1e6  # times as large as what is wanted, something built may be: half of a float's range is far off

_CANCELLED = 2.0**-50  # of two coefficients what is left of either where they are meant to be equal


def term(t: Tensor, c: float) -> Terms:
    return {id(t): (t, c)} if c else {}


def combined(x: Terms, y: Terms, times: float = 1.0) -> Terms:
    """`x + times * y`, without what cancels."""
    out = dict(x)
    for key, (t, c) in y.items():
        c, before = times * c, out.pop(key, (t, 0.0))[1]
        if abs(before + c) > _CANCELLED * max(abs(before), abs(c)):
            out[key] = t, before + c
    return out


class Piece(Protocol):
    """Some entries of the vectors of a chunk's clients, in whatever form training left them."""

    def copy(self, j: int, out: Tensor, a: float = 1.0, terms: Terms = NOTHING) -> None:
        """Write `a * vector + terms` of client j into these entries of a vector `(d,)`."""
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


def mix(out: Tensor, x: Tensor, a: float, terms: Terms, span: slice) -> None:
    """`out = a * x + terms`, all on this span."""
    out = out[span]
    if a == 1:
        out.copy_(x)
    else:
        torch.mul(x, a, out=out)
    for t, c in terms.values():
        out.add_(t[span], alpha=c)


class Shared:
    """Entries that no client changed."""

    def __init__(self, start: Tensor, span: slice) -> None:
        self.start, self.span = start, span

    def copy(self, j: int, out: Tensor, a: float = 1.0, terms: Terms = NOTHING) -> None:
        mix(out, self.start[self.span], a, terms, self.span)

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

    def copy(self, j: int, out: Tensor, a: float = 1.0, terms: Terms = NOTHING) -> None:
        mix(out, self.matrix[j], a, terms, self.span)

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
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device
        self.size = like.shape[0]
        self._rows: list[weakref.ref[Row]] = []
        self._finite: bool | None = None
        self._sum: tuple[object, Tensor] | None = None

    def vectors(self, requests: Sequence[Training]) -> list[Tensor]:
        """The trained vectors of the first clients: deferred, or, where they are short, as they are."""
        if self.size > SHORT:
            return [self.row(j, r) for j, r in enumerate(requests)]
        matrix = torch.empty(len(requests), self.size, dtype=self.dtype, device=self.device)
        for piece in self.parts():
            piece.copy_all(matrix)
        return [row.clone() for row in matrix.unbind()]  # who keeps one does not keep all

    def row(self, j: int, request: Training) -> Row:
        """Client j's trained vector, deferred."""
        return Row(Handle(self, j, request.start, request.given))

    def watch(self, row: Row) -> None:
        """This row is to be built before the memory goes."""
        self._rows.append(weakref.ref(row))

    def parts(self) -> Sequence[Piece]:
        """Raises RuntimeError: the memory belongs to a later chunk by now."""
        if self.pieces is None:
            raise RuntimeError(
                "a trained vector was read after its memory had been used again; call .build() on it before another "
                "thread trains the next chunk"
            )
        return self.pieces

    def build(self, j: int, a: float, terms: Terms) -> Tensor:
        """`a * vector + terms` of client j."""
        out = torch.empty(self.size, dtype=self.dtype, device=self.device)
        terms = {k: (_plain(t), c) for k, (t, c) in terms.items()}
        for piece in self.parts():
            piece.copy(j, out, a, terms)
        return out

    def sum(self, handles: Sequence[Handle], weights: Sequence[float]) -> Tensor:
        """`sum_k weights[k] * vector[k]`. The last one is kept: replies of several fields sum the same vectors."""
        of = (tuple(handle.j for handle in handles), tuple(weights))
        if self._sum is None or self._sum[0] != of:
            self._sum = of, self._summed(handles, weights)
        return self._sum[1]

    def _summed(self, handles: Sequence[Handle], weights: Sequence[float]) -> Tensor:
        out = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        plain: list[tuple[Tensor, float]] = []
        terms: Terms = NOTHING
        here: list[tuple[int, float]] = []
        for handle, weight in zip(handles, weights):
            if built := handle.known(1.0):  # adding what is there is cheaper than a product
                plain.append((built.tensor, weight / built.a))
                terms = combined(terms, built.terms, -weight / built.a)
            else:
                here.append((handle.j, weight))
        if here:
            js, factors = zip(*sorted(here))
            t = torch.tensor(factors, dtype=self.dtype, device=self.device)
            for piece in self.parts():
                piece.add(out, js, t)
        _add_all(out, [*plain, *((_plain(t), c) for t, c in terms.values())])
        return out

    def finite(self) -> bool:
        if self._finite is None:
            self._finite = all(p.finite() for p in self.parts())
        return self._finite

    def release(self) -> None:
        """Build what is still held, and give the memory up."""
        for ref in self._rows:
            if (row := ref()) is not None:
                row.build()
        self.pieces = self._sum = None
        self._rows = []


@dataclass(frozen=True)
class Built:
    """`tensor = a * vector + terms`, as long as nobody wrote into it."""

    tensor: Tensor
    a: float
    terms: Terms
    version: int


class Handle:
    """One client's trained vector: in its chunk, or to be had from something built of it."""

    __slots__ = ("_built", "chunk", "given", "j", "start")

    def __init__(self, chunk: Chunk, j: int, start: Tensor, given: tuple[Any, ...]) -> None:
        self.chunk, self.j, self.start, self.given = chunk, j, start, (start, *given)
        self._built: Built | None = None

    def known(self, a: float) -> Built | None:
        """What was built, where it serves for `a * vector` as exactly as the chunk would."""
        built = self._built
        if built is None:
            return None
        exact = abs(a) <= abs(built.a) <= _FARTHEST * abs(a) and built.tensor.itemsize >= 4
        return built if exact and built.tensor._version == built.version else None

    def build(self, a: float, terms: Terms) -> Tensor:
        """`a * vector + terms`."""
        built = self.known(a)
        if built is None:
            out = self.chunk.build(self.j, a, terms)
            self._built = Built(out, a, terms, out._version)
            return out
        if (a, terms) == (built.a, built.terms):
            return built.tensor.clone()  # two tensors: one may be written into
        ratio = a / built.a
        out = built.tensor * ratio
        for t, c in combined(terms, built.terms, -ratio).values():
            out.add_(_plain(t), alpha=c)
        return out


def _plain(x: Any) -> Any:
    return x.build() if isinstance(x, Row) else x


class Row(Tensor):
    """`a * vector + terms` for one trained vector `(d,)`: a tensor that is built when something needs its numbers."""

    _handle: Handle
    _a: float
    _terms: Terms
    _built: Tensor | None

    @staticmethod
    def __new__(cls, handle: Handle, a: float = 1.0, terms: Terms = NOTHING) -> Row:
        c = handle.chunk
        row = Tensor._make_wrapper_subclass(cls, (c.size,), dtype=c.dtype, device=c.device)  # type: ignore[attr-defined]
        row._handle, row._a, row._terms, row._built = handle, a, terms, None
        c.watch(row)
        return row

    def __init__(self, *_: Any) -> None:
        """Everything is set in `__new__`, where a wrapper gets its shape."""

    # What is asked of every row is answered here, ten times as quickly as by way of `__torch_function__`.
    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self._handle.chunk.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self._handle.chunk.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._handle.chunk.device

    def numel(self) -> int:
        return self._handle.chunk.size

    def element_size(self) -> int:
        return self._handle.chunk.dtype.itemsize

    def is_floating_point(self) -> bool:
        return True

    def build(self) -> Tensor:
        """The numbers, as an ordinary tensor of its own memory."""
        if self._built is None:
            self._built = self._handle.build(self._a, self._terms)
        return self._built

    def deferred(self) -> bool:
        """Whether the chunk still holds it, so that `add_rows` need not build it."""
        return self._built is None and self._handle.chunk.pieces is not None

    def _scaled(self, factor: float) -> Row:
        return Row(self._handle, self._a * factor, {k: (t, c * factor) for k, (t, c) in self._terms.items()})

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


def _waits(x: Any) -> TypeGuard[Row]:
    return isinstance(x, Row) and x._built is None


def _plus(x: Any, y: Any, sign: float = 1.0) -> Any:
    """`x + sign * y` of a row and a row of the same client, or a vector its job was given."""
    if not _waits(x):
        return _plus(y, x, sign)._scaled(sign) if _waits(y) and _goes_with(y, x) else None
    if _waits(y) and y._handle is x._handle and x._a + sign * y._a:
        return Row(x._handle, x._a + sign * y._a, combined(x._terms, y._terms, sign))
    return Row(x._handle, x._a, combined(x._terms, term(y, sign))) if _goes_with(x, y) else None


def _goes_with(row: Row, t: Any) -> bool:
    """Whether t is a vector like the row that nobody will change."""
    handle = row._handle
    if t is handle.start:
        return True
    alike = isinstance(t, Tensor) and (t.shape, t.dtype, t.device) == (row.shape, row.dtype, row.device)
    return alike and any(t is mine for mine in handle.given)


def _minus(x: Any, y: Any) -> Any:
    return _plus(x, y, -1.0)


def _times(x: Any, y: Any) -> Any:
    row, factor = (x, y) if isinstance(x, Row) else (y, x)
    return row._scaled(float(factor)) if _number(factor) and _waits(row) and factor else None


def _over(x: Any, y: Any) -> Any:
    return x._scaled(1.0 / y) if _waits(x) and _number(y) and y else None


def _all_finite(x: Any) -> Any:
    looked = all(t is x._handle.start for t, _ in x._terms.values())
    if looked and x._built is None and x._handle.chunk.pieces is not None and x._handle.chunk.finite():
        return torch.ones((), dtype=torch.bool, device=x.device).expand(x.shape)
    return None


_STILL_ROWS = {
    **dict.fromkeys((Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add), _plus),
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
    plain: list[tuple[Tensor, float]] = []
    chunks: dict[tuple[int, float], tuple[Chunk, list[Handle], list[float]]] = {}
    terms: Terms = NOTHING
    for row, weight in zip(rows, weights):
        if _waits(row):
            chunk = row._handle.chunk
            _, handles, mine = chunks.setdefault((id(chunk), row._a), (chunk, [], []))
            handles.append(row._handle)
            mine.append(weight)
            terms = combined(terms, row._terms, weight)
        else:
            plain.append((_plain(row), weight))
    plain += [(chunk.sum(handles, mine), a) for (_, a), (chunk, handles, mine) in chunks.items()]
    _add_all(acc, [*plain, *((_plain(t), c) for t, c in terms.values())])


def _add_all(acc: Tensor, terms: Sequence[tuple[Tensor, float]]) -> None:
    """`acc += sum c * t`, block by block, so that `acc` is read and written in cache however many there are."""
    for at in range(0, len(acc), _BLOCK):
        here = acc[at : at + _BLOCK]
        for t, c in terms:
            here.add_(t[at : at + _BLOCK], alpha=c)
