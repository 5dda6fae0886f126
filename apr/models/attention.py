"""Causal attention for training: rows of tokens with several sequences packed in each.

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

    Sequences of like length (within a factor of two) are padded to one dense causal call. Padding
    comes last, where causality hides it, so no mask is needed and none is ever built: work grows
    with the lengths of sequences, not with that of a row.

    Args:
        segments_BT: number of the sequence each token belongs to, ascending in a row; -1 for
            padding, whose output is 0.

    Returns:
        an ``Attend`` for the B*T tokens in row order.
    """
    groups = [_Group(starts, lengths) for starts, lengths in _by_length(segments_BT)]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for group in groups:
            out = out.index_copy(0, group.tokens, group.attend(q, k, v))
        return out

    return attend


class _Group:
    """S sequences padded to the longest of them, L tokens."""

    def __init__(self, starts_S: Tensor, lengths_S: Tensor) -> None:
        within_L = torch.arange(int(lengths_S.max()), device=starts_S.device)
        real_SL = within_L < lengths_S[:, None]
        self.places = torch.where(real_SL, starts_S[:, None] + within_L, starts_S[:, None])
        self.real = real_SL.flatten().nonzero()[:, 0]
        self.tokens = self.places.flatten()[self.real]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Outputs of the group's tokens, (tokens, H, d)."""
        grouped = q.shape[1] != k.shape[1]
        q, k, v = self._pad(q), self._pad(k), self._pad(v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.real)

    def _pad(self, x: Tensor) -> Tensor:
        """(N, H, d) -> (S, H, L, d)."""
        rows = x.index_select(0, self.places.flatten())
        return rows.view(*self.places.shape, *x.shape[1:]).transpose(1, 2)


def _by_length(segments_BT: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Starts (in row order) and lengths of the sequences, those of like length together."""
    rows, length = segments_BT.shape
    first_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    first_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts = first_BT.flatten().nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([rows * length]))
    real = segments_BT.flatten()[starts] >= 0
    starts, lengths = starts[real], lengths[real]
    size = torch.log2(lengths.float()).floor()
    return [(starts[size == s], lengths[size == s]) for s in sorted(set(size.tolist()))]


def causal_reference(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sequence of N tokens, written out: softmax(q k^T / sqrt(d)) v under the causal mask."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeat, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[0], q.shape[0], dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)
