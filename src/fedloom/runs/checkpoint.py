"""Checkpoints between rounds: written whole or not at all, checked when read, the one before kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fedloom.errors import CheckpointError, DiskError, MessageError
from fedloom.written import loads, pieces

from . import files

FOLDER = "checkpoints"
"""Of a run's folder, where they are."""
KEEP = 2
_MAGIC = b"FEDLOOM1"


def save(folder: Path, round: int, content: Any) -> Path:
    """Write `round-<n>.ckpt` atomically: a kill or a full disk leaves the one before as it was.

    Raises:
        CheckpointError: it could not be written; says why and what is still there.
    """
    body = pieces(content)
    path = folder / f"round-{round:06d}.ckpt"
    kept = ", ".join(p.name for p in found(folder)) or "none"
    then = f"Checkpoints still there: {kept}. Make room, then resume"
    try:
        files.replace(path, [_MAGIC, _digest(body), *body], then)  # joined they would be in memory twice
        with files.writing(path, then):
            _sync(folder)
    except DiskError as e:
        raise CheckpointError(str(e)) from None
    for old in (*found(folder)[:-KEEP], *folder.glob("round-*.partial")):  # what a kill left half written goes, too
        old.unlink(missing_ok=True)
    return path


def load(folder: Path, device: torch.device | None = None) -> tuple[int, Any, list[str]]:
    """The newest checkpoint that is whole, its tensors on a device.

    Returns:
        its round, its content, and a line for each newer one that had to be passed over.

    Raises:
        CheckpointError: none there, or none whole.
    """
    troubles: list[str] = []
    for path in reversed(found(folder)):
        try:
            content = _read(path, device)
            said = [f"{trouble}; the one before is used" for trouble in troubles]
            return _round(path), content, said
        except (CheckpointError, MessageError) as e:
            troubles.append(f"{path.name}: {e}")
    told = "; ".join(troubles) or f"there is no *.ckpt in {folder}"
    raise CheckpointError(f"nothing to resume from: {told}")


def _read(path: Path, device: torch.device | None) -> Any:
    raw = path.read_bytes()
    head = len(_MAGIC)
    if raw[:head] != _MAGIC:
        raise CheckpointError("not a Fedloom checkpoint, or truncated")
    digest, body = raw[head : head + 32], raw[head + 32 :]
    if _digest([body]) != digest:
        raise CheckpointError("truncated or damaged (its checksum does not match)")
    return loads(body, device)


def _digest(parts: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    named = (path for path in folder.glob("round-*.ckpt") if path.stem.removeprefix("round-").isdecimal())
    return sorted(named, key=_round)


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
