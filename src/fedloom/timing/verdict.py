"""Whether a reply that arrives by itself may count. There is no majority to compare it with, only what was asked."""

from __future__ import annotations

import re

from torch import Tensor

from fedloom.engines.base import Plan
from fedloom.engines.fold import Fold
from fedloom.errors import MessageError
from fedloom.message import At, Message, Value, check_finite, leaves

from .posted import Posted


def refusal(posted: Posted, plan: Plan) -> str | None:
    """Why the reply of a job does not count: it is not finite, has no weight, or not the shape of its model.

    A method whose card says that replies grow with the model (`up="4*d"`) is answered, by a client that was sent a
    model, with at least one tensor or `At` of the shape of what was sent. Everything else about shapes is between the
    method and its clients.
    """
    assert posted.reply is not None
    try:
        check_finite(posted.reply, f"reply of client {posted.id}")
        if posted.weight is not None:
            Fold(posted.weight).of(posted.reply, posted.samples)
    except MessageError as e:
        return str(e)
    return _unlike_its_model(posted.reply, posted.payload, plan)


def _unlike_its_model(reply: Message, payload: Message, plan: Plan) -> str | None:
    got = [shape for value in reply.values() if not isinstance(value, (int, float)) for shape in _shapes(value)]
    if not got or not _grows(plan.method.card.up):
        return None
    sent = [tuple(leaf.shape) for leaf in leaves(payload) if isinstance(leaf, Tensor)]
    models = {(model.layout.size,) for model in plan.models.values()}
    if models.isdisjoint(sent) or not set(sent).isdisjoint(got):
        return None
    return f"its shapes {got} are none of what it was sent, {sent}; the card of {plan.method.card.id!r} says one is"


def _shapes(value: Value) -> list[tuple[int, ...]]:
    """Of the dense tensors inside, and of those that an `At` is part of."""
    if isinstance(value, At):
        return [(value.size, *value.values.shape[1:])]
    return [tuple(leaf.shape) for leaf in leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _grows(up: str | None) -> bool:
    return up is not None and re.search(r"\bd\b", up) is not None
