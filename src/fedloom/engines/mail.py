"""What one process tells another about jobs: pickled text, longer tensors beside it, programs by their place."""

from __future__ import annotations

import contextlib
import ctypes
import io
import pickle
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fedloom.client import settled
from fedloom.errors import ConfigError, FedloomError

if TYPE_CHECKING:
    from .base import Plan

UNWRITABLE = (pickle.PicklingError, AttributeError, TypeError)
"""What pickle raises for lambdas, open files and the like."""


_SHORT = 1 << 14
"""Bytes of a tensor up to which it is written into the letter: quicker than telling where it lies."""


class Tensors(Protocol):
    """Carries the longer tensors of letters; both sides have the plan."""

    plan: Plan

    def place(self, obj: Tensor, tensor: Tensor) -> Any:
        """Where the receiver finds a tensor: small, and picklable. `obj` is what the letter mentions."""
        ...

    def claim(self, place: Any) -> Tensor:
        """The tensor somebody put there."""
        ...


def write(value: Any, tensors: Tensors) -> bytes:
    """A letter.

    Raises:
        one of `UNWRITABLE`.
    """
    out = io.BytesIO()
    _Pickler(out, tensors).dump(value)
    return out.getvalue()


def read(letter: bytes, tensors: Tensors) -> Any:
    """What a letter says."""
    return _Unpickler(io.BytesIO(letter), tensors).load()


def sendable(e: Any) -> Any:
    """An exception or a warning as it is, or what says the same and can be sent."""
    try:
        pickle.loads(pickle.dumps(e))
    except Exception:
        return FedloomError(str(e)) if isinstance(e, FedloomError) else RuntimeError(f"{type(e).__name__}: {e}")
    return e


class _Pickler(pickle.Pickler):
    """Tensors and programs are written as calls of `claimed` and `placed`, which the reader answers."""

    def __init__(self, out: io.BytesIO, tensors: Tensors) -> None:
        super().__init__(out, protocol=5)
        self.tensors = tensors

    def reducer_override(self, obj: Any) -> Any:  # not asked about numbers, text and containers, most of a letter
        if isinstance(obj, Tensor):
            tensor = settled(obj).detach()
            if not (tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_conj()):
                return NotImplemented
            if tensor.nbytes <= _SHORT:
                return told, _text(tensor)
            return claimed, (self.tensors.place(obj, tensor),)
        if isinstance(obj, MethodType):
            with contextlib.suppress(ConfigError):  # of something else: pickled as it is
                return placed, (self.tensors.plan.place(obj),)
        return NotImplemented


def _text(tensor: Tensor) -> tuple[bytearray, torch.dtype, tuple[int, ...]]:
    """Contents, type and shape."""
    tensor = tensor.contiguous()
    return bytearray(ctypes.string_at(tensor.data_ptr(), tensor.nbytes)), tensor.dtype, tuple(tensor.shape)


def told(contents: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor a letter holds; a copy, as products may depend on how numbers are aligned."""
    if not contents:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(contents, dtype=dtype).view(shape).clone()


def claimed(place: Any) -> Tensor:
    """The tensor at a place."""
    raise RuntimeError("a letter is read by `read`, which knows where its tensors are")


def placed(place: str) -> Any:
    """The program at a place."""
    raise RuntimeError("a letter is read by `read`, which has the plan")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: io.BytesIO, tensors: Tensors) -> None:
        super().__init__(data)
        self.answers = {"claimed": tensors.claim, "placed": tensors.plan.program}

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == __name__ and global_name in self.answers:
            return self.answers[global_name]
        return super().find_class(module_name, global_name)
