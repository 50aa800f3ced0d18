"""How many clients to stack: as many as keep the working set in cache."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fedloom.training.request import Training
from fedloom.training.solvers import SGD

_CACHE = 6 << 20  # bytes of per-client weights: what a step reads and writes should stay in L2 and L3
_LAZY = 64 << 20  # bytes of the inputs and coefficients of lazy layers
_SMALL = 2 << 20  # bytes of weights of models so small that a step is all dispatch
_CONVOLUTIONS = 5  # one convolution per client: stacking saves the dispatch of the rest, and activations are large
_VECTORS = 20 << 20  # bytes of vectors that steps read beside the weights: control variates, linear terms
_FROZEN = 4  # clients on a large frozen base: its one product for all is efficient already, activations fill the cache
_LAZY_CLIENTS = 50  # beyond this the shared product is as efficient as it gets
_MEMORY = 512 << 20  # bytes of per-client weights at most, whatever the layers
_DEVICE = 2 << 30  # bytes of weights on an accelerator, which wants large batches more than cache


def choose_chunk(request: Training, n: int) -> int:
    """How many of `n` like clients to train as one computation, from the model's size, layers, batch and steps.

    Measured on CPU: dense layers are best at 5-10 clients where weights are built (0.8 MB each) and at 50 where they
    are lazy; convolutions at 5; models of a few kB take the whole cohort. Chunks of a cohort are made equal.
    """
    size = request.model.layout.size * request.start.element_size()
    lazy = _lazy_sizes(request)
    if request.start.is_cuda:
        limit = _DEVICE // max(1, size)
    elif any(isinstance(m, nn.modules.conv._ConvNd) for m in request.model.module.modules()):
        limit = _CONVOLUTIONS
    elif _frozen(request.model.module) > 4 * request.model.layout.size:
        limit = _FROZEN
    elif size <= _SMALL // 16:
        limit = _SMALL // max(1, size)
    else:
        built = size - sum(weights for weights, _ in lazy)
        products = sum(kept for _, kept in lazy)
        limit = _CACHE // max(1, built)
        if products:
            limit = min(limit, _LAZY // products, _LAZY_CLIENTS)
        if request.step is not None and _own_vector(request):
            limit = min(limit, _VECTORS // max(1, size))
    if not request.start.is_cuda:
        limit = min(limit, _MEMORY // max(1, size))
    limit = max(1, min(n, limit))
    return math.ceil(n / math.ceil(n / limit)) if n else 1


def _frozen(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if not p.requires_grad)


def _own_vector(request: Training) -> bool:
    """Whether the step hook is given a vector that is likely the client's own."""
    return any(
        isinstance(v, Tensor) and v.shape == request.start.shape and v is not request.start
        for v in request.extras.values()
    )


def _lazy_sizes(request: Training) -> list[tuple[int, int]]:
    """Bytes of the weights, and of the products that replace them, of each dense layer that can be lazy.

    A guess before anything has run: one row of input per sample; `affine.lazy_layers` decides.
    """
    solver = request.solver
    if not isinstance(solver, SGD):
        return []
    width = max((s.index.shape[1] for s in request.schedules.values()), default=0)
    rank, itemsize = request.steps * width, request.start.element_size()
    out = []
    for m in request.model.module.modules():
        if isinstance(m, nn.Linear) and m.weight.requires_grad:
            o, i = m.weight.shape
            if o * i > 8192 and rank < o * i / (o + i):
                out.append((o * i * itemsize, rank * (o + i) * itemsize))
    return out
