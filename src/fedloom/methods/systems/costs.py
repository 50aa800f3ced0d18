"""What a network costs a device: parameters, FLOPs and bytes of a step, and how often each weight is used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedloom.errors import ConfigError
from fedloom.model import Model
from fedloom.training.work import counted


@dataclass(frozen=True)
class Cost:
    """One model on one device.

    Attributes:
        parameters: numbers in its vector; `weights` their bytes.
        flops: of a forward and a backward pass over one sample (two per multiply-add; matrix products, convolutions).
        activations: bytes a forward pass keeps for the backward pass, per sample.
    """

    parameters: int
    weights: int
    flops: int
    activations: int

    def memory(self, batch_size: int) -> int:
        """Bytes one training step holds: weights, gradients, and the activations of a batch."""
        return 2 * self.weights + batch_size * self.activations


_KNOWN: WeakKeyDictionary[Model, dict[Hashable, Cost]] = WeakKeyDictionary()


def cost(model: Model, example: Sequence[Tensor] | None = None) -> Cost:
    """Measure a model; what inputs of one shape cost is remembered for as long as the model is there.

    Args:
        example: inputs of one sample `(1, ...)`; default the model's own.

    Raises:
        ConfigError: no example.
    """
    inputs = model.example if example is None else tuple(example)
    if inputs is None:
        raise ConfigError("a model's cost is measured on an example input: cost(model, (x[:1],))")
    known, shapes = _KNOWN.setdefault(model, {}), tuple((t.shape[1:], t.dtype) for t in inputs)
    if shapes in known:
        return known[shapes]
    first = next(model.module.parameters())
    w = first.new_zeros(model.layout.size).requires_grad_()
    x = [t.to(w) if t.is_floating_point() else t for t in (t[:1].clone() for t in inputs)]
    with torch.enable_grad():
        flops, activations = counted(lambda: model.eval()(w, *x).sum().backward(), w)
    found = Cost(w.numel(), w.numel() * w.element_size(), int(flops), activations)
    return known.setdefault(shapes, found)


def uses(model: Model) -> Tensor:
    """How often a forward pass of one sample multiplies by each weight `(d,)`: once in a dense layer, at every position
    in a convolution. 0 where nothing is multiplied (biases, norms).

    Raises:
        ConfigError: the model has no example input.
    """
    if model.example is None:
        raise ConfigError("how often a weight is used is found on an example input: Model(..., example=(x[:1],))")
    net = copy.deepcopy(model.module)
    first = next(net.parameters())
    count = torch.zeros(model.layout.size, device=first.device)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def look(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, out: Tensor) -> None:
            if name in model.layout.shapes:
                count[model.layout.span(name)] += out[0].numel() / model.layout.shapes[name][0]

        return hook

    for prefix, layer in net.named_modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(look(f"{prefix}.weight" if prefix else "weight"))
    with torch.no_grad():
        net.eval()(*(x[:1].to(first) if x.is_floating_point() else x[:1] for x in model.example))
    return count
