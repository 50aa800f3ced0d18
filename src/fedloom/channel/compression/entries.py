"""The tensors in a message, packed or not: one function applied to all of them, and scaling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fedloom.errors import MessageError, unknown
from fedloom.message import At, Message, Packed, Value
from fedloom.trees import is_mapping, is_row, like


def entries(message: Message, change: Callable[[str, Value], Value], names: tuple[str, ...] = ()) -> Message:
    """The message with `change(path, value)` applied to every tensor, `At` and packed tensor in it.

    Args:
        names: only these fields; () for all.

    Raises:
        ConfigError: the message has none of `names`.
    """

    def walk(path: str, v: Value) -> Value:
        if is_mapping(v):
            inside = {k: walk(f"{path}.{k}", x) for k, x in v.items()}
            return Message(inside) if isinstance(v, Message) else inside
        if is_row(v):
            return like(v, (walk(f"{path}.{k}", x) for k, x in enumerate(v)))
        if isinstance(v, Tensor | At | Packed):
            return change(path, v)
        return v

    if names and not any(n in message for n in names):
        raise unknown("message field", names[0], message)
    return Message({k: walk(k, v) if not names or k in names else v for k, v in message.items()})


def scaled(value: Value, factor: float) -> Value:
    """A tensor, `At` or packed tensor times a number.

    Raises:
        MessageError: a packed form that cannot be scaled.
    """
    if isinstance(value, Tensor):
        return value * factor
    if isinstance(value, At):
        return replace(value, values=value.values * factor)
    if hasattr(value, "scaled"):
        return value.scaled(factor)
    raise MessageError(
        f"{type(value).__name__} cannot be scaled, so it cannot be clipped; give it a method scaled(factor)"
    )
