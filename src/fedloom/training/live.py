"""One module whose weights ARE a flat vector: what the plain loop trains, client after client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedloom.data.fields import Data
from fedloom.errors import ConfigError

_run_backward = torch.autograd.Variable._execution_engine.run_backward

if TYPE_CHECKING:
    from fedloom.model import Model


class Live:
    """A copy of a network in training mode whose parameters and statistics are views of `vector` `(d,)`.

    One per thread, model, dtype and device (`live_of`). Loading a client's start is one copy, its result another.

    Attributes:
        module: the copy; frozen parameters are shared with the original.
        vector: all weights; `moving` `(t,)` those gradients move, `statistics` `(d - t,)` those forward passes write.
        parameters: the module's trainable parameters; `views` the same memory as plain tensors.
        token: the same memory as a leaf of autograd: a loss hook's `w`, for terms such as `(w - anchor).square()`.
    """

    def __init__(self, model: Model, like: Tensor) -> None:
        from fedloom.model import freeze_norms, twin  # the model module imports this package

        layout = model.layout
        self.layout = layout
        self.module = twin(model.module, model.buffers, hollow=True).train()
        freeze_norms(self.module, model.buffers)
        self.vector = torch.empty_like(like, requires_grad=False)
        self.moving, self.statistics = self.vector[: layout.trainable], self.vector[layout.trainable :]
        self.parameters: list[nn.Parameter] = []
        self.views: list[Tensor] = []
        self.spans: list[slice] = []
        parameters = dict(self.module.named_parameters())
        for name, view in layout.tree(self.vector).items():
            if name in parameters:
                parameters[name].data = view
                self.parameters.append(parameters[name])
                self.views.append(view)
                self.spans.append(layout.span(name))
            else:
                owner, _, last = name.rpartition(".")
                self.module.get_submodule(owner)._buffers[last] = view
        self.token = self.vector.data.requires_grad_()
        self._buffers = [
            _Buffer(owner, last, tensor, first)
            for (prefix, owner), made in zip(self.module.named_modules(), model.module.modules())
            for last, first in made._buffers.items()
            if first is not None and ".".join(filter(None, (prefix, last))) not in layout.shapes
            if (tensor := owner._buffers[last]) is not None
        ]
        self._seeds: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        self._whole = Selection(self, None)
        self._last: tuple[Tensor, int, Selection] | None = None

    # ------------------------------------------------------------ weights
    def load(self, start: Tensor) -> None:
        """Begin a job: these weights, and every other buffer (counters, caches) as it was made."""
        self.vector.copy_(start.detach())
        for buffer in self._buffers:
            buffer.reset()

    def selection(self, only: Tensor | None) -> Selection:
        """What may move. The last one is kept: a cohort usually shares its mask.

        Raises:
            ConfigError: `only` is not a boolean vector of the model's length.
        """
        if only is None:
            return self._whole
        if self._last is None or self._last[0] is not only or self._last[1] != only._version:
            self._last = (only, only._version, Selection(self, only))
        return self._last[2]

    # ------------------------------------------------------------ losses and gradients
    def losses(self, model: Model) -> Callable[[Data], Tensor]:
        """The task's loss at the current weights, per sample: the shortest way there is."""
        task, run = model.task, self.run(model.block)
        return lambda batch: task.losses(run(*task.inputs(batch)), batch)

    def run(self, block: str | slice | None) -> Callable[..., Any]:
        """The network, or the blocks named, at the current weights."""
        from fedloom.model import blocks_of

        if block is None:
            return self.module
        parts = [self.module.get_submodule(name) for name in blocks_of(self.module, block)]

        def chain(*inputs: Any) -> Any:
            out = parts[0](*inputs)
            for part in parts[1:]:
                out = part(out)
            return out

        return chain

    def gradients(self, losses: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Of the mean of `losses` (one per sample, or a scalar); None for a target it does not depend on."""
        if not (targets and losses.requires_grad):
            return (None,) * len(targets)
        # What torch.autograd.grad(losses, targets, seed, allow_unused=True) calls, without 7 us of checks.
        return _run_backward(
            (losses,), (self._seed(losses),), False, False, tuple(targets), True, accumulate_grad=False
        )

    def _seed(self, losses: Tensor) -> Tensor:
        """`1/n` for each sample: backward from the mean without computing the mean."""
        if losses.dim() > 1:
            raise ConfigError(
                f"a loss gives one value per sample, (n,); this one gave {tuple(losses.shape)}. "
                f"Reduce the other axes, e.g. losses.flatten(1).mean(1)"
            )
        key = (losses.shape, losses.dtype)
        seed = self._seeds.get(key)
        if seed is None:
            share = 1.0 / max(1, losses.numel())
            seed = self._seeds[key] = torch.full_like(losses, share, requires_grad=False)
        return seed


class _Buffer:
    """A buffer outside the vector (a counter, a cache): no job sees what another wrote into it."""

    def __init__(self, owner: nn.Module, name: str, tensor: Tensor, first: Tensor) -> None:
        self.owner, self.name, self.tensor, self.first = owner, name, tensor, first
        self.version = tensor._version

    def reset(self) -> None:
        """As the network was made; costs nothing where nothing changed."""
        if self.owner._buffers[self.name] is not self.tensor or self.tensor._version != self.version:
            self.tensor.copy_(self.first)
            self.owner._buffers[self.name] = self.tensor
            self.version = self.tensor._version


def live_of(model: Model, like: Tensor) -> Live:
    """This thread's live copy of a network, for vectors like this one."""
    made: dict[Any, Live] = model._shared.local.__dict__.setdefault("live", {})
    key = (like.dtype, like.device)
    if key not in made:
        made[key] = Live(model, like)
    return made[key]


def told_mask(only: Tensor, size: int) -> None:
    """Refuse what is no mask of so many numbers."""
    if only.dtype != torch.bool or only.shape != (size,):
        raise ConfigError(
            f"train(only=...) takes a boolean vector of the model's {size} numbers, as layout.where('head.*') gives; "
            f"given {str(only.dtype)[6:]} {tuple(only.shape)}"
        )


class Selection:
    """The pieces `only` lets move.

    Attributes:
        parameters, views, places: of the pieces that move, wholly or in part; `places` are spans of the vector.
        runs: the places with neighbours merged: what moments and constants are cut into.
        inside: `(d,)`, 1 where something moves and 0 elsewhere; None when everything does. (A product: filling by a
            boolean mask takes 70 times as long.)
        partial: some piece moves only in part (or nothing does at all), so gradients must be masked.
    """

    def __init__(self, live: Live, only: Tensor | None) -> None:
        self.parameters, self.views, self.places = live.parameters, live.views, live.spans
        self.partial, self.inside, self._still = not live.views, None, None
        if only is not None:
            told_mask(only, live.layout.size)
            chosen = [i for i, s in enumerate(live.spans) if bool(only[s].any())]
            self.parameters = [live.parameters[i] for i in chosen]
            self.views = [live.views[i] for i in chosen]
            self.places = [live.spans[i] for i in chosen]
            self.partial = not chosen or not all(bool(only[s].all()) for s in self.places)
            self.inside = only.to(live.vector)
            self._still = (~only).nonzero().flatten().to(live.vector.device)
        self.runs = _merged(self.places)

    def restore(self, vector: Tensor, start: Tensor) -> None:
        """Entries that must not move, bit for bit (a gradient that is not finite, or statistics, may have)."""
        if self._still is not None:
            vector.index_copy_(0, self._still, start.detach().index_select(0, self._still))

    def cut(self, vector: Tensor) -> list[Tensor]:
        """The moving runs of a vector, as views."""
        return [vector[s] for s in self.runs]

    def like(self, vector: Tensor) -> list[Tensor]:
        """The moving pieces of a vector, shaped as the parameters, as views."""
        return [vector[s].view(v.shape) for s, v in zip(self.places, self.views)]


def _merged(spans: Sequence[slice]) -> list[slice]:
    out: list[slice] = []
    for s in spans:
        if out and out[-1].stop == s.start:
            out[-1] = slice(out[-1].start, s.stop)
        else:
            out.append(s)
    return out


class LiveModel:
    """The model a loss hook is given: a call with the weights being trained runs the live module, any other
    vector (a teacher, a perturbed copy) goes the general way."""

    def __init__(self, model: Model, live: Live) -> None:
        self._model, self._live = model, live
        self._run = live.run(model.block)

    def __call__(self, w: Tensor, *inputs: Any) -> Any:
        if w is self._live.token and self._model.training:
            return self._run(*inputs)
        return self._model(w, *inputs)

    def losses(self, w: Tensor, batch: Data) -> Tensor:
        task = self._model.task
        return task.losses(self(w, *task.inputs(batch)), batch)

    def loss(self, w: Tensor, batch: Data) -> Tensor:
        return self.losses(w, batch).mean()

    def train(self) -> LiveModel:
        return LiveModel(self._model.train(), self._live)

    def eval(self) -> LiveModel:
        return LiveModel(self._model.eval(), self._live)

    def __getitem__(self, block: str | slice) -> LiveModel:
        return LiveModel(self._model[block], self._live)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
