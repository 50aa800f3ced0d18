"""Memory that processes share: what is sent of a tensor is an address, not a copy.

A heap is reserved before the workers are forked, so an address means the same in every one of them. Only pages that
are used take memory. One process writes into a heap; all read from it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import Plan

_RESERVED = 1 << 38  # bytes of addresses, halved until the system grants them; memory is taken page by page
_LEAST = 1 << 30
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_GRAIN = 64  # bytes: a cache line


class Heap:
    """Blocks of shared memory, handed out by one process and read by all.

    Raises:
        OSError: the system grants no such memory.
    """

    def __init__(self) -> None:
        self.memory = _reserve()
        self.begin = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.size = len(self.memory)
        self._top = 0
        self._free: dict[int, list[int]] = {}

    def take(self, nbytes: int) -> int:
        """The address of a block.

        Raises:
            MemoryError: none is left.
        """
        size = _rounded(nbytes)
        if old := self._free.get(size):
            return old.pop()
        if self._top + size > self.size:
            raise MemoryError(f"the memory shared by workers ({self.size >> 30} GiB) is used up")
        self._top += size
        return self.begin + self._top - size

    def give(self, address: int, nbytes: int) -> None:
        """Take a block back."""
        self._free.setdefault(_rounded(nbytes), []).append(address)

    def block(self, place: Place) -> Any:
        """The bytes there, as an object that keeps this memory for as long as a tensor refers to it."""
        return _bytes(place.nbytes).from_buffer(self.memory, place.address - self.begin)

    def put(self, tensor: Tensor) -> Place:
        """Copy a tensor in."""
        place = Place(self.take(tensor.nbytes), tensor.nbytes, tensor.dtype, tuple(tensor.shape))
        at(place).copy_(tensor)
        return place


def _reserve() -> mmap.mmap:
    size = _RESERVED
    while True:
        try:
            return mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        except OSError:
            size //= 2
            if size < _LEAST:
                raise


@functools.lru_cache(maxsize=256)
def _bytes(n: int) -> Any:
    """The type of so many bytes; making one takes longer than anything else here, and leaves a cycle."""
    return ctypes.c_char * n


def _rounded(nbytes: int) -> int:
    return max(_GRAIN, -(-nbytes // _GRAIN) * _GRAIN)


class Place(NamedTuple):
    """Where a tensor lies: contiguous, in some heap."""

    address: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def at(place: Place, buffer: Any = None) -> Tensor:
    """The tensor there, without a copy. Without a `Heap.block` to keep, only for as long as the heap lives."""
    if place.nbytes == 0:
        return torch.empty(place.shape, dtype=place.dtype)
    raw = _bytes(place.nbytes).from_address(place.address) if buffer is None else buffer
    return torch.frombuffer(raw, dtype=place.dtype).view(place.shape)


class _Side:
    """One end of an exchange of letters (`mail.py`) whose tensors lie in heaps; this end puts them into `heap`."""

    def __init__(self, heap: Heap, plan: Plan) -> None:
        self.heap, self.plan = heap, plan
        self._put: dict[int, tuple[Place, Tensor]] = {}  # by id: what was copied in for this exchange, kept alive
        self._sent: dict[int, Tensor] = {}  # the same, by address

    def place(self, obj: Tensor, tensor: Tensor) -> Place:
        """Where it lies, or a copy: one for all mentions of one object."""
        known = self.shared(tensor)
        if known is not None:
            return known
        if id(obj) not in self._put:
            place = self.heap.put(tensor)
            self._put[id(obj)], self._sent[place.address] = (place, obj), obj
        return self._put[id(obj)][0]

    def shared(self, tensor: Tensor) -> Place | None:
        """Where this very tensor lies, if in a heap."""
        raise NotImplementedError


class ParentSide(_Side):
    """What workers put down becomes tensors that say when they are no longer needed."""

    def __init__(self, heap: Heap, plan: Plan) -> None:
        super().__init__(heap, plan)
        self._blocks: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._heaps: Sequence[Heap] = ()
        self._freed: dict[int, list[Place]] = {}

    def watch(self, heaps: Sequence[Heap]) -> None:
        """The heaps of the present team."""
        self._heaps = heaps
        self._freed = {heap.begin: [] for heap in heaps}

    def shared(self, tensor: Tensor) -> Place | None:
        block = self._blocks.get(tensor.data_ptr())
        if block is None or not tensor.is_contiguous() or len(block) != tensor.nbytes:
            return None
        return Place(tensor.data_ptr(), tensor.nbytes, tensor.dtype, tuple(tensor.shape))

    def claim(self, place: Place) -> Tensor:
        mine = self._sent.get(place.address)
        if mine is not None:  # what was sent came back
            return mine
        held = self._blocks.get(place.address)
        if held is None and place.nbytes:
            owner = next(h for h in self._heaps if h.begin <= place.address < h.begin + h.size)
            held = self._blocks[place.address] = owner.block(place)
            weakref.finalize(held, self._freed[owner.begin].append, place).atexit = False
        return at(place, held)

    def freed(self, heap: Heap) -> list[Place]:
        """Blocks of a worker's heap that nobody here looks at any more."""
        places, self._freed[heap.begin][:] = list(self._freed[heap.begin]), []
        return places

    def clear(self) -> None:
        """The exchange is over: what was copied in for it has been read."""
        for place, _ in self._put.values():
            self.heap.give(place.address, place.nbytes)
        self._put.clear()
        self._sent.clear()


class WorkerSide(_Side):
    """The same place is the same tensor throughout a letter, and goes back as it came."""

    def __init__(self, heap: Heap, plan: Plan) -> None:
        super().__init__(heap, plan)
        self._came: dict[int, tuple[Place, Tensor]] = {}

    def begin(self) -> None:
        """The next letter."""
        self._came.clear()

    def claim(self, place: Place) -> Tensor:
        if place.address not in self._came:
            self._came[place.address] = place, at(place)
        return self._came[place.address][1]

    def shared(self, tensor: Tensor) -> Place | None:
        came = self._came.get(tensor.data_ptr())
        if came is None or not tensor.is_contiguous() or came[0].nbytes != tensor.nbytes:
            return None
        return came[0]._replace(dtype=tensor.dtype, shape=tuple(tensor.shape))

    def hand_over(self) -> None:
        """What was written belongs to the reader now."""
        self._put.clear()
        self._sent.clear()
