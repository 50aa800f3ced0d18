"""Networks on speech: log-mel energies (1, bands, frames) to scores per step, of which the last is the blank of CTC."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedloom.errors import ConfigError

from .net import Net, expect, positive
from .registry import register
from .text import Block

Shape = tuple[int, ...]


class Frames(nn.Module):
    """Convolutions that keep every fourth frame, and its place: (n, 1, bands, frames) -> (n, steps, width)."""

    def __init__(self, bands: int, frames: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(bands, width, 5, stride=2, padding=2)
        self.second = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.relu = nn.ReLU()
        self.position = nn.Parameter(0.02 * torch.randn((frames + 3) // 4, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.relu(self.first(x.squeeze(1)))))
        return x.transpose(1, 2) + self.position


class Encoder(nn.Module):
    """A transformer block, normalised: what it gives can be read by a head or by the next one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.block, self.norm = Block(width, heads, causal=False), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.block(x))


@register("speech-transformer")
def speech_transformer(
    input_shape: Shape, classes: int, *, width: int = 48, depth: int = 4, heads: int = 4, blocks: int = 2
) -> Net:
    """Speech encoder for CTC: convolutions that keep every fourth frame, then `depth` attention layers in `blocks`."""
    expect("speech-transformer", input_shape, "1, bands, frames")
    if positive("depth", depth) % positive("blocks", blocks) or positive("width", width) % positive("heads", heads):
        raise ConfigError(
            f"depth is a multiple of blocks, and width of heads; given depth={depth}, blocks={blocks}, width={width}, "
            f"heads={heads}"
        )
    channels, bands, frames = input_shape
    if channels != 1:
        raise ConfigError(f"model 'speech-transformer' reads one channel, (1, bands, frames), not {input_shape}")
    layers = [Encoder(width, heads) for _ in range(depth)]
    per = depth // blocks
    first = nn.Sequential(Frames(bands, frames, width), *layers[:per])
    others = [nn.Sequential(*layers[k : k + per]) for k in range(per, depth, per)]
    return Net(nn.Sequential(first, *others), nn.Linear(width, classes + 1))
