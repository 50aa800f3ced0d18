"""What a model meets instead of its parameters: one tensor on the outside, a different value per client inside.

The activations of k clients with batch B are ordinary tensors `(k*B, ...)`, client by client ("folded"): operators
without weights run on them unchanged. Only an operator that meets a `PerClient` must know about clients;
`__torch_function__` sends it to the rule for that operator, or to `generic`, which maps just that one over clients.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

if TYPE_CHECKING:
    from .sinks import Sink

Rule: TypeAlias = Callable[..., Any]
RULES: dict[Any, Rule] = {}

# A first layer's input needs no gradient; this scalar puts it into the graph all the same.
GRAPH = torch.zeros((), requires_grad=True)


class NotStackable(Exception):
    """These requests cannot be trained as one computation: run them one by one.

    Attributes:
        reason: why, in a sentence.
        operator: the operator that could not be stacked, "" where no single one is to blame.
    """

    def __init__(self, reason: str, operator: str = "") -> None:
        super().__init__(f"operator {operator}: {reason}" if operator else reason)
        self.reason, self.operator = reason, operator


@dataclass
class Notes:
    """How a network uses its weights, seen in one forward pass (`survey.py`).

    Attributes:
        dense: (weight, bias) names of dense layers met by `F.linear`, and the rows of input per sample.
        other: names of weights that met any other operator.
        direct: the loss uses the weight vector itself.
    """

    dense: dict[tuple[str, str | None], float] = field(default_factory=dict)
    other: set[str] = field(default_factory=set)
    direct: bool = False

    def met(self, weight: Weight, bias: Any, rows: int) -> None:
        """A dense layer, given this many rows for all samples of the batch in flight."""
        own = bias.name if isinstance(bias, Weight) else None
        if bias is not None and own is None:  # a bias that is not trained
            self.other.add(weight.name)
        at = (weight.name, own)
        self.dense[at] = self.dense.get(at, 0.0) + rows / max(FOLD.sizes)


class _Fold(threading.local):
    """The batch in flight, on this thread.

    Attributes:
        sizes: lengths of its folded axes (one per stream), `k * B`.
        notes: kept while a network is surveyed, else None.
        shared: ids of tensors that are the same for all clients whatever their length.
        foreign: leading lengths of shared tensors met so far, which no `k * B` may divide...
        crossed: ...and of per-client results of folded operands, which no `B` may equal. The loop pads to avoid both.
    """

    sizes: tuple[int, ...] = ()
    shared: frozenset[int] = frozenset()
    notes: Notes | None = None

    def __init__(self) -> None:
        self.foreign: set[int] = set()
        self.crossed: set[int] = set()


FOLD = _Fold()


def folded(x: object) -> bool:
    """Whether the first axis of `x` runs over clients and their samples (or over their rows, as in `(k*B*T, d)`)."""
    if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] == 0:
        return False
    length = x.shape[0]
    if id(x) not in FOLD.shared and (length in FOLD.sizes or any(length % n == 0 for n in FOLD.sizes)):
        return True
    if id(x) not in FOLD.shared:
        FOLD.foreign.add(length)
    return False


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register how an operator treats per-client operands."""

    def register(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, f))
        return f

    return register


def name_of(operator: Any) -> str:
    return str(getattr(operator, "__name__", operator))


class PerClient:
    """A tensor with a different value for each of k clients: `stack` is `(k, *shape)`, the model sees `shape`.

    As such it is a constant: no gradient reaches it unless `stack` itself is part of an autograd graph.
    """

    stack: Tensor

    def __init__(self, stack: Tensor) -> None:
        self.stack = stack

    @classmethod
    def __torch_function__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return RULES.get(operator, _anything(operator))(*args, **(kwargs or {}))

    def value(self) -> Tensor:
        """The stack as an operand of differentiable operators."""
        return self.stack

    def pair(self, x: Tensor, g: Tensor) -> None:
        """Take the gradient `g^T x`; a constant has no use for it."""

    def dense(self, grad: Tensor) -> None:
        """Take the gradient `(k, *shape)`."""

    # ---- the outside of one client's tensor
    @property
    def shape(self) -> torch.Size:
        return self.stack.shape[1:]

    @property
    def ndim(self) -> int:
        return self.stack.dim() - 1

    @property
    def dtype(self) -> torch.dtype:
        return self.stack.dtype

    @property
    def device(self) -> torch.device:
        return self.stack.device

    @property
    def is_cuda(self) -> bool:
        return self.stack.is_cuda

    def dim(self) -> int:
        return self.ndim

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return self.stack.is_floating_point()

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Any:
        return iter(generic(Tensor.unbind, self))

    @property
    def T(self) -> Any:
        return generic(_swapped, self)

    @property
    def mT(self) -> Any:
        return generic(_swapped, self)

    @property
    def data(self) -> Any:
        return generic(Tensor.detach, self)

    def _one_value(self, *_: Any) -> NoReturn:
        raise NotStackable("one value is read where every client has its own (a branch, .item(), an index)")

    __bool__ = __int__ = __float__ = __index__ = item = tolist = numpy = _one_value

    def __getattr__(self, name: str) -> Any:
        method = getattr(Tensor, name, None)
        if name.startswith("__") or not callable(method):
            raise AttributeError(f"a per-client tensor has no attribute {name!r}")
        if name.endswith("_") or name == "requires_grad_":
            raise NotStackable("a weight is changed in place", name)
        return lambda *args, **kwargs: PerClient.__torch_function__(method, (), (self, *args), kwargs)


def _swapped(x: Tensor) -> Tensor:
    return x.transpose(-1, -2) if x.dim() > 1 else x


def _operator(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)
    return lambda self, *args: generic(method, self, *args)


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "rmatmul", "pow", "rpow"),
    *("neg", "abs", "getitem", "lt", "le", "gt", "ge"),
):
    setattr(PerClient, f"__{_name}__", _operator(f"__{_name}__"))


class Token(PerClient):
    """The weight vector `(d,)` a loss hook is given: what it hands to `model(w, x)`.

    Attributes:
        matrix: the vectors `(k, d)` where they exist as such; without it only a model can use the token.
    """

    def __init__(self, size: int, like: Tensor) -> None:
        self.length, self.like = size, like
        self.matrix: Tensor | None = None
        self.leaf: Tensor | None = None

    @property
    def stack(self) -> Tensor:  # type: ignore[override]
        if FOLD.notes is not None:
            FOLD.notes.direct = True
        if self.matrix is None:
            raise NotStackable("the loss uses the weight vector itself")
        return self.matrix

    def value(self) -> Tensor:
        if not torch.is_grad_enabled():
            return self.stack
        if self.leaf is None:
            self.leaf = self.stack.data.requires_grad_()
        return self.leaf

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.length,))

    @property
    def ndim(self) -> int:
        return 1

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.like.device


class Weight(PerClient):
    """A trainable per-client tensor.

    Attributes:
        block: the values of all clients `(n, *shape)`; `stack` is the prefix of those that still train.
        sink: what becomes of a gradient.
        uses: how often this step's forward passes used it: an update in place must wait for the last.
    """

    sink: Sink

    def __init__(self, name: str, block: Tensor) -> None:
        super().__init__(block)
        self.name, self.block = name, block
        self.uses, self.arrived = 0, False
        self.held: list[tuple[Tensor | None, Tensor]] = []
        self.leaf: Tensor | None = None

    def value(self) -> Tensor:
        if FOLD.notes is not None:
            FOLD.notes.other.add(self.name)
        if not torch.is_grad_enabled():
            return self.stack
        if self.leaf is None:
            # .data has a version counter of its own: the blocks of other layers, views of the same memory, change
            # in place while the backward pass still holds this one.
            self.leaf = self.stack.data.requires_grad_()
            self.uses += 1
        return self.leaf

    def pair(self, x: Tensor, g: Tensor) -> None:
        if self.uses > 1 or self.sink.hold:
            self.held.append((x, g))
        else:
            self.sink.pair(self, x, g, self.sink.beta)
            self.arrived = True

    def dense(self, grad: Tensor) -> None:
        if self.uses > 1 or self.sink.hold:
            self.held.append((None, grad))
        else:
            self.sink.dense(self, grad, self.sink.beta)
            self.arrived = True

    def collect(self) -> None:
        """After the backward pass: what came through operators without a rule."""
        if self.leaf is not None and self.leaf.grad is not None:
            self.held.append((None, self.leaf.grad))
        self.leaf = None

    def square(self) -> Tensor | None:
        """Squared norm of the held gradient per client `(k,)`, without building it where it is a single pair."""
        if not self.held:
            return None
        if len(self.held) == 1 and (x := self.held[0][0]) is not None:
            g = self.held[0][1]
            return (torch.bmm(x, x.mT) * torch.bmm(g, g.mT)).sum((1, 2))
        total = _summed(self.held)
        self.held = [(None, total)]
        return total.flatten(1).square().sum(1)

    def flush(self, scale: Tensor | None = None) -> None:
        """Hand over what was held back, times `scale` `(k,)`; a step without any gradient still decays."""
        if self.leaf is not None:
            self.collect()
        beta = self.sink.beta
        for x, g in self.held:
            if scale is not None:
                g = g * scale.view(-1, *[1] * (g.dim() - 1))
            if x is not None:
                self.sink.pair(self, x, g, beta)
            else:
                self.sink.dense(self, g, beta)
            beta, self.arrived = 1.0, True
        if not self.arrived:
            self.sink.nothing(self)
        if self.held:
            self.held = []
        self.uses, self.arrived = 0, False


def _summed(held: list[tuple[Tensor | None, Tensor]]) -> Tensor:
    total = None
    for x, g in held:
        grad = g if x is None else torch.bmm(g.mT, x)
        total = grad if total is None else total + grad
    assert total is not None
    return total


def used(*weights: PerClient | Tensor | None) -> None:
    """Count one use of each weight, where a gradient will come back."""
    if FOLD.notes is not None:
        FOLD.notes.other.update(w.name for w in weights if isinstance(w, Weight))
    if torch.is_grad_enabled():
        for w in weights:
            if isinstance(w, Weight):
                w.uses += 1


def once(grads: tuple[Tensor, ...]) -> Tensor:
    """The gradient of a rule's result, where backward runs for its own sake.

    Raises:
        NotStackable: it is to be differentiated again (a gradient penalty), but weights have been changed by then.
    """
    if torch.is_grad_enabled():
        raise NotStackable("the loss takes a gradient of a gradient")
    return grads[0]


# ---------------------------------------------------------------- any operator
def _anything(operator: Any) -> Rule:
    return lambda *args, **kwargs: generic(operator, *args, **kwargs)


def generic(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Map one operator over clients with `torch.vmap`; ordinary autograd then gives a gradient per client.

    Operands that are folded count as one client's batch. A result whose first axis is that batch is folded again,
    any other (and those of operands that are all PerClient) is a PerClient.

    Raises:
        NotStackable: the operator cannot be mapped, or the same value is wanted of all clients.
    """
    leaves, tree = tree_flatten((args, kwargs))
    own = [x for x in leaves if isinstance(x, PerClient)]
    if not own:
        raise NotStackable("per-client weights are hidden inside an object", name_of(operator))
    k = own[0].stack.shape[0]
    widths: set[int] = set()
    places: list[int] = []
    values: list[Tensor] = []
    dims: list[int | None] = []
    for place, x in enumerate(leaves):
        if isinstance(x, PerClient):
            value, dim = x.value(), 0
        elif folded(x):
            value, dim = x.unflatten(0, (k, -1)), 0
            widths.add(value.shape[1])
        elif isinstance(x, Tensor):
            value, dim = x, None
        else:
            continue
        places.append(place)
        values.append(value)
        dims.append(dim)

    def one(*mine: Tensor) -> Any:
        filled = list(leaves)
        for place, value in zip(places, mine):
            filled[place] = value
        a, kw = tree_unflatten(filled, tree)
        return operator(*a, **kw)

    try:
        out = torch.vmap(one, in_dims=tuple(dims), randomness="different")(*values)
    except NotStackable:
        raise
    except Exception as e:  # whatever an operator says against being mapped
        raise NotStackable(str(e).split("\n")[0], name_of(operator)) from e

    def fold(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.dim() > 1 and x.shape[1] in widths:
            return x.flatten(0, 1)
        if widths and x.dim() > 1:
            FOLD.crossed.add(x.shape[1])
        return PerClient(x)

    return tree_map(fold, out)
