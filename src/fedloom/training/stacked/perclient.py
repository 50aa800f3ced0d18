"""What a model meets instead of its parameters: one tensor on the outside, a different value per client inside.

The activations of k clients with batch B are ordinary tensors `(k*B, ...)`, client by client ("folded"): operators
without weights run on them unchanged. Only an operator that meets a `PerClient` must know about clients;
`__torch_function__` sends it to the rule for that operator, or to `generic`, which maps just that one over clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .fold import FOLD, NotStackable, folded

Rule: TypeAlias = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register how an operator treats per-client operands."""

    def register(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, f))
        return f

    return register


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


# ---------------------------------------------------------------- any operator
def name_of(operator: Any) -> str:
    return str(getattr(operator, "__name__", operator))


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
