"""Batches of many clients, folded: gathered for many steps at once, padded where a client has fewer samples."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import neg
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedloom.data.fields import Data
from fedloom.training.request import Schedule, Training

from .fold import NotStackable

_STEPS = 128  # of indices built at once
_BYTES = 1 << 20  # of samples gathered at once: still in cache when used, and reused memory rather than fresh


@dataclass(frozen=True)
class Step:
    """One step of the clients that still train.

    Attributes:
        active: how many; they are the first of the cohort.
        batch: `Data` with fields `(active * width, ...)`, client by client, or a dict of them.
        sizes: `active * width` of each stream.
        seeds: by length of the losses, `(active * width,)`: 1/b for a client's b real samples, 0 for padding.
        padded: whether there is padding.
    """

    active: int
    batch: Any
    sizes: tuple[int, ...]
    seeds: dict[int, Tensor]
    padded: bool

    def seed(self, losses: Tensor) -> Tensor:
        """What backward begins with.

        Raises:
            NotStackable: not one loss per sample of a stream.
        """
        seed = self.seeds.get(losses.numel()) if losses.dim() == 1 else None
        if seed is None:
            raise NotStackable(
                f"the loss must give one value per sample; for {max(self.sizes)} samples it gave {tuple(losses.shape)}"
            )
        return seed


def steps(
    requests: Sequence[Training], dtype: torch.dtype, clashes: Callable[[int, int], bool], exact: bool = False
) -> Iterator[Step]:
    """The steps of requests sorted longest first.

    Args:
        clashes: whether k clients of a width could be mistaken for something else; then the batch is padded.
        exact: all requests have batches of equal sizes, and nothing may be padded.
    """
    streams = {
        n: _Stream([r.data[n] for r in requests], [r.schedules[n] for r in requests], dtype, exact)
        for n in requests[0].data
    }
    counts = [r.steps for r in requests]
    prefixes = [k for k, (last, next) in enumerate(pairwise([*counts, 0]), 1) if next < last]
    for stream in streams.values():
        while any(clashes(a, stream.width) for a in prefixes):
            if exact:
                raise NotStackable("a length in the network could be mistaken for that of the batch")
            stream.width += 1
    active = len(requests)
    moving = {n: s.run(counts) for n, s in streams.items()}
    for t in range(counts[0]):
        while counts[active - 1] <= t:
            active -= 1
        parts = {n: next(m) for n, m in moving.items()}
        yield _step(active, parts)


def samples(requests: Sequence[Training], name: str) -> Tensor:
    """What the steps of requests sorted longest first will read of a field, `(k, steps, width, ...)`; where there is
    none, a client's first sample."""
    stream = _Stream([r.data[""] for r in requests], [r.schedules[""] for r in requests], torch.float32, False)
    counts, column = [r.steps for r in requests], stream.table[name]
    index = stream.index(len(requests), 0, counts[0], counts).view(counts[0], len(requests), stream.width)
    index = index.transpose(0, 1)
    return column.index_select(0, index.reshape(-1)).view(*index.shape, *column.shape[1:])


def _step(active: int, parts: dict[str, tuple[Data, Tensor, bool]]) -> Step:
    if "" in parts:
        batch, seed, padded = parts[""]
        n = seed.numel()
        return Step(active, batch, (n,), {n: seed}, padded)
    seeds: dict[int, Tensor] = {}
    for batch, seed, _ in parts.values():
        n = len(batch)
        if n in seeds and seeds[n] is not seed and not torch.equal(seeds[n], seed):
            raise NotStackable("streams of one width whose batches hold different numbers of samples")
        seeds[n] = seed
    batch = {n: p[0] for n, p in parts.items()}
    return Step(active, batch, tuple(seeds), seeds, any(p[2] for p in parts.values()))


class _Stream:
    """One data stream of all clients."""

    def __init__(self, datas: Sequence[Data], schedules: Sequence[Schedule], dtype: torch.dtype, exact: bool) -> None:
        self.dtype, self.exact = dtype, exact
        self.width = max(s.index.shape[1] for s in schedules)
        self.table, self.offsets, self.schedules = _table(datas, schedules)
        self.device = next(iter(self.table.values())).device
        self.even: dict[tuple[int, int], Tensor] = {}

    def run(self, counts: Sequence[int]) -> Iterator[tuple[Data, Tensor, bool]]:
        """(folded batch, seed, padded) of each step."""
        names, tensors = tuple(self.table), tuple(self.table.values())
        for t0 in range(0, counts[0], _STEPS):
            t1 = min(t0 + _STEPS, counts[0])
            active = [bisect_left(counts, -t, key=neg) for t in range(t0, t1)]
            index = self.index(active[0], t0, t1, counts)
            matrix = self._seeds(active[0], t0, t1, counts)
            seeds = [self._even(a, self.width) for a in active] if matrix is None else self._each(matrix, active)
            columns = [self._gathered(t, index, active) for t in tensors]
            padded = matrix is not None and not self.exact
            for real, a, seed, *batch in zip(self.schedules[0].counts[t0:t1], active, seeds, *columns):
                if self.exact and real != self.width:
                    batch = [x.unflatten(0, (a, -1))[:, :real].flatten(0, 1) for x in batch]
                    seed = self._even(a, real)
                yield Data.cut(dict(zip(names, batch)), seed.numel()), seed, padded

    def _gathered(self, column: Tensor, index: Tensor, active: Sequence[int]) -> Iterator[Tensor]:
        """Samples `(active * width, ...)` of each step; several steps at once where they are small."""
        nbytes = column[:1].numel() * column.element_size()
        window = max(1, _BYTES // max(1, nbytes * active[0] * self.width))
        for at in range(0, len(index), window):
            rows = index[at : at + window, : active[at] * self.width]
            samples = column.index_select(0, rows.reshape(-1)).view(*rows.shape, *column.shape[1:])
            yield from self._each(samples, active[at : at + window])

    def _each(self, rows: Tensor, active: Sequence[int]) -> Iterator[Tensor]:
        """What each step's active clients have of rows `(steps, active[0] * width, ...)`."""
        return (x if a == active[0] else x[: a * self.width] for a, x in zip(active, rows.unbind(0)))

    def index(self, active: int, t0: int, t1: int, counts: Sequence[int]) -> Tensor:
        """Rows of the table, `(t1 - t0, active * width)`. Padding repeats the first sample of a batch: no other would
        do, as the gradient of one that is not finite is not zero times nothing."""
        rows = [self._rows(s.index, t0, min(c, t1)) for s, c in zip(self.schedules, counts[:active])]
        starts = torch.tensor(self.offsets[:active]).unsqueeze(1)
        return pad_sequence(rows).add_(starts).view(t1 - t0, -1).to(self.device)

    def _rows(self, index: Tensor, t0: int, t1: int) -> Tensor:
        """A client's positions `(t1 - t0, width)`."""
        if t0 or t1 != len(index):
            index = index[t0:t1]
        missing = self.width - index.shape[1]
        return torch.cat([index, index[:, :1].expand(-1, missing)], 1) if missing else index

    def _seeds(self, active: int, t0: int, t1: int, counts: Sequence[int]) -> Tensor | None:
        """`(t1 - t0, active * width)`; None where every batch is full."""
        real = np.full((active, t1 - t0), self.width)  # of those that have ended, nobody looks at the rest
        for mine, schedule, end in zip(real, self.schedules, counts):
            some = schedule.counts[t0 : min(t1, end)]
            mine[: len(some)] = some
        if (real == self.width).all():
            return None
        n = real.T[:, :, None]
        seeds = (np.arange(self.width) < n) / n  # counted in whole numbers: short floats know few of them
        return torch.from_numpy(seeds.reshape(t1 - t0, -1)).to(self.dtype).to(self.device)

    def _even(self, k: int, real: int) -> Tensor:
        """The seed of k full batches."""
        if (k, real) not in self.even:
            self.even[k, real] = torch.full((k * real,), 1.0 / real, dtype=self.dtype, device=self.device)
        return self.even[k, real]


def _table(datas: Sequence[Data], schedules: Sequence[Schedule]) -> tuple[Data, list[int], Sequence[Schedule]]:
    """One table with the samples of all clients, and where each client's begin."""
    base = datas[0].base or datas[0]
    if all(d is base or d.base is base for d in datas):
        return base, [d.offset if d is not base else 0 for d in datas], schedules
    unique = {id(d): d for d in datas}
    wanted = sum(s.index.numel() for s in schedules)
    if sum(map(len, unique.values())) <= 2 * wanted:
        starts, at = {}, 0
        for key, d in unique.items():
            starts[key] = at
            at += len(d)
        return Data.cat(list(unique.values())), [starts[id(d)] for d in datas], schedules
    parts, offsets, fresh, at = [], [], [], 0  # large data, few steps: only the samples they need
    for d, s in zip(datas, schedules):
        flat = s.index.reshape(-1)
        device = next(iter(d.values())).device
        parts.append(Data(**{n: x.index_select(0, flat.to(device)) for n, x in d.items()}))
        fresh.append(Schedule(torch.arange(flat.numel()).view(s.index.shape), s.counts))
        offsets.append(at)
        at += flat.numel()
    return Data.cat(parts), offsets, fresh
