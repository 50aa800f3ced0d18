"""Messages, memories and checkpoints as bytes that run no code: safetensors with a tree of JSON beside them.

Only data is read back: records are rebuilt from the classes this process has registered.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import MessageError
from .message import At, Covered, Message, Once, Value, is_set
from .trees import is_dict, is_named, is_row

_RECORDS: dict[str, type] = {}
R = TypeVar("R", bound=type)


def record(cls: R) -> R:
    """Let a frozen dataclass be written into messages and checkpoints, under its own qualified name."""
    _RECORDS[f"{cls.__module__}:{cls.__qualname__}"] = cls
    return cls


for _cls in (At, Covered, Once):
    record(_cls)


def dumps(value: Value) -> bytes:
    """Any tree of tensors, numbers, text, lists, tuples, sets, dicts and registered records as safetensors bytes."""
    return b"".join(pieces(value))


def can_be_written(value: Any) -> bool:
    """Whether `dumps` takes it."""
    try:
        _tree(value, {}, {})
    except MessageError:
        return False
    return True


def pieces(value: Value) -> list[bytes | memoryview]:
    """The bytes of `dumps` one after the other, tensors where they lie: nothing is in memory twice."""
    tensors: dict[str, Tensor] = {}
    tree = _tree(value, tensors, {})
    return safetensors_of(tensors, {"fedloom": json.dumps(tree)})


def _tree(v: Value, tensors: dict[str, Tensor], seen: dict[int, str]) -> Any:
    """A value as JSON, its tensors by name; `seen`: the names of those that were met before."""
    if isinstance(v, Tensor):
        if id(v) not in seen:
            seen[id(v)] = name = f"t{len(tensors)}"
            tensors[name] = v.detach().cpu().contiguous()
        return {"$": "tensor", "name": seen[id(v)]}
    if v is None or isinstance(v, bool | int | str):
        return v
    if isinstance(v, float):
        return v if math.isfinite(v) else {"$": "float", "is": repr(v)}
    if isinstance(v, torch.Size):
        return {"$": "tuple", "of": list(v)}
    if is_named(v):
        raise MessageError(
            f"cannot be saved or sent: {type(v).__qualname__} is a named tuple and would come back as a plain one. "
            f"Use a frozen dataclass that subclasses fedloom.State"
        )
    if is_row(v):
        return {"$": "tuple" if isinstance(v, tuple) else "list", "of": [_tree(x, tensors, seen) for x in v]}
    if is_set(v):
        return {"$": type(v).__name__, "of": [_tree(x, tensors, seen) for x in sorted(v, key=repr)]}
    if isinstance(v, Message):
        return {"$": "message", "of": [[k, _tree(x, tensors, seen)] for k, x in v.items()]}
    if is_dict(v):
        return {"$": "dict", "of": [[_tree(k, tensors, seen), _tree(x, tensors, seen)] for k, x in v.items()]}
    name = f"{type(v).__module__}:{type(v).__qualname__}"
    if name in _RECORDS:
        parts = [(f.name, getattr(v, f.name)) for f in dataclasses.fields(v)]
        return {"$": name, "of": [[field, _tree(x, tensors, seen)] for field, x in parts]}
    raise MessageError(
        f"cannot be saved or sent: {type(v).__qualname__}. Use tensors, numbers, text, lists, dicts, or a frozen "
        f"dataclass that subclasses fedloom.State"
    )


_KINDS = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


_ALIGNED = 64  # bytes; what torch begins a tensor at a multiple of


def safetensors_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """A file of the format safetensors, in pieces: eight bytes, a head of JSON, then the numbers, the widest first so
    that each lies at a multiple of its width, and of these the largest.
    """
    head, end, parts = dict[str, Any](__metadata__=metadata or {}), 0, list[bytes | memoryview]()
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), -item[1].numel())):
        if t.dtype not in _KINDS:
            raise MessageError(f"cannot be saved or sent: a tensor of {t.dtype}. Use {', '.join(map(str, _KINDS))}")
        part = t.view(-1).view(torch.uint8).numpy().data
        head[name] = {"dtype": _KINDS[t.dtype], "shape": list(t.shape), "data_offsets": [end, end + len(part)]}
        end += len(part)
        parts.append(part)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    return [len(text).to_bytes(8, "little") + text, *parts]


_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}


def loads(data: bytes, device: torch.device | None = None) -> Value:
    """The way back. Only data is read: records are rebuilt from the classes this process has registered.

    Args:
        device: where tensors are put, default the CPU.

    Raises:
        MessageError: truncated, malformed, or naming a record this process does not know.
    """
    try:
        tensors = {name: t.to(device) for name, t in safetensors.torch.load(data).items()}
        head = int.from_bytes(data[:8], "little")
        tree = json.loads(json.loads(data[8 : 8 + head])["__metadata__"]["fedloom"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise MessageError(f"not a Fedloom message, or truncated: {e}") from None
    return _rebuilt(tree, tensors)


def load(path: Path) -> Value:
    """The way back from a file. A tensor that lies as torch would have laid it (the largest does) is mapped: its
    numbers are read when they are looked at, and take no memory that the system could not have back. The file may be
    removed, and must not be changed, while they are in use.

    Raises:
        MessageError: as `loads`.
    """
    try:
        opened: Any = safetensors.safe_open(path, "pt")  # pyright: ignore
        with opened as file:
            names: list[str] = file.keys()
            tensors: dict[str, Tensor] = {name: _laid(file.get_tensor(name)) for name in names}
            tree = json.loads(file.metadata()["fedloom"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise MessageError(f"not a Fedloom message, or truncated: {e}") from None
    return _rebuilt(tree, tensors)


def _laid(t: Tensor) -> Tensor:
    """Where sums over it are added in the order they always are: it depends on where vectors begin."""
    return t if t.data_ptr() % _ALIGNED == 0 else t.clone()


def _rebuilt(tree: Any, tensors: Mapping[str, Tensor]) -> Value:
    """A value from its tree of JSON."""
    try:
        return _value(tree, tensors)
    except MessageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise MessageError(f"malformed message: {e!r}") from None


def _value(v: Any, tensors: Mapping[str, Tensor]) -> Value:
    """The way back from `_tree`."""
    if not is_dict(v):
        return v
    kind: Any = v.get("$")
    if kind == "tensor":
        return tensors[v["name"]]
    if kind == "float":
        return float(v["is"])
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([_value(x, tensors) for x in v["of"]])
    if kind == "message":
        return Message({k: _value(x, tensors) for k, x in v["of"]})
    if kind == "dict":
        return {_value(k, tensors): _value(x, tensors) for k, x in v["of"]}
    if kind in _RECORDS:
        parts = {k: _value(x, tensors) for k, x in v["of"]}
        if _RECORDS[kind] is At and parts["index"].dtype == torch.bool:  # its positions take eight times the room
            raise MessageError("an At is written with its positions, not with a mask")
        return _RECORDS[kind](**parts)  # their own checks run
    raise MessageError(f"unknown record {kind!r} in a message; import the module that defines it first")
