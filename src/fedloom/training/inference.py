"""Heavy work without training: metrics, outputs, one gradient. In batches; nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedloom.data.fields import Data
from fedloom.errors import ConfigError
from fedloom.message import Message
from fedloom.trees import is_row, like

from .chance import seeded

if TYPE_CHECKING:
    from fedloom.model import Model

BATCH = 1024
"""Samples at a time."""


def evaluate(model: Model, w: Tensor | Callable[..., Any], data: Data, batch_size: int = BATCH) -> list[Message]:
    """What each of the task's metrics counts on `data`, in evaluation mode; sums of clients may be added.

    Args:
        w: a vector `(d,)`, or any function of the network's inputs (an ensemble, a nearest neighbour).
    """
    model, task = model.eval(), model.task
    totals: list[Message] = []
    with torch.no_grad():
        for batch in _batches(data, batch_size):
            inputs = task.inputs(batch)
            scores = model(w, *inputs) if isinstance(w, Tensor) else w(*inputs)
            counts = [metric.count(scores, batch) for metric in task.metrics]
            totals = [_added(a, b) for a, b in zip(totals, counts)] if totals else counts
    return totals


def predict(
    model: Model,
    w: Tensor | Callable[..., Any],
    data: Data,
    fn: Callable[[Model, Any, Data], Any] | None = None,
    batch_size: int = BATCH,
) -> Any:
    """Outputs for all of `data`, a tensor or tree of tensors with one row per sample.

    In evaluation mode, unless the model given is in training mode (`client.model.train()`).

    Args:
        w: a vector `(d,)`, or, without `fn`, a function of the network's inputs.
        fn: `fn(model, w, batch)` -> one row per sample; default the network's output.

    Raises:
        ConfigError: `fn` returned another number of rows than samples.
    """
    parts = []
    with torch.no_grad():
        for batch in _batches(data, batch_size):
            if fn is not None:
                out = fn(model, w, batch)
            else:
                inputs = model.task.inputs(batch)
                out = model(w, *inputs) if isinstance(w, Tensor) else w(*inputs)
            parts.append(_detached(out, len(batch)))
    return parts[0] if len(parts) == 1 else _joined(parts)


def sample_losses(model: Model, w: Tensor, batch: Data) -> Tensor:
    """The task's loss, one value per sample `(n,)`: `await client.predict(params, fn=sample_losses)`."""
    return model.losses(w, batch)


def gradient(model: Model, w: Tensor, data: Data, batch_size: int = BATCH, key: tuple[Any, ...] = ()) -> Tensor:
    """Gradient `(d,)` of the mean loss over all of `data`, in training mode; zero for statistics.

    Batches are added up, so batch statistics are those of `batch_size` samples; running ones are not changed.

    Args:
        key: of the randomness in the network (dropout).
    """
    model = model.train()
    total = torch.zeros_like(w, requires_grad=False)
    v = w.detach().requires_grad_()
    with seeded(("gradient", *key), w.device), torch.enable_grad():
        for batch in _batches(data, batch_size):
            loss = model.losses(v, batch).sum()
            if loss.requires_grad:
                total += torch.autograd.grad(loss, v)[0]
    total[model.layout.trainable :] = 0.0
    return total.div_(max(1, len(data)))


def _batches(data: Data, size: int) -> Iterator[Data]:
    """Slices of the data, in order; one empty batch where there is nothing, so that shapes are right."""
    if len(data) <= size:
        yield data
        return
    for at in range(0, len(data), size):
        yield data.slice(at, min(at + size, len(data)))


def _added(a: Message, b: Message) -> Message:
    return Message({name: a[name] + b[name] for name in a})


def _detached(out: Any, rows: int) -> Any:
    if isinstance(out, Tensor):
        if out.dim() == 0 or len(out) != rows:
            raise ConfigError(
                f"predict(fn=...) gives one row per sample: {rows} samples, but {tuple(out.shape)}. "
                f"Sums over a batch are not rows; reduce what predict returns"
            )
        return out.detach()
    if isinstance(out, Mapping):
        return {k: _detached(v, rows) for k, v in out.items()}
    if is_row(out):
        return like(out, (_detached(v, rows) for v in out))
    raise ConfigError(f"predict(fn=...) gives tensors, or dicts and lists of them; given {type(out).__name__}")


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {k: _joined([p[k] for p in parts]) for k in first}
    return like(first, (_joined([p[i] for p in parts]) for i in range(len(first))))
