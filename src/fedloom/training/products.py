"""Large matrix products by the quicker of the two libraries PyTorch carries.

`torch.mm` asks the BLAS PyTorch was built with, MKL, which on AVX-512 processors of other makers than its own uses half
of their vector width; oneDNN, there for convolutions, uses all of it: 205 GFLOP/s against 91 on a core of an AMD EPYC.
On processors of MKL's own maker, where it is taken as well, nothing was measured.
Both compute in float32 and sum in an order of their own, so they agree up to rounding. Which one is taken depends on
the processor and the shapes alone: a run repeats itself to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WORTH = 1 << 13
"""Weights of a layer below which the quicker library's longer way in (about 10 us) is not made up for. How many rows
there are decides nothing: a client's results must not depend on who is trained beside it."""


@functools.cache
def _quicker() -> Any:
    """oneDNN's dense layer; None where this build or this processor has nothing to gain from it."""
    mkldnn = torch.backends.mkldnn
    if not (mkldnn.is_available() and torch.backends.mkl.is_available()):
        return None
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias`, which no gradient flows through: x `(n, in)`, weight `(out, in)`, bias `(out,)`.

    Transposed views cost nothing: `product(g, w.t())` is `g w`.
    """
    if (quicker := _for(x, weight)) is not None:
        return quicker(x, weight, bias, "none", [], "")
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def products(x: Tensor, weights: Tensor) -> Tensor:
    """`x weight^T` of each of n: x `(n, rows, in)`, weights `(n, out, in)`. The quicker library has no call for all."""
    if _for(x, weights[0]) is not None:
        return torch.stack([product(a, w) for a, w in zip(x, weights)])
    return torch.bmm(x, weights.mT)


def shaped(result: Tensor, shape: Sequence[int]) -> Tensor:
    """A fresh result in this shape, to be returned by an `autograd.Function`: what it returns as a view cannot be
    written into, as `nn.ReLU(inplace=True)` does."""
    return torch.ops.aten._unsafe_view.default(result, shape)


def _for(x: Tensor, weight: Tensor) -> Callable[..., Tensor] | None:
    """The quicker library's dense layer, where it is there and has something to gain."""
    worth = weight.numel() >= _WORTH and x.dtype == torch.float32 and x.device.type == "cpu"
    return _quicker() if worth and torch.backends.mkldnn.enabled else None


def flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Of oneDNN's dense layer, two for each multiply-add: PyTorch's counter does not know it."""
    return 2 * x.numel() * weight[0]


def flop_formulas() -> dict[Any, Any]:
    """What a `FlopCounterMode` must be told of these products."""
    return {} if (quicker := _quicker()) is None else {quicker: flops}


# ---------------------------------------------------------------- frozen layers
class _Frozen(torch.autograd.Function):
    """A dense layer that does not train: linear in x, whatever is differentiated or mapped, and however often."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return shaped(product(x.reshape(-1, x.shape[-1]), weight, bias), (*x.shape[:-1], len(weight)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _frozen(grads[0], weight.t()), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (weight,) = ctx.saved_tensors
        return _frozen(tangents[0], weight)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        x, weight, bias = args  # the weights of a frozen layer are never mapped
        return _frozen(x.movedim(in_dims[0], 0), weight, bias), 0


def _frozen(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Frozen.apply(x, weight, bias)  # type: ignore[no-any-return]


def quicken(module: nn.Module) -> None:
    """Let a module's frozen dense layers take the quicker product."""
    for layer in module.modules() if _quicker() else ():
        if type(layer) is nn.Linear and not any(p.requires_grad for p in layer.parameters()):
            layer.forward = functools.partial(_dense, layer)


def _dense(layer: nn.Linear, input: Tensor) -> Tensor:
    if layer.weight.numel() >= _WORTH:
        return _frozen(input, layer.weight, layer.bias)
    return F.linear(input, layer.weight, layer.bias)
