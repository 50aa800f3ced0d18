"""A copy of a network whose parameters are per-client objects, and the memory they live in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import attention, rules  # noqa: F401  (they register themselves)
from .fold import Notes, NotStackable
from .lazy import LazyDense, LazyWeight
from .perclient import PerClient
from .repeat import Repeated
from .weight import Weight

if TYPE_CHECKING:
    from fedloom.model import Model

    from .rows import Chunk


class Twin:
    """The network of one model in training mode; every entry of its layout can be replaced by what `put` is given.

    One per thread, model, dtype and device (`twin_of`). Frozen parameters are shared with the original.

    Attributes:
        weights: the trainable entries, by name.
        statistics: running statistics (under the rule "vector"), by name.
        mixing: the network has normalisations over the batch, which padded samples must not enter.
        surveys, repeated: what was seen of forward passes and of steps, by kind.
        foreign, crossed: lengths no batch may be confused with (`fold.FOLD`).
        chunk: the results of the chunk trained last, which live in this twin's memory; how it was stepped.
    """

    def __init__(self, model: Model, like: Tensor) -> None:
        from fedloom.model import freeze_norms, twin  # the model module imports this package

        self.model, self.layout = model, model.layout
        self.module = twin(model.module, model.buffers).train()
        freeze_norms(self.module, model.buffers)
        self._frozen_norms: Callable[[], None] = lambda: freeze_norms(self.module, model.buffers)
        entries = set(self.layout.names)
        self._places = {name: places for name, places in _places(self.module).items() if name in entries}
        _refuse_hidden(self.module, self._places)
        trainable = [n for n in self.layout.names if self.layout.offsets[n] < self.layout.trainable]
        empty = torch.empty(0, dtype=like.dtype, device=like.device)
        self.weights = {n: Weight(n, empty.new_empty(0, *self.layout.shapes[n])) for n in trainable}
        self.statistics = {n: PerClient(empty) for n in self.layout.names if n not in self.weights}
        for name, entry in (*self.weights.items(), *self.statistics.items()):
            self.put(name, entry)
        self._constants = _met(self.module, model.buffers, like)
        self.mixing = model.buffers != "frozen" and any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.module.modules()
        )
        self._buffers = [
            (m._buffers, n, b, b.clone()) for m in self.module.modules() for n, b in m._buffers.items() if b is not None
        ]
        self.shared = frozenset(
            id(t)
            for m in self.module.modules()
            for t in (*m._parameters.values(), *m._buffers.values())
            if t is not None
        )
        self.lazies: dict[str, LazyDense] = {}
        self.arenas: dict[str, Arena] = {}
        self.like = empty
        self.chunk: Chunk | None = None
        self.how = ""
        self.foreign: set[int] = set()
        self.crossed: set[int] = set()
        self.surveys: dict[object, Notes | NotStackable] = {}
        self.repeated: dict[object, Repeated] = {}
        self._bound: Twin | None = None

    # ------------------------------------------------------------ entries
    def put(self, name: str, entry: object) -> None:
        """What the network meets as this parameter or buffer."""
        for owner, attribute in self._places[name]:
            owner._parameters.pop(attribute, None)
            owner._buffers.pop(attribute, None)
            owner.__dict__[attribute] = entry

    def entry(self, name: str) -> Any:
        """What stands there now."""
        owner, attribute = self._places[name][0]
        return owner.__dict__[attribute]

    def place(self, matrix: Tensor, statistics: Mapping[str, Tensor] | None = None) -> None:
        """The weights as views of vectors `(k, d)`; statistics are copies, of these where given."""
        for name, w in self.weights.items():
            self.put(name, w)
            w.begin(self.layout.view(matrix, name))
        for name, entry in self.statistics.items():
            self.put(name, entry)
            entry.stack = (self.layout.view(matrix, name) if statistics is None else statistics[name]).clone()
        self.constants(len(matrix))

    def lazy(self, weight: str, bias: str | None) -> LazyDense:
        """Make a dense layer lazy (its memory is kept from chunk to chunk)."""
        layer = self.lazies.get(weight)
        if layer is None or layer.bias != bias:
            layer = self.lazies[weight] = LazyDense(weight, bias, self.layout.shapes[weight])
        for name in (weight, bias):
            if name is not None:
                self.put(name, LazyWeight(layer, self.layout.shapes[name], self.like.dtype))
        return layer

    def blocks(self, arena: str, names: Iterable[str], n: int) -> dict[str, Tensor]:
        """Memory for n clients, entry by entry: `(n, *shape)` each, contiguous."""
        return self._arena(arena).carve({m: (n, *self.layout.shapes[m]) for m in names})

    def vectors(self, arena: str, n: int) -> Tensor:
        """Memory for a vector of each of n clients, `(n, d)`."""
        return self._arena(arena).carve({"": (n, self.layout.size)})[""]

    def _arena(self, name: str) -> Arena:
        if name not in self.arenas:
            self.arenas[name] = Arena(self.like)
        return self.arenas[name]

    def constants(self, k: int) -> None:
        """Fit the operands that only mark an operator as per-client to k clients."""
        for entry, value in self._constants:
            entry.stack = value.expand(k, *value.shape)

    def reset(self) -> None:
        """Buffers that are not in the vector (counters, caches), as they were made."""
        for owner, name, buffer, first in self._buffers:
            if owner.get(name) is not buffer or not torch.equal(buffer, first):
                owner[name] = buffer.copy_(first)

    def clashes(self, k: int, width: int) -> bool:
        """Whether a folded batch of this size could be mistaken for something shared, or the other way round."""
        return width in self.crossed or any(f % (k * width) == 0 for f in self.foreign)

    def lasting(self) -> list[Tensor]:
        """Frozen parameters and buffers."""
        return [*self.module.parameters(), *self.module.buffers()]

    # ------------------------------------------------------------ forward
    def run(self, block: str | slice | None, training: bool, *inputs: Any) -> Any:
        """The network, or the blocks named, on folded inputs."""
        from fedloom.model import blocks_of

        if self.module.training != training:
            self.module.train(training)
            self._frozen_norms()
        if block is None:
            return self.module(*inputs)
        out: Any = inputs
        for name in blocks_of(self.module, block):
            out = (self.module.get_submodule(name)(*out),)
        return out[0]

    def at(self, vectors: PerClient) -> Twin:
        """The same network at any per-client vectors `(k, d)`: frozen teachers, perturbed weights."""
        if self._bound is None:
            self._bound = Twin(self.model, self.like)
        other, matrix = self._bound, vectors.value()
        other.constants(len(matrix))
        for name, view in self.layout.tree(matrix).items():
            other.put(name, PerClient(view.clone() if name in self.statistics else view))
        return other


class Arena:
    """One buffer cut into blocks, kept from chunk to chunk: fresh large memory costs a page fault per 4 kB."""

    def __init__(self, like: Tensor) -> None:
        self._buffer = like

    def carve(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total = sum(sizes.values())
        if self._buffer.numel() < total:
            self._buffer = self._buffer.new_empty(total)
        out, at = {}, 0
        for name, size in sizes.items():
            out[name] = self._buffer[at : at + size].view(shapes[name])
            at += size
        return out


def twin_of(model: Model, like: Tensor) -> Twin:
    """This thread's twin of a network, for vectors like this one."""
    made: dict[Any, Twin] = model._shared.local.__dict__.setdefault("stacked", {})
    key = (like.dtype, like.device)
    if key not in made:
        made[key] = Twin(model, like)
    return made[key]


def _places(module: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where each parameter and buffer stands, under its first name (tied ones stand in several places)."""
    names: dict[int, str] = {}
    out: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, owner in module.named_modules():
        for attribute, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                name = names.setdefault(id(tensor), f"{prefix}.{attribute}" if prefix else attribute)
                out.setdefault(name, []).append((owner, attribute))
    return out


def _refuse_hidden(module: nn.Module, places: Mapping[str, list[tuple[nn.Module, str]]]) -> None:
    """Weights a module also keeps elsewhere (the flat list of an LSTM) could not be replaced there.

    Raises:
        NotStackable: there are some.
    """
    mine = {id(getattr(owner, attribute)) for spots in places.values() for owner, attribute in spots}
    for name, owner in module.named_modules():
        for attribute, value in owner.__dict__.items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            kept = value.values() if type(value) is dict else value if isinstance(value, list | tuple) else (value,)
            if any(isinstance(t, Tensor) and id(t) in mine for t in kept):
                raise NotStackable(f"{name or 'the network'} keeps weights in a list of its own", type(owner).__name__)


def _met(module: nn.Module, rule: str, like: Tensor) -> list[tuple[PerClient, Tensor]]:
    """Batch norms that would meet nothing per-client, and so would mix clients, get a constant weight that is."""
    out = []
    if rule != "batch":
        return out
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m.weight, PerClient):
            value = like.new_ones(m.num_features) if m.weight is None else m.weight
            entry = PerClient(value.detach().unsqueeze(0))
            m._parameters.pop("weight", None)
            m.__dict__["weight"] = entry
            out.append((entry, value.detach()))
    return out
