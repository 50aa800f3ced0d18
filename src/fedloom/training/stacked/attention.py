"""`nn.MultiheadAttention` (and so `nn.TransformerEncoderLayer`): taken apart into dense layers and plain attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fold import NotStackable, folded
from .perclient import rule


@rule(F.multi_head_attention_forward)
def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Queries `(length, k*B, width)`, keys and values likewise; the only operator whose batch is its second axis."""
    unusual = (bias_k, bias_v, static_k, static_v)
    x, y, z = (t.transpose(0, 1) for t in (query, key, value))
    if any(u is not None for u in unusual) or add_zero_attn or query.dim() != 3 or not folded(x):
        raise NotStackable("an unbatched input, or a bias of keys and values", "nn.MultiheadAttention")
    if use_separate_proj_weight:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (F.linear(t, w, b) for t, w, b in zip((x, y, z), weights, biases))
    elif query is key and key is value:
        q, k, v = F.linear(x, in_proj_weight, in_proj_bias).chunk(3, -1)
    else:
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (F.linear(t, w, b) for t, w, b in zip((x, y, z), in_proj_weight.chunk(3), biases))
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    mask = _mask(attn_mask, key_padding_mask, len(x), num_heads, q.dtype)
    dropout = dropout_p if training else 0.0
    weights = None
    if need_weights:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = F.linear(mixed.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)
    return out.transpose(0, 1), weights


def _mask(shared: Tensor | None, padding: Tensor | None, n: int, heads: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores `(n, heads, L, S)`."""

    def added(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(dtype)
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))

    out = None if shared is None else added(shared)
    if out is not None and out.dim() == 3:
        out = out.view(n, heads, *out.shape[1:])
    if padding is not None:
        own = added(padding)[:, None, None, :]
        out = own if out is None else out + own
    return out
