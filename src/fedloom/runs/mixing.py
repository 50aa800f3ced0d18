"""Peer-to-peer averaging of what clients hold in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedloom.errors import ConfigError
from fedloom.keyed import generator
from fedloom.message import nbytes

if TYPE_CHECKING:
    from .host import Host


def mixed(host: Host, name: str, topology: Any, ids: Sequence[int], start: float) -> float:
    """Each client's vector becomes the weighted mean of its neighbours'; bytes are those of every directed edge.

    Clients that hold none (no job of theirs has counted yet) sit it out.

    Returns:
        when the last vector was in.
    """
    ids = [i for i in ids if name in host.memory_of(i)]
    if not ids:
        return start
    if busy := sorted({p.id for p in host.dispatch.jobs.values()} & set(ids))[:5]:
        raise ConfigError(
            f"mix({name!r}) while jobs are under way at clients {busy}: what they return would overwrite the mean. "
            f"Receive them first, or mix others: clients.only(clients.idle()).mix(...)"
        )
    matrix = topology.matrix(ids, generator(*host.draw_key("topology")))
    rows = [host.memories[i][name] for i in ids]
    result = matrix.to(rows[0]) @ torch.stack(rows)
    edges = _edges(matrix)
    host.ledger.peers += edges * nbytes(rows[0])
    for k, i in enumerate(ids):
        host.memories[i] = {**host.memories[i], name: result[k].clone()}
    return start + max(host.plan.world.upload(i, nbytes(rows[0])) for i in ids)


def _edges(matrix: Tensor) -> int:
    """Directed edges: weights that are not 0, off the diagonal."""
    sparse = matrix.to_sparse().coalesce()
    a, b = sparse.indices()
    return int(((a != b) & (sparse.values() != 0)).sum())
