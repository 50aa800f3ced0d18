"""Networks on tokens (n, tokens) of whole numbers: recurrent and attention.

The transformers are written out with `scaled_dot_product_attention` (no fused recurrent or attention module):
every weight meets its input in a plain operator, so that many clients can be trained as one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.errors import ConfigError

from .net import Net, expect, positive
from .registry import register

Shape = tuple[int, ...]


class Recurrent(nn.Module):
    """Embedding, recurrent layers: (n, tokens) to (n, tokens, width); `last`: only the last, (n, width)."""

    def __init__(
        self, cell: type[nn.GRU] | type[nn.LSTM], vocab: int, embed: int, width: int, depth: int, last: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, positive("embed", embed))
        self.layers = cell(embed, positive("width", width), positive("depth", depth), batch_first=True)
        self.last = last

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.layers(self.embedding(tokens))
        return hidden[:, -1] if self.last else hidden


@register("char-gru")
def char_gru(
    input_shape: Shape, classes: int, *, width: int = 128, depth: int = 1, embed: int = 8, last: bool = False
) -> Net:
    """Next-character model with GRU layers; logits per position, with `last=true` after the last one only."""
    expect("char-gru", input_shape, "tokens")
    return Net(Recurrent(nn.GRU, classes, embed, width, depth, last), nn.Linear(width, classes))


@register("char-lstm")
def char_lstm(
    input_shape: Shape, classes: int, *, width: int = 256, depth: int = 2, embed: int = 8, last: bool = False
) -> Net:
    """LEAF's Shakespeare model: two LSTM layers of 256; 819,920 parameters on 80 characters.

    Logits per position; LEAF's own task, the character after the text, is `char-lstm:last=true`.
    """
    expect("char-lstm", input_shape, "tokens")
    return Net(Recurrent(nn.LSTM, classes, embed, width, depth, last), nn.Linear(width, classes))


class Attention(nn.Module):
    """Multi-head self-attention (n, tokens, width) -> the same."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = heads
        self.causal = causal

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Token and position embeddings and `depth` blocks: (n, tokens) -> (n, tokens, width).

    Texts may be shorter than `tokens`, the longest the positions were made for. The token `pad` (None: no
    such token) is not attended to; with `mean` the features are the mean over the others, (n, width).
    """

    def __init__(
        self,
        vocab: int,
        tokens: int,
        width: int,
        depth: int,
        heads: int,
        *,
        causal: bool,
        pad: int | None,
        mean: bool,
    ) -> None:
        super().__init__()
        if positive("width", width) % positive("heads", heads):
            raise ConfigError(f"width must be a multiple of heads; given width={width}, heads={heads}")
        self.embedding = nn.Embedding(vocab, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(positive("depth", depth)))
        self.norm = nn.LayerNorm(width)
        self.pad = pad
        self.mean = mean
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length, longest = tokens.shape[1], self.position.shape[0]
        if length > longest:
            raise ConfigError(f"texts of {length} tokens, but this network has {longest} positions")
        real = None if self.pad is None else (tokens != self.pad).to(self.embedding.weight.dtype)
        # Added to the scores, large and finite: a text of padding alone must not become NaN.
        mask = None if real is None else (real - 1)[:, None, None, :] * 1e4
        x = self.embedding(tokens) + self.position[:length]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if not self.mean:
            return x
        if real is None:
            return x.mean(1)
        return (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)


@register("char-transformer")
def char_transformer(input_shape: Shape, classes: int, *, width: int = 64, depth: int = 2, heads: int = 4) -> Net:
    """Next-character model: a small decoder with causal attention; logits per position."""
    expect("char-transformer", input_shape, "tokens")
    body = Transformer(classes, input_shape[0], width, depth, heads, causal=True, pad=None, mean=False)
    return Net(body, nn.Linear(width, classes))


@register("text-transformer")
def text_transformer(
    input_shape: Shape,
    classes: int,
    *,
    vocab: int = 256,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    pad: int = 0,
) -> Net:
    """Text classifier: a small encoder averaged over its tokens (by default bytes), `pad` aside."""
    expect("text-transformer", input_shape, "tokens")
    vocab = positive("vocab", vocab)
    body = Transformer(vocab, input_shape[0], width, depth, heads, causal=False, pad=pad, mean=True)
    return Net(body, nn.Linear(width, classes))
