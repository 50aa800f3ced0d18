"""The model a loss hook is given while many clients train as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from fedloom.data.fields import Data

from .fold import NotStackable
from .perclient import PerClient
from .twin import Twin
from .weight import Token

if TYPE_CHECKING:
    from fedloom.model import Model


class StackedModel:
    """`model(w, x)` on folded inputs, for any kind of `w`.

    The vector being trained runs the twin; a vector per client (a personal teacher, perturbed weights) the twin at
    those vectors; one vector for all clients is an ordinary call, one forward pass for the whole chunk.
    """

    def __init__(self, model: Model, twin: Twin, token: Token) -> None:
        self._model, self._twin, self._token = model, twin, token

    def __call__(self, w: Any, *inputs: Any) -> Any:
        model = self._model
        if w is self._token:
            return self._twin.run(model.block, model.training, *inputs)
        if isinstance(w, Tensor):
            if not (self._twin.mixing and (model.training or model.buffers == "batch")):
                return model(w, *inputs)
            k = next(iter(self._twin.weights.values())).stack.shape[0]
            w = PerClient(w.expand(k, *w.shape))  # its norms must not mix clients
        return self._twin.at(w).run(model.block, model.training, *inputs)

    def losses(self, w: Any, batch: Data) -> Tensor:
        """The task's loss, one value per sample."""
        task = self._model.task
        return task.losses(self(w, *task.inputs(batch)), batch)

    def loss(self, w: Any, batch: Data) -> NoReturn:
        raise NotStackable("a mean over the batch is one number for all clients; model.losses(w, batch) can be stacked")

    def train(self) -> StackedModel:
        return StackedModel(self._model.train(), self._twin, self._token)

    def eval(self) -> StackedModel:
        return StackedModel(self._model.eval(), self._twin, self._token)

    def __getitem__(self, block: str | slice) -> StackedModel:
        return StackedModel(self._model[block], self._twin, self._token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
