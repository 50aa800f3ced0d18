"""One evaluation of the loss for all active clients, and one look at it before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedloom.data.fields import Data, kind_of
from fedloom.training.request import LossHook, Training, code_key, value_key

from .batches import Step
from .cohort import Cohort
from .fold import FOLD, Notes, NotStackable
from .perclient import PerClient
from .proxy import StackedModel
from .twin import Twin
from .weight import INNER, Token


class Forward:
    """The loss of each folded sample, at the weights the twin holds.

    Attributes:
        token: stands for those weights in a loss hook.
        shared: tensors that are the same for all clients.
    """

    def __init__(self, cohort: Cohort, twin: Twin) -> None:
        self.twin, self.hook = twin, cohort.first.loss
        self.token = Token(cohort.layout.size, twin.like)
        self.model = StackedModel(cohort.model, twin, self.token)
        self.shared = twin.shared
        self._cohort, self._k = cohort, cohort.k
        self._stacks: list[tuple[PerClient, Tensor]] = []

    @cached_property
    def extras(self) -> dict[str, Any]:
        """What hooks are given, clients side by side: copies, made when one is called."""
        extras = self._cohort.extras()
        self._stacks = [(p, p.stack) for p in _leaves(extras) if isinstance(p, PerClient)]
        self.shared = self.shared | {id(t) for t in _leaves(extras) if isinstance(t, Tensor)}
        self.active(self._k)
        return extras

    def active(self, k: int) -> None:
        """Only the first k clients go on."""
        self._k = k
        for entry, stack in self._stacks:
            entry.stack = stack[:k]
        self.twin.constants(k)

    def losses(self, step: Step, hook: LossHook | None) -> Tensor:
        """One value per folded sample `(k*B,)`; `hook` None is the task's loss."""
        extras = None if hook is None else self.extras
        FOLD.sizes, FOLD.shared = step.sizes, self.shared
        FOLD.batch = {n: (t, t._version) for n, t in step.batch.items()} if isinstance(step.batch, Data) else {}
        FOLD.foreign, FOLD.crossed = self.twin.foreign, self.twin.crossed
        try:
            if hook is None:
                out: Any = self.model.losses(self.token, step.batch)
            else:
                out = hook(self.model, self.token, step.batch, extras)
        finally:
            FOLD.sizes, FOLD.shared, FOLD.batch = (), frozenset(), {}
        if isinstance(out, PerClient) and out.ndim == 1:
            out = out.stack.flatten()
        if not isinstance(out, Tensor):
            raise NotStackable("the loss must give one value per sample; it gave one number per client")
        return out


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [x for v in tree.values() for x in _leaves(v)]
    if isinstance(tree, list | tuple):
        return [x for v in tree for x in _leaves(v)]
    return [tree]


# Odd sizes: a length that follows the batch is seen at both.
_WIDTHS = (11, 13)


def survey(twin: Twin, requests: Sequence[Training]) -> Notes:
    """How the network and the loss use the weights, from two forward passes of two clients; kept for like requests.

    What meets `F.linear` alone may become lazy; lengths that do not follow the batch are remembered, so that no real
    batch is confused with them.

    Raises:
        NotStackable: an operator cannot be stacked, or the loss is not one value per sample.
    """
    first = requests[0]
    key = (
        code_key(first.loss),
        value_key(first.extras),
        tuple((name, kind_of(data)) for name, data in first.data.items()),
        str(first.model.block),
        first.model.training,
    )
    if key not in twin.surveys:
        twin.surveys[key] = _look(twin, (list(requests) * 2)[:2])
    notes = twin.surveys[key]
    if isinstance(notes, NotStackable):
        raise notes
    return notes


def _look(twin: Twin, pair: list[Training]) -> Notes | NotStackable:
    cohort = Cohort(pair)
    forward = Forward(cohort, twin)
    matrix = cohort.starts().expand(2, -1).clone()
    notes = FOLD.notes = Notes()
    try:
        twin.place(matrix)
        forward.token.matrix = matrix
        forward.active(2)
        for width in _WIDTHS:
            streams = {n: Data.cat([_some(r.data[n], width) for r in pair]) for n in pair[0].data}
            step = Step(2, streams.get("", streams), (2 * width,), {2 * width: matrix}, False)
            with torch.no_grad():
                step.seed(forward.losses(step, pair[0].loss))
    except NotStackable as e:
        return e
    except RuntimeError as e:
        if "does not require grad" in str(e):  # torch's words: nothing is differentiated here
            return NotStackable(INNER)
        raise
    finally:
        FOLD.notes = None
    notes.dense = {pair: rows / len(_WIDTHS) for pair, rows in notes.dense.items()}
    notes.inputs = {pair: name for pair, name in notes.inputs.items() if notes.dense[pair] == 1}
    return notes


def _some(data: Data, n: int) -> Data:
    return data.rows(torch.arange(n, device=next(iter(data.values())).device) % len(data))
