"""A model is a function of a vector: `model(w, x)`, `model.loss(w, batch)`; it holds no weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .data.fields import Data
from .errors import ConfigError, NotSupported, unknown
from .task import Classification, Factory, Task
from .training.products import quicken
from .trees import is_row
from .units import Units, find_units, narrow
from .vector import Layout

_BUFFER_RULES = ("vector", "batch", "frozen")
_Norm = nn.modules.batchnorm._NormBase  # pyright: ignore[reportPrivateUsage]
"""What every layer that keeps running statistics is; PyTorch has no public name for it."""
_outside: Any = torch._C._DisableFuncTorch  # pyright: ignore[reportPrivateUsage]
"""Outside of all of torch.func's transforms; PyTorch has no public name for it."""


@dataclass(frozen=True, eq=False)
class Part:
    """A sub-model: `params[part.index]` is the vector of `part.model`."""

    index: Tensor
    model: Model


class Model:
    """A network as a pure function of its flat vector `(d,)`, the same at client and server.

    Args:
        source: an `nn.Module` (its weights are the initial vector) or a function that makes one (initialised from the
            run's seed).
        task: gives the loss; default `Classification`.
        buffers: the rule for running statistics, see `Task`.
        seed: of the initial weights when `source` is a function.
        example: one input `(1, ...)`, needed for `part`.

    Frozen parameters (`requires_grad=False`) are one object in memory for everybody: not in the vector, never sent.
    """

    def __init__(
        self,
        source: nn.Module | Factory,
        task: Task | None = None,
        *,
        buffers: str | None = None,
        seed: int = 0,
        example: tuple[Tensor, ...] | None = None,
        dtype: torch.dtype | None = None,
        name: str = "model",
    ) -> None:
        self.task = task or Classification()
        self.factory = None if isinstance(source, nn.Module) else source
        self.seed, self.name, self.example = seed, name, example
        module = source if isinstance(source, nn.Module) else _built(source, seed)
        self.dtype = dtype
        module = module.to(dtype) if dtype else module
        _refuse_computed(module)
        self.module = module
        self.buffers = self._buffer_rule(buffers)
        shapes = {n: p.shape for n, p in module.named_parameters() if p.requires_grad}
        self.layout = Layout(
            shapes, {n: b.shape for n, b in _statistics(module).items()} if self.buffers == "vector" else None
        )
        self.training = False
        self.block: slice | str | None = None
        self._shared = _Shared(module, self.buffers)

    # ------------------------------------------------------------ weights
    def initial(self, rng: torch.Generator | None = None) -> Tensor:
        """A fresh vector `(d,)`: the module's own weights, or, given `rng`, newly drawn ones.

        Raises:
            ConfigError: `rng` for a model made from a finished module, which has no recipe to draw from.
        """
        module = self.module
        if rng is not None:
            if self.factory is None:
                raise ConfigError(
                    "initial(rng) needs a model made from a function, as in Classification(model=lambda: MyNet()); "
                    "this one was given a finished module and only has its weights"
                )
            module = _built(self.factory, rng.initial_seed())
        tree: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        like = self.module
        first = next((p for p in like.parameters()), None)
        vector = torch.cat([tree[n].detach().reshape(-1) for n in self.layout.names] or [torch.zeros(0)])
        return vector.to(first.dtype if first is not None else vector.dtype)

    # ------------------------------------------------------------ as a function
    def __call__(self, w: Tensor, *inputs: Any) -> Any:
        """The network's output, differentiable in `w`; statistics as in evaluation unless this is `model.train()`."""
        skeleton = self._shared.skeleton(self.training)
        tree = self.layout.tree(w)
        if self.buffers == "vector":  # no gradient moves statistics; a pure function drops new ones
            for name in self._shared.statistics:
                tree[name] = tree[name].detach().clone() if self.training else tree[name].detach()
        if self.block is None:
            return functional_call(skeleton, tree, inputs)
        out: Any = inputs
        for name in blocks_of(skeleton, self.block):
            mine = {n[len(name) + 1 :]: t for n, t in tree.items() if n.startswith(name + ".")}
            out = (functional_call(skeleton.get_submodule(name), mine, out),)
        return out[0] if is_row(out) and len(out) == 1 else out

    def losses(self, w: Tensor, batch: Data) -> Tensor:
        """The task's loss, one value per sample `(n,)`."""
        return self.task.losses(self(w, *self.task.inputs(batch)), batch)

    def loss(self, w: Tensor, batch: Data) -> Tensor:
        """The mean of `losses`."""
        return self.losses(w, batch).mean()

    def train(self) -> Model:
        """The same function in training mode (dropout on, batch statistics)."""
        return self._in_mode(True)

    def eval(self) -> Model:
        """The same function in evaluation mode: a teacher inside a loss hook, `model.eval()(teacher, x)`."""
        return self._in_mode(False)

    def __getitem__(self, block: str | slice) -> Model:
        """Named blocks, still functions of the WHOLE vector: `model["head"](w, z)`, `model[:"head"](w, x)`.

        Raises:
            ConfigError: no child of that name.
        """
        blocks_of(self.module, block)
        return self._but(block=block)

    def _in_mode(self, training: bool) -> Model:
        views, key = self._shared.views, (training, str(self.block))
        if key not in views:
            views[key] = self._but(training=training)
        return views[key]

    def _but(self, **changes: Any) -> Model:
        other = copy.copy(self)
        other.__dict__.update(changes)
        return other

    def where(self, *kinds: type[nn.Module]) -> Tensor:
        """Boolean `(d,)`: weights (and statistics in the vector) of layers of these kinds, by type and not by name."""
        names = {
            f"{prefix}.{n}" if prefix else n
            for prefix, m in _modules(self.module)
            if isinstance(m, kinds)
            for n, _ in (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False))
        }
        chosen = torch.zeros(self.layout.size, dtype=torch.bool)
        for name in names & set(self.layout.names):
            chosen[self.layout.span(name)] = True
        return chosen

    # ------------------------------------------------------------ sub-models
    @property
    def units(self) -> Units:
        """Groups of tied units, found by a probe at first use.

        Raises:
            ConfigError: no example input to probe with, or a network whose units cannot be told apart.
        """
        if self._shared.units is None:
            if self.example is None:
                raise ConfigError("sub-models need an example input: Model(..., example=(x[:1],))")
            with self._shared.lock:  # the probe runs the module itself
                self._shared.units = self._shared.units or find_units(self.module, self.example)
        return self._shared.units

    def part(self, choose: Callable[[str, int], Tensor]) -> Part:
        """The sub-model that keeps units `choose(group, n)` of every group of tied units.

        Args:
            choose: group name, number of its units -> int64 ids of those kept (at least one).

        Raises:
            NotSupported: the network's running statistics are frozen.
            ConfigError: no example input; a choice that keeps nothing, or ids that do not exist.
        """
        if self.buffers == "frozen" and self._shared.statistics:
            raise NotSupported(
                "a sub-model of a network whose running statistics are frozen would lose them, as they are not in the "
                "vector: use buffers='vector' (they are cut with their units) or buffers='batch'"
            )
        keep = {g: torch.as_tensor(choose(g, n)).cpu() for g, n in self.units.sizes.items()}
        index, shapes = self.units.index(self.layout.shapes, keep)
        key, parts = tuple(shapes.items()), self._shared.parts
        if key not in parts:
            made = Model(narrow(self.module, shapes), self.task, buffers=self.buffers, name=f"{self.name}[part]")
            parts.setdefault(key, made)  # of two threads' the first: work on one model is stacked
        return Part(index, parts[key])

    def cut(self, rest: Callable[..., nn.Module], *args: Hashable) -> Part:
        """The sub-model that a function leaves of the network, such as its first blocks: `model.cut(first_exits, 2)`.

        Args:
            rest: `rest(copy, *args)` of a copy of the module -> a module whose tensors have the names and shapes they
                have here. The same function and arguments give the same sub-model.

        Raises:
            ConfigError: a tensor that is not in the network, or not of this shape.
        """
        cuts = self._shared.cuts
        if (rest, args) not in cuts:
            made = Model(
                rest(twin(self.module, self.buffers), *args),
                self.task,
                buffers=self.buffers,
                example=self.example,
                name=f"{self.name}[{rest.__name__} {', '.join(map(str, args))}]",
            )
            for name, shape in made.layout.shapes.items():
                if self.layout.shapes.get(name) != shape:
                    raise ConfigError(
                        f"{rest.__name__} gave a network with {name!r} {tuple(shape)}, which {self.name} does not "
                        f"have: what is cut out of a network keeps the names and shapes of its tensors"
                    )
            places = [torch.arange(span.start, span.stop) for span in map(self.layout.span, made.layout.names)]
            cuts.setdefault((rest, args), Part(torch.cat(places), made))
        return cuts[rest, args]

    # ------------------------------------------------------------ identity
    def key(self) -> tuple[object, ...]:
        """Equal for models whose work can be stacked."""
        return (id(self.module), self.training, str(self.block), self.layout.key())

    def to_module(self, w: Tensor) -> nn.Module:
        """An ordinary module with these weights."""
        module = copy.deepcopy(self.module)
        tree = self.layout.tree(w.detach())
        with torch.no_grad():
            for name, target in (*module.named_parameters(), *module.named_buffers()):
                if name in tree:
                    target.copy_(tree[name])
        return module

    def _buffer_rule(self, rule: str | None) -> str:
        if rule is not None and rule not in _BUFFER_RULES:
            raise unknown("buffers rule", rule, _BUFFER_RULES)
        names = list(_statistics(self.module))
        if names and rule is None:
            raise ConfigError(
                f"this network keeps running statistics ({names[0]}, {len(names)} in all) and nothing may be averaged "
                f"by accident. Say what becomes of them: buffers='vector' (part of what is trained and sent), 'batch' "
                f"(batch statistics, none kept) or 'frozen', e.g. Classification(model=..., buffers='vector'), or "
                f"--buffers vector on the command line"
            )
        return rule or "frozen"


class _Shared:
    """What all views of a model share: skeletons (one per thread and mode), the views, units, sub-models."""

    def __init__(self, module: nn.Module, rule: str) -> None:
        self.module, self.rule = module, rule
        self.statistics = set(_statistics(module))
        self.local, self.lock = threading.local(), threading.Lock()
        self.units: Units | None = None
        self.views: dict[tuple[bool, str], Model] = {}
        self.parts: dict[object, Model] = {}
        self.cuts: dict[object, Part] = {}

    def skeleton(self, training: bool) -> nn.Module:
        """`functional_call` on one module from two threads is silently wrong: each thread has its own."""
        made: dict[bool, nn.Module] | None = getattr(self.local, "made", None)
        if made is None:
            made = self.local.made = {}
        if training not in made:
            with _outside():  # a copy made amid a derivative would be of that derivative alone
                made[training] = twin(self.module, self.rule, hollow=True).train(training)
            freeze_norms(made[training], self.rule)
        return made[training]

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "rule": self.rule, "statistics": self.statistics}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.local, self.lock, self.units = threading.local(), threading.Lock(), None
        self.views, self.parts, self.cuts = {}, {}, {}


def twin(module: nn.Module, rule: str, hollow: bool = False) -> nn.Module:
    """A copy of a module that shares its frozen parameters and follows the rule for running statistics.

    Args:
        hollow: the other parameters have shapes and no memory of their own: whoever uses the copy brings the weights.
    """
    shared = {id(p): p for p in module.parameters() if not p.requires_grad}
    if hollow:
        shared |= {
            id(p): nn.Parameter(p.detach().new_zeros(()).expand_as(p)) for p in module.parameters() if p.requires_grad
        }
    made = copy.deepcopy(module, dict(shared))
    if rule == "batch":
        for m in made.modules():
            if isinstance(m, _Norm):
                m.track_running_stats, m.running_mean, m.running_var = False, None, None
                m.num_batches_tracked = None
    quicken(made)
    return made


def freeze_norms(module: nn.Module, rule: str) -> None:
    """Under "frozen", norm layers stay in evaluation mode whatever the rest does."""
    if rule == "frozen":
        for m in module.modules():
            if isinstance(m, _Norm) and m.track_running_stats:
                m.eval()


def blocks_of(module: nn.Module, block: str | slice) -> list[str]:
    """The children a block names, in order. A slice ends before its stop, as slices do."""
    names = [n for n, _ in module.named_children()]
    wanted = [block] if isinstance(block, str) else [block.start, block.stop]
    for name in wanted:
        if name is not None and name not in names:
            raise unknown("block", name, names, "Blocks are the network's direct children.")
    if isinstance(block, str):
        return [block]
    at = names.index(block.start) if block.start else 0
    return names[at : names.index(block.stop) if block.stop else None]


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    """Floating buffers that training changes: running means and variances."""
    out: dict[str, Tensor] = {}
    for prefix, m in _modules(module):
        if isinstance(m, _Norm):
            for name in ("running_mean", "running_var"):
                if getattr(m, name) is not None:
                    out[f"{prefix}.{name}" if prefix else name] = getattr(m, name)
    return out


def _modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module inside, with its path."""
    return list(cast("Iterable[tuple[str, nn.Module]]", module.named_modules()))


def _refuse_computed(module: nn.Module) -> None:
    """A network is copied for each thread, and torch copies no tensor that autograd has computed.

    Raises:
        ConfigError: a module keeps one.
    """
    for prefix, m in _modules(module):
        for name, value in m.__dict__.items():
            if isinstance(value, Tensor) and not value.is_leaf:
                path = f"{prefix}.{name}" if prefix else name
                raise ConfigError(
                    f"this network keeps {path!r}, a tensor computed from others that require gradients, and so cannot "
                    f"be copied. Instead of torch.nn.utils.weight_norm take "
                    f"torch.nn.utils.parametrizations.weight_norm; what a forward pass keeps is kept detached, "
                    f"self.{name} = {name}.detach()"
                )


def _built(factory: Factory, seed: int) -> nn.Module:
    """A fresh module whose weights are a function of the seed; the caller's randomness goes on as it was."""
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        torch.cuda.manual_seed_all(seed)  # nothing where there is none
        return factory()
    finally:
        torch.set_rng_state(before)
