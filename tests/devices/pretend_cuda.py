"""A CUDA device for machines without one: its tensors lie in the CPU's memory, and are computed with there.

Within `pretended()` there is one device `cuda:0`. A tensor on it says so (`device`, `is_cuda`), the arithmetic is real,
and PyTorch's rules for devices are kept: an operator that is given tensors of both devices raises, unless it is one
that may be (a copy, a CPU index, a single number in an elementwise operator); NumPy cannot look at it; a generator of
the CPU cannot draw on it. What makes the CPU wait for the device is counted, with the line that asked for it.

What it cannot show: speed, memory, operators whose sums on a GPU depend on the order of its threads, and TF32.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_PACKAGE = str(Path(__file__).parents[2] / "src" / "fedloom")


class MixedDevices(RuntimeError):
    """An operator was given tensors of both devices."""


class OnDevice(Tensor):
    """A tensor of the pretended device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _judge(func, args, kwargs)
        with torch._C._DisableTorchDispatch():
            out = func(*args, **kwargs)
        return tree_map(uploaded, out) if func not in _ANSWERS else out

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{downloaded(self.detach())!r} on {DEVICE}"


class Waits(Counter[str]):
    """How often the CPU waited for the device, by "file:line function" of the package."""

    @property
    def all(self) -> int:
        return sum(self.values())


_WAITS = Waits()


def waited() -> None:
    """The CPU waits here."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    if frame is not None:
        name = frame.f_code.co_filename.removeprefix(_PACKAGE).lstrip("/")
        _WAITS[f"{name}:{frame.f_lineno} {frame.f_code.co_name}"] += 1


# ---------------------------------------------------------------- from one device to the other
def uploaded(x: Any) -> Any:
    """A tensor as one of the device, without a copy."""
    return Tensor._make_subclass(OnDevice, x) if type(x) is Tensor else x


def downloaded(x: Tensor) -> Tensor:
    """A tensor of the device as one of the CPU, without a copy."""
    with torch._C._DisableTorchDispatch():
        return x.view(x.shape)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: bool) -> Tensor:
        ctx.up = up
        return _moved(x, up)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _moved(grads[0], not ctx.up), None


def _moved(x: Tensor, up: bool) -> Tensor:
    x = x.detach()
    return uploaded(x.clone()) if up else downloaded(x.clone())


def on_device(x: Any) -> bool:
    """Whether a tensor, or what a map over it stands for, lies on the device."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return isinstance(x, OnDevice) or (isinstance(x, Tensor) and _own_device(x).type == "cuda")


def _own_device(x: Tensor) -> torch.device:
    with torch._C.DisableTorchFunction():
        return torch._C.TensorBase.device.__get__(x)  # type: ignore[no-any-return]


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# ---------------------------------------------------------------- what an operator may be given
_aten = torch.ops.aten
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index}
_TAKE_NUMBERS = {_aten.masked_fill, _aten.masked_fill_, _aten.where, _aten.fill, _aten.fill_}
_COPIES = {_aten.copy_, _aten._foreach_copy_}
_LOOKS = {
    *(_aten._local_scalar_dense, _aten.equal, _aten.is_nonzero, _aten.nonzero, _aten.masked_select, _aten._unique2),
    *(_aten.unique_dim, _aten.unique_consecutive, _aten.repeat_interleave, _aten.bincount, _aten._linalg_eigh),
    *(_aten._linalg_svd, _aten.linalg_solve_ex, _aten._linalg_solve_ex, _aten.linalg_inv_ex),
}
_ANSWERS = {_aten.equal.default, _aten._local_scalar_dense.default, _aten.is_nonzero.default}


def _judge(func: Any, args: Any, kwargs: Any) -> None:
    """Raise where devices are mixed, and count where the CPU waits."""
    packet = func.overloadpacket
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    cpu = [x for x in tensors if not (on_device(x) or hasattr(x, "_goes_with_either"))]
    if any(isinstance(x, torch.Generator) for x in tree_leaves((args, kwargs))):
        raise RuntimeError(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
    if packet in _COPIES:
        if cpu:
            waited()
        return
    if packet in _LOOKS:
        waited()
    if packet in _INDEXING:
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
        if any(not on_device(x) or x.dtype in (torch.bool, torch.uint8) for x in indices):
            waited()
        cpu = [x for x in cpu if not any(x is i for i in indices)]
        if not on_device(args[0]) or any(x.dim() for x in cpu):
            raise MixedDevices(_told(func, tensors))
        return
    if not cpu:
        return
    changed = func._schema.is_mutable and not on_device(next(iter(tree_leaves(args))))
    condition = packet in (_aten.where, _aten.masked_fill, _aten.masked_fill_) and not all(map(on_device, args[:2]))
    single = torch.Tag.pointwise in func.tags or packet in _TAKE_NUMBERS
    if changed or (condition and any(x.dim() for x in cpu)) or not single or any(x.dim() for x in cpu):
        raise MixedDevices(_told(func, tensors))


def _told(func: Any, tensors: list[Tensor]) -> str:
    listed = ", ".join(f"{tuple(x.shape)} {'cuda:0' if on_device(x) else 'cpu'}" for x in tensors)
    return f"{func}: expected all tensors to be on the same device, but found {listed}"


# ---------------------------------------------------------------- what Python calls
_FACTORIES = (
    *("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn", "randint", "randperm"),
    *("tensor", "as_tensor", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("randint_like", "tril_indices", "triu_indices", "scalar_tensor"),
)
_NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")


def _factory(original: Callable[..., Any], uploads: bool) -> Callable[..., Any]:
    """A function that makes tensors, which may be asked for the device."""

    def make(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("device")
        if isinstance(given, int) and not isinstance(given, bool):
            given = DEVICE
        here = [x for x in args if isinstance(x, Tensor)]
        if given is None:
            out = _asked(original, *args, **kwargs)
            return uploaded(out) if uploads and here and on_device(here[0]) else out
        if not _is_cuda(given):
            out = _asked(original, *args, **kwargs)
            return downloaded(out) if isinstance(out, OnDevice) else out
        if kwargs.get("generator") is not None:
            raise RuntimeError("expected a 'cuda' device type for generator but found 'cpu'")
        if uploads and not (here and on_device(here[0])):
            waited()
        with torch._C._DisableFuncTorch():  # a constant to whatever maps or differentiates
            return uploaded(_asked(original, *args, **{**kwargs, "device": "cpu"}))

    return make


def _asked(factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What Python asked for, and on which device."""
    _WITHIN.asked += 1
    try:
        return factory(*args, **kwargs)
    finally:
        _WITHIN.asked -= 1


class _Within(TorchDispatchMode):
    """Tensors that operators make for themselves, such as a gradient of zeros, are made where their operands are. On
    which device that is cannot be seen here, so they go with either."""

    asked = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = not self.asked and func.overloadpacket in _MADE
        if made or any(hasattr(x, "_goes_with_either") for x in tree_leaves(args)):
            for x in tree_leaves(out):
                if type(x) is Tensor:
                    x._goes_with_either = True
        return out


_MADE = {_aten.zeros, _aten.ones, _aten.full, _aten.empty, _aten.arange, _aten.scalar_tensor, _aten.empty_strided}
_WITHIN = _Within()


def _to(original: Callable[..., Any]) -> Callable[..., Any]:
    def to(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        rest, kwargs = list(args), dict(kwargs)
        wanted = kwargs.pop("device", None)
        first = kwargs.pop("other", rest[0] if rest else None)
        if isinstance(first, Tensor):
            wanted, rest = DEVICE if on_device(first) else "cpu", [first.dtype, *rest[1:]]
        elif isinstance(first, str | torch.device | int | None):
            wanted, rest = wanted if first is None else DEVICE if isinstance(first, int) else first, rest[1:]
        for name, value in zip(("dtype", "non_blocking", "copy"), rest):
            kwargs.setdefault(name, value)
        up = on_device(self) if wanted is None else _is_cuda(wanted)
        if up != on_device(self):
            if not (up and kwargs.get("non_blocking") and self.is_pinned()):
                waited()
            plain: Any = self.build() if hasattr(self, "build") else self
            self = _Move.apply(plain, up) if plain.requires_grad else _moved(plain, up)
        kwargs = {name: value for name, value in kwargs.items() if value not in (None, False)}
        return original(self, **kwargs) if kwargs.keys() - {"non_blocking"} else self

    return to


def _refused(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def numpy(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if on_device(self):
            raise TypeError(f"{name}: can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return original(self, *args, **kwargs)

    return numpy


def _tolist(original: Callable[..., Any]) -> Callable[..., Any]:
    def tolist(self: Tensor) -> Any:
        if on_device(self):
            waited()
            self = downloaded(self.build() if hasattr(self, "build") else self)
        return original(self)

    return tolist


def _synchronised(device: Any = None) -> None:
    waited()


@contextmanager
def pretended() -> Iterator[Waits]:
    """There is a CUDA device, within the block. Gives the count of waits."""
    t, before = Tensor, {n: getattr(Tensor, n) for n in ("to", "numpy", "__array__", "tolist")}
    patches = [
        mock.patch.object(torch, n, _factory(getattr(torch, n), n in ("tensor", "as_tensor"))) for n in _FACTORIES
    ]
    patches += [mock.patch.object(t, n, _factory(getattr(t, n), n == "new_tensor")) for n in _NEW]
    moved = _to(before["to"])
    patches += [
        mock.patch.object(t, "to", moved),
        mock.patch.object(t, "type_as", lambda x, other: moved(x, other)),
        mock.patch.object(t, "cpu", lambda x, **_: moved(x, "cpu")),
        mock.patch.object(t, "cuda", lambda x, *_, **__: moved(x, DEVICE)),
        mock.patch.object(t, "numpy", _refused("numpy", before["numpy"])),
        mock.patch.object(t, "__array__", _refused("__array__", before["__array__"])),
        mock.patch.object(t, "tolist", _tolist(before["tolist"])),
        mock.patch.object(t, "device", property(lambda x: DEVICE if on_device(x) else _own_device(x)), create=True),
        mock.patch.object(t, "is_cuda", property(on_device), create=True),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "device_count", return_value=1),
        mock.patch.object(torch.cuda, "current_device", return_value=0),
        mock.patch.object(torch.cuda, "synchronize", _synchronised),
        mock.patch.object(torch.cuda, "default_generators", (torch.Generator(),)),
    ]
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `.data = ` would keep the parameter's class
    _WAITS.clear()
    for patch in patches:
        patch.start()
    try:
        with _WITHIN:
            yield _WAITS
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        for patch in reversed(patches):
            patch.stop()
