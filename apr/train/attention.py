"""Causal attention for training: rows of tokens with several sequences packed in each.

Neighbours in a row never see each other. ``causal_reference`` is the slow, literal version that
every other path (packed here, paged in the engine) is tested against.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from apr.models.llama import Attend
from apr.train.causal import causal, causal_library


class Kernel(StrEnum):
    """What computes attention over packed rows."""

    PADDED = "padded"
    """Sequences of like length, padded to one dense call each. Anywhere; shapes change with every
    batch, so it is not for compiling."""
    C = "c"
    """Over sequences as they lie, in C. On a CPU with a compiler; elsewhere PADDED."""
    VARLEN = "varlen"
    """Flash attention over sequences laid end to end. CUDA and half precision only."""
    FLEX = "flex"
    """FlexAttention with a block mask. To be compiled; on a CPU without gradients."""


def kernel_of(device: torch.device) -> Kernel:
    """The kernel that ``device`` trains with."""
    return Kernel.VARLEN if device.type == "cuda" else Kernel.C


def packed_attention(
    segments_BT: Tensor, device: torch.device | None = None, kernel: Kernel | None = None
) -> Attend:
    """Attention within segments of B rows of T tokens.

    Args:
        segments_BT: number of the sequence each token belongs to, ascending in a row; -1 for
            padding, whose output is finite and means nothing. On the host, where it is laid out:
            reading it from a device would make the host wait.
        device: where queries and keys are; that of ``segments_BT`` by default.
        kernel: by default that of ``kernel_of``.

    Returns:
        an ``Attend`` for the B*T tokens in row order.
    """
    device = device or segments_BT.device
    match kernel or kernel_of(device):
        case Kernel.PADDED:
            return _Padded(segments_BT, device)
        case Kernel.C:
            return _InC(segments_BT, device)
        case Kernel.VARLEN:
            return _Varlen(segments_BT, device)
        case Kernel.FLEX:
            return _Flex(segments_BT, device)


class _Varlen:
    """Sequences end to end, told apart by where each begins.

    Shapes and sizes that a compiled network is specialised to are rounded up to powers of two, so
    that batches of one kind share one program.
    """

    def __init__(self, segments_BT: Tensor, device: torch.device) -> None:
        # Imported where it is used: with torch's compiler behind it, that takes seconds.
        from torch.nn.attention.varlen import varlen_attn

        # What says "causal" has changed its name between releases.
        named = "window_size" in inspect.signature(varlen_attn).parameters
        causal: dict[str, Any] = {"window_size": (-1, 0)} if named else {"is_causal": True}
        self.flash: Callable[..., Any] = partial(varlen_attn, **causal)
        starts, lengths, real = _sequences(segments_BT)
        self.longest = _power_of_two(max(lengths[real].tolist(), default=1))
        bounds = [starts[real]]
        # Padding is cut into pieces as long as sequences are, since its output must be finite.
        for start, length in zip(starts[~real].tolist(), lengths[~real].tolist(), strict=True):
            bounds.append(torch.arange(start, start + length, self.longest))
        starts_S = torch.cat(bounds).sort().values
        end = segments_BT.numel()
        # Sequences of no tokens stand at the end.
        bounds_S = torch.full((_power_of_two(len(starts_S)) + 1,), end, dtype=torch.int32)
        bounds_S[: len(starts_S)] = starts_S
        self.bounds_S = _place(bounds_S, device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        repeat = q.shape[1] // k.shape[1]
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        # Rotation leaves queries and keys in float32 where the network computes in less.
        q, k, v = (x.to(v.dtype).contiguous() for x in (q, k, v))
        bounds, longest = self.bounds_S, self.longest
        return cast(Tensor, self.flash(q, k, v, bounds, bounds, longest, longest))


class _Flex:
    """Rows as they are; blocks of the mask that nothing is seen through are passed over."""

    def __init__(self, segments_BT: Tensor, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self.shape = segments_BT.shape
        segments_BT = _place(segments_BT, device)

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (segments_BT[b, q] == segments_BT[b, k])

        rows, length = self.shape
        mask = create_block_mask(visible, rows, None, length, length, device)
        self.flex = partial(flex_attention, block_mask=mask)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        q, k, v = (x.to(v.dtype).view(*self.shape, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out = self.flex(q, k, v, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1)


class _Padded:
    """Sequences of like length (within a factor of two) padded to one dense causal call.

    Padding comes last, where causality hides it, so no mask is needed and none is ever built: work
    grows with the lengths of sequences, not with that of a row.

    Half precision is computed in float32 on a CPU, where it takes half as long again by itself.
    """

    def __init__(self, segments_BT: Tensor, device: torch.device) -> None:
        self.groups = [_Group(s, n, device) for s, n in _by_length(segments_BT)]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = v.dtype
        slow = v.device.type == "cpu" and given in (torch.bfloat16, torch.float16)
        q, k, v = (x.to(torch.float32 if slow else given) for x in (q, k, v))
        out = torch.zeros_like(q)
        with torch.autocast(v.device.type, enabled=False):
            for group in self.groups:
                out = out.index_copy(0, group.tokens, group.attend(q, k, v))
        return out.to(given)


class _InC:
    """Sequences where they lie in their rows: nothing is gathered or padded."""

    def __init__(self, segments_BT: Tensor, device: torch.device) -> None:
        starts, lengths, real = _sequences(segments_BT)
        self.bounds_S2 = torch.stack([starts, starts + lengths], dim=1)[real].int()
        self.padded = cache(partial(_Padded, segments_BT, device))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        full = torch.float64 if v.dtype == torch.float64 else torch.float32
        compiled = causal_library(v.shape[-1], full) if v.device.type == "cpu" else None
        if compiled is None:
            return self.padded()(layer, q, k, v)
        out = causal(compiled, q.to(full), k.to(full), v.to(full), self.bounds_S2)
        return out.to(v.dtype)


class _Group:
    """S sequences padded to the longest of them, L tokens."""

    def __init__(self, starts_S: Tensor, lengths_S: Tensor, device: torch.device) -> None:
        within_L = torch.arange(int(lengths_S.max()))
        real_SL = within_L < lengths_S[:, None]
        places_SL = torch.where(real_SL, starts_S[:, None] + within_L, starts_S[:, None])
        real = real_SL.flatten().nonzero()[:, 0]
        self.tokens = _place(places_SL.flatten()[real], device)
        self.places, self.real = _place(places_SL, device), _place(real, device)

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
    starts, lengths, real = _sequences(segments_BT)
    starts, lengths = starts[real], lengths[real]
    size = torch.log2(lengths.float()).floor()
    return [(starts[size == s], lengths[size == s]) for s in sorted(set(size.tolist()))]


def _sequences(segments_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Start (in row order) and length of each run of tokens, and whether it is no padding."""
    rows, length = segments_BT.shape
    first_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    first_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts = first_BT.flatten().nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([rows * length]))
    return starts, lengths, segments_BT.flatten()[starts] >= 0


def _power_of_two(n: int) -> int:
    """The first that is not below ``n``."""
    return 1 << (n - 1).bit_length()


def _place(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``, without making the host wait for it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def causal_reference(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sequence of N tokens, written out: softmax(q k^T / sqrt(d)) v under the causal mask."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeat, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[0], q.shape[0], dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)
