"""How single operators treat per-client weights: dense layers, convolutions, embeddings and normalisations.

Each backward pass computes the gradient of its input first and hands over what makes the weight's gradient last: the
sink may change the weight at once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.training.products import shaped

from .fold import NotStackable, folded, of_batch
from .lazy import LazyWeight, lazy_linear
from .perclient import PerClient, generic, rule
from .weight import GRAPH, Weight, once, used, used_densely


def _simple(*weights: object) -> bool:
    """Whether all are weights (or constants) whose gradient a rule can hand over, not results of other operators."""
    return all(
        w is None or isinstance(w, Weight) or (isinstance(w, PerClient) and not w.stack.requires_grad) for w in weights
    )


# ---------------------------------------------------------------- dense layers
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Tensor, w: PerClient, b: PerClient | None) -> Tensor:
        stack = w.stack
        x3 = x.reshape(stack.shape[0], -1, x.shape[-1])
        ctx.w, ctx.b, ctx.x = w, b, x3
        z = torch.bmm(x3, stack.mT)
        if b is not None:
            z.add_(b.stack.unsqueeze(1))  # baddbmm would first copy the bias to every row, in twice the time
        return shaped(z, (*x.shape[:-1], stack.shape[1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g = once(grads)
        w, b, x3 = ctx.w, ctx.b, ctx.x
        stack = w.stack
        g3 = g.reshape(x3.shape[0], -1, stack.shape[1])
        dx = torch.bmm(g3, stack).view(*g.shape[:-1], stack.shape[2]) if ctx.needs_input_grad[0] else None
        w.pair(x3, g3)
        if b is not None:
            b.dense(g3.sum(1))
        return dx, None, None, None


@rule(F.linear)
def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if isinstance(weight, LazyWeight):
        return lazy_linear(input, weight.layer)
    if not isinstance(weight, PerClient):  # only the bias is trained
        return generic(torch.add, F.linear(input, weight), bias)
    if isinstance(bias, Tensor):
        return linear(input, weight) + bias
    if not (folded(input) and _simple(weight, bias)):
        return generic(F.linear, input, weight, bias)
    used_densely(weight, bias, input) if isinstance(weight, Weight) else used(bias)
    return _Linear.apply(input, GRAPH, weight, bias)


# ---------------------------------------------------------------- convolutions
def _channels_last(x: Tensor) -> Tensor:
    """Images with the channel innermost: pooling is about ten times faster there. With one channel `contiguous` changes
    nothing and the strides must be spelled out, or the kernel falls back."""
    if x.dim() != 4 or x.is_cuda:
        return x.contiguous()
    _, c, h, w = x.shape
    if c == 1:
        return x.contiguous().as_strided(x.shape, (h * w, 1, w, 1))
    return x.contiguous(memory_format=torch.channels_last)


class _Conv(torch.autograd.Function):
    """One dense convolution per client: faster than one grouped convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Tensor, w: PerClient, b: PerClient | None, geometry: Any) -> Tensor:
        k = w.stack.shape[0]
        xs = _channels_last(x).chunk(k)
        ctx.w, ctx.b, ctx.xs, ctx.geometry = w, b, xs, geometry
        stride, padding, dilation, groups = geometry
        bs = b.stack.unbind() if b is not None else [None] * k
        outs = [
            torch.convolution(xi, wi, bi, stride, padding, dilation, False, [0] * len(stride), groups)
            for xi, wi, bi in zip(xs, w.stack.unbind(), bs)
        ]
        return outs[0] if k == 1 else torch.cat(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g = once(grads)
        w, b, xs = ctx.w, ctx.b, ctx.xs
        k, out = w.stack.shape[:2]
        stride, padding, dilation, groups = ctx.geometry
        need = [ctx.needs_input_grad[0], True, b is not None]
        parts = [
            torch.ops.aten.convolution_backward(
                gi, xi, wi, [out], stride, padding, dilation, False, [0] * len(stride), groups, need
            )
            for gi, xi, wi in zip(_channels_last(g).chunk(k), xs, w.stack.unbind())
        ]
        dx = None
        if need[0]:
            dx = parts[0][0] if k == 1 else torch.cat([p[0] for p in parts])
        w.dense(torch.stack([p[1] for p in parts]))
        if b is not None:
            b.dense(torch.stack([p[2] for p in parts]))
        return dx, None, None, None, None


def _numbers(value: Any, n: int) -> list[int]:
    return [value] * n if isinstance(value, int) else list(value) * (n if len(value) == 1 else 1)


def _conv(operator: Any, n: int) -> Any:
    def conv(
        input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        if not isinstance(weight, PerClient):
            out = operator(input, weight, None, stride, padding, dilation, groups)
            return generic(lambda z, b: z + b.view(-1, *[1] * n), out, bias)
        one_image = input.dim() == n + 1
        if isinstance(bias, Tensor) or one_image or not (folded(input) and _simple(weight, bias)):
            return generic(operator, input, weight, bias, stride, padding, dilation, groups)
        dilations = _numbers(dilation, n)
        if padding == "valid":
            padding = 0
        elif padding == "same":
            total = [d * (s - 1) for d, s in zip(dilations, weight.shape[2:])]
            if any(t % 2 for t in total):  # an uneven border, right and below
                input = F.pad(input, [p for t in reversed(total) for p in (t // 2, t - t // 2)])
                total = [0] * n
            padding = [t // 2 for t in total]
        used(weight, bias)
        geometry = (_numbers(stride, n), _numbers(padding, n), dilations, groups)
        return _Conv.apply(input, GRAPH, weight, bias, geometry)

    return conv


for _n, _op in ((1, F.conv1d), (2, F.conv2d), (3, F.conv3d)):
    rule(_op)(_conv(_op, _n))


# ---------------------------------------------------------------- embeddings
class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, graph: Tensor, w: PerClient, padding: int | None) -> Tensor:
        k, words, _ = w.stack.shape
        mine = index.reshape(k, -1)
        flat = (mine + torch.arange(k, device=mine.device).unsqueeze(1) * words).flatten()
        ctx.w, ctx.at, ctx.padding = w, flat, padding
        return w.stack.flatten(0, 1)[flat.view(index.shape)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g = once(grads)
        k, words, width = ctx.w.stack.shape
        if g.is_cuda:  # which would add to a row in any order
            grad = torch.ops.aten.embedding_dense_backward(g.reshape(-1, width), ctx.at, k * words, -1, False)
        else:
            grad = g.new_zeros(k * words, width).index_add_(0, ctx.at, g.reshape(-1, width))
        grad = grad.view(k, words, width)
        if ctx.padding is not None:
            grad[:, ctx.padding] = 0
        ctx.w.dense(grad)
        return None, None, None, None


@rule(F.embedding)
def embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise NotStackable("max_norm, scale_grad_by_freq and sparse gradients are not mapped over clients", "embedding")
    if not (folded(input) and _simple(weight)):
        return generic(F.embedding, input, weight, padding_idx)
    used(weight)
    return _Embedding.apply(input, GRAPH, weight, padding_idx)


# ---------------------------------------------------------------- one for each sample
def _for_each(operator: Any) -> Any:
    """A class token, a first state: made as many as the batch has samples."""

    def spread(input: Any, *sizes: Any) -> Any:
        first, *rest = sizes if isinstance(sizes[0], int) else sizes[0]
        if not (isinstance(input, PerClient) and first > 1 and of_batch(first)):
            return generic(operator, input, first, *rest)
        mine = generic(operator, input, first // input.stack.shape[0], *rest)
        return mine.stack.flatten(0, 1)

    return spread


for _op in (Tensor.expand, Tensor.repeat):
    rule(_op)(_for_each(_op))


# ---------------------------------------------------------------- normalisations
def _clients(*operands: Any) -> int:
    return next(p.stack.shape[0] for p in operands if isinstance(p, PerClient))


def _over_features(p: Any, k: int, ndim: int, channel: int | None) -> Any:
    """A weight as an operand of activations `(k, B, ...)` of `ndim` axes: over the last axes, or over one channel."""
    if not isinstance(p, PerClient):
        return p if channel is None else p.view(-1, *[1] * (ndim - 3))
    v = p.value()
    if channel is None:
        return v.view(k, *[1] * (ndim - 1 - p.ndim), *p.shape)
    return v.view(k, 1, -1, *[1] * (ndim - 3))


def _affine(y: Tensor, weight: Any, bias: Any, channel: int | None) -> Tensor:
    """`y * weight + bias` after a plain normalisation of folded activations."""
    k = _clients(weight, bias)
    y = y.unflatten(0, (k, -1))
    if weight is not None:
        y = y * _over_features(weight, k, y.dim(), channel)
    if bias is not None:
        y = y + _over_features(bias, k, y.dim(), channel)
    return y.flatten(0, 1)


@rule(F.layer_norm)
def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    if not folded(input):
        return generic(F.layer_norm, input, normalized_shape, weight, bias, eps)
    return _affine(F.layer_norm(input, normalized_shape, eps=eps), weight, bias, None)


@rule(F.rms_norm)
def rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    if not folded(input):
        return generic(F.rms_norm, input, normalized_shape, weight, eps)
    return _affine(F.rms_norm(input, normalized_shape, eps=eps), weight, None, None)


@rule(F.group_norm)
def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    if not folded(input):
        return generic(F.group_norm, input, num_groups, weight, bias, eps)
    return _affine(F.group_norm(input, num_groups, eps=eps), weight, bias, 1)


@rule(F.instance_norm)
def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not folded(input) or running_mean is not None:
        raise NotStackable("instance norm with running statistics", "instance_norm")
    return _affine(F.instance_norm(input, eps=eps), weight, bias, 1)


@rule(F.batch_norm)
def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Clients move to the channel axis, `(B, k*C, ...)`, so each has statistics of its own.

    The loop sees to it that no padded sample is in the batch.
    """
    if not folded(input):
        raise NotStackable("the first axis of its input is not the batch", "batch_norm")
    if not training and not isinstance(running_mean, PerClient):
        return _affine(F.batch_norm(input.contiguous(), running_mean, running_var, eps=eps), weight, bias, 1)
    k = _clients(running_mean, weight, bias)

    def flat(p: Any) -> Any:
        if p is None:
            return None
        return p.value().reshape(-1) if isinstance(p, PerClient) else p.repeat(k)

    # contiguous: for a single image, channels last, the backward pass of batch_norm is wrong (PyTorch 2.13)
    y = input.unflatten(0, (k, -1)).transpose(0, 1).flatten(1, 2).contiguous()
    means = None if running_mean is None else running_mean.stack.view(-1)
    variances = None if running_var is None else running_var.stack.view(-1)
    y = F.batch_norm(y, means, variances, flat(weight), flat(bias), training, momentum, eps)
    return y.unflatten(1, (k, -1)).transpose(0, 1).flatten(0, 1)


def _refused(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise NotStackable("its kernel takes one set of weights", name)

    return refuse


for _op in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu):
    rule(_op)(_refused(_op.__name__))
