"""What is learned: a network, a loss per sample, and metrics that add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checked import Checked
from .data.fields import IGNORE, Data
from .errors import ConfigError, DataError
from .message import Message
from .training.losses import cross_entropy

Factory: TypeAlias = Callable[[], nn.Module]
ModelSpec: TypeAlias = "str | nn.Module | Factory | Mapping[str, str | nn.Module | Factory]"


class Metric:
    """A metric adds up: `count` turns scores into sums, sums of clients are added, `finish` makes the figure."""

    def count(self, scores: Tensor, batch: Data) -> Message:
        """Sums over the samples of one batch, as numbers or tensors."""
        raise NotImplementedError

    def finish(self, total: Message) -> dict[str, float]:
        """The figures of the pooled sums."""
        raise NotImplementedError


@dataclass(frozen=True)
class Accuracy(Metric):
    """Share of samples (in sequences: of positions asked for) whose highest score is the target; and the mean loss."""

    def count(self, scores: Tensor, batch: Data) -> Message:
        target, scores = batch.y.flatten(), scores.flatten(0, -2)
        asked = target != IGNORE
        hits = (scores.argmax(-1) == target) & asked
        loss = F.cross_entropy(scores, target, reduction="sum", ignore_index=IGNORE)
        return Message(n=float(asked.sum()), hits=float(hits.sum()), loss=float(loss))

    def finish(self, total: Message) -> dict[str, float]:
        n = max(total.n, 1.0)
        return {"accuracy": total.hits / n, "loss": total.loss / n}


@dataclass(frozen=True)
class SquaredError(Metric):
    """Root mean squared error and R^2 of the pooled predictions; R^2 is 0 where all targets are alike."""

    def count(self, scores: Tensor, batch: Data) -> Message:
        y = batch.y.double().reshape(len(batch), -1)
        e = (scores.double().reshape(len(batch), -1) - y).square().sum()
        return Message(n=float(y.numel()), e=float(e), y=float(y.sum()), yy=float(y.square().sum()))

    def finish(self, total: Message) -> dict[str, float]:
        n = max(total.n, 1.0)
        spread = total.yy - total.y**2 / n
        return {
            "rmse": (total.e / n) ** 0.5,
            "loss": total.e / n,
            "r2": 1 - total.e / spread if spread > 1e-12 * total.yy else 0.0,  # less is rounding: all are alike
        }


@dataclass(frozen=True)
class Task(Checked):
    """A network (or several) with its loss.

    Args:
        model: a name of `fedloom.models` or of your own ("nets.py:Net"), an `nn.Module`, a function that makes one, or
            a dict of these by name when clients differ (client i takes entry `i % len(model)` unless `assign` says
            otherwise).
        assign: client id -> name of its model.
        buffers: what becomes of running statistics (BatchNorm): "vector" makes them entries of the model's vector, so
            a method averages or keeps them as it does its weights; "batch" keeps none (batch statistics always);
            "frozen" uses the module's own and never changes them. Required when a module has any.
    """

    such: ClassVar[str] = "fl.Classification(model=MyNet)"

    model: ModelSpec = "mlp"
    assign: Callable[[int], str] | None = None
    buffers: str | None = None
    metrics: tuple[Metric, ...] = ()
    higher: str = field(default="accuracy", repr=False)

    def inputs(self, batch: Data) -> tuple[Tensor, ...]:
        """What the network is called with: by default the field `x`."""
        return (batch.x,)

    def losses(self, scores: Any, batch: Data) -> Tensor:
        """One value per sample `(n,)`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no loss. Use fl.Classification, fl.Regression or fl.NextToken, or a subclass "
            f"with its own losses(scores, batch)"
        )

    def check(self, data: Data) -> None:
        """Refuse data this task cannot train on.

        Raises:
            DataError: a needed field is missing or has the wrong type.
        """
        for name in ("x", "y"):
            if name not in data:
                raise DataError(
                    f"{type(self).__name__} needs the field {name!r}; this data has {', '.join(data) or 'none'}"
                )

    @property
    def headline(self) -> tuple[str, int]:
        """The metric runs are compared by, and its sign: +1 where more is better."""
        return self.higher, 1


@dataclass(frozen=True)
class Classification(Task):
    """One label per sample: cross entropy, accuracy. `y` is int64 `(n,)`, the network gives `(n, classes)`."""

    metrics: tuple[Metric, ...] = (Accuracy(),)

    def losses(self, scores: Any, batch: Data) -> Tensor:
        return cross_entropy(scores, batch.y)

    def check(self, data: Data) -> None:
        super().check(data)
        if data.y.dtype != torch.int64:
            advice = "y.argmax(1), if its rows are one-hot" if data.y.dim() > 1 else "y.long(), or Regression"
            raise DataError(f"Classification needs int64 labels in `y`; given {str(data.y.dtype)[6:]}: use {advice}")


@dataclass(frozen=True)
class NextToken(Classification):
    """Sequences: `x` and `y` int64 `(n, length)`, the network gives `(n, length, vocabulary)`."""

    model: ModelSpec = "char-transformer"


@dataclass(frozen=True)
class Regression(Task):
    """Real targets `(n,)` or `(n, k)`: squared error per sample, RMSE and R^2."""

    metrics: tuple[Metric, ...] = (SquaredError(),)
    higher: str = field(default="rmse", repr=False)

    def losses(self, scores: Any, batch: Data) -> Tensor:
        y = batch.y.to(scores.dtype).reshape(len(batch), -1)
        return F.mse_loss(scores.reshape(y.shape), y, reduction="none").mean(1)

    @property
    def headline(self) -> tuple[str, int]:
        return "rmse", -1


def task_for(kind: str, **options: Any) -> Task:
    """The task of a named data set's kind."""
    from .transcription import Transcription

    kinds: dict[str, type[Task]] = {
        "classification": Classification,
        "regression": Regression,
        "language": NextToken,
        "transcription": Transcription,
    }
    if kind not in kinds:
        raise ConfigError(
            f"no ready-made task for data of kind {kind!r}; ready: {', '.join(kinds)}. In Python, pass your own "
            f"subclass of fedloom.Task to fedloom.run(...)"
        )
    return kinds[kind](**options)
