"""Causal attention for training: one row or many, with several sequences packed in each.

Neighbours in a row never see each other. ``causal_reference`` is the slow, literal version that
every other path (packed here, paged in the engine) is tested against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apr.models.llama import Attend


def packed_attention(segments_BT: Tensor) -> Attend:
    """Attention within segments of B rows of T tokens.

    Args:
        segments_BT: number of the sequence each token belongs to, ascending in a row.

    Returns:
        an ``Attend`` for the B*T tokens in row order.
    """
    rows, length = segments_BT.shape
    same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments_BT.device).tril()
    mask = same & causal

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.view(rows, length, -1, t.shape[-1]).transpose(1, 2) for t in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return out.transpose(1, 2).reshape(rows * length, -1, q.shape[-1])

    return attend


def causal_reference(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sequence of N tokens, written out: softmax(q k^T / sqrt(d)) v under the causal mask."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeat, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[0], q.shape[0], dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)
