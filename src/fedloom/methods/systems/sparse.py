"""A pruned network on its way, and in training: the values that stay, their mask, steps at the pruned point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.channel.compression.packed import pack, unpack
from fedloom.message import Value, nbytes, once
from fedloom.written import record


@record
@dataclass(frozen=True, eq=False)
class Mask:
    """A mask as it travels: int32 positions of what stays, or a bitmap, whichever is smaller."""

    place: Tensor
    size: int

    @classmethod
    def of(cls, mask: Tensor) -> Mask:
        kept = mask.nonzero().flatten()
        small = 4 * len(kept) < math.ceil(len(mask) / 8)
        return cls(kept.to(torch.int32) if small else pack(mask.to(torch.int64), 1), len(mask))

    @property
    def nbytes(self) -> int:
        return nbytes(self.place)

    def dense(self) -> Tensor:
        if self.place.dtype == torch.uint8:
            return unpack(self.place, 1, self.size).bool()
        mask = torch.zeros(self.size, dtype=torch.bool, device=self.place.device)
        mask[self.place.to(torch.int64)] = True
        return mask


def sparse(params: Tensor, mask: Tensor) -> dict[str, Value]:
    """A pruned network as a payload: the values that stay, and the mask for clients that do not hold it yet."""
    return {"kept": params[mask], "mask": once(Mask.of(mask))}


def filled(kept: Tensor, mask: Tensor) -> Tensor:
    """The vector `(d,)` with these values under the mask and zeros elsewhere."""
    whole = kept.new_zeros(mask.shape)
    whole[mask] = kept
    return whole


def at_pruned_point(w: Tensor, f: Any, k: int, carry: Any, extras: Any) -> tuple[Tensor, Any]:
    """Error feedback: the gradient at the pruned weights moves all of them, also those the mask hides."""
    return f.grad(w * extras["mask"]), carry
