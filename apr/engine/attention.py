"""Attention over pages: new keys and values go to their pages, queries meet whole prefixes.

Sequences of a step are grouped by how many queries and how many pages they have, both within a
factor of two, and each group is padded to one dense call: padding at most doubles the work, and a
step makes few calls however many sequences it has.

Axis suffixes: ``_N`` token of the step, ``_B`` sequence of a group, ``_Q`` query of a sequence,
``_P`` page of a sequence, ``_K`` key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from apr.engine.scheduler import Chunk
from apr.models.llama import LlamaConfig
from apr.models.precision import Precision

# cuDNN plans for each new shape, some tenths of a second long, and nearly every step has a new one.
_ON_CUDA = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class PagedKV:
    """Keys and values of every layer, in pages.

    It rounds them to their precision, and takes the same memory at each; ``CompiledKV`` takes less.
    """

    def __init__(
        self,
        config: LlamaConfig,
        num_pages: int,
        page_size: int,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = Precision.MODEL,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.precision = precision
        self.unread_page = num_pages
        """One more than are given out: rows that only pad a step write to it."""
        width = config.num_key_value_heads * config.head_dim
        shape = (config.num_hidden_layers, num_pages + 1, page_size, width)
        # Zeros, not whatever is there: a masked NaN is still a NaN.
        self.k = lazy_zeros(shape, device, dtype)
        self.v = lazy_zeros(shape, device, dtype)

    def order(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Those of one group side by side."""
        return sorted(chunks, key=lambda c: _group_key(c, self.page_size))

    def attend(self, chunks: Sequence[Chunk]) -> PagedAttend:
        """For a step of ``chunks``, which are in order."""
        return PagedAttend.of_chunks(self, chunks)


def lazy_zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, on a CPU such as take up memory only where they are written to."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    # By way of numpy, since torch writes its zeros at once; they begin where a vector may.
    raw = np.zeros(math.prod(shape) * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : start + raw.size - 64]).view(dtype).view(shape)


def page_bytes(config: LlamaConfig, page_size: int, dtype: torch.dtype) -> int:
    """Memory that one page takes over all layers, keys and values, in a ``PagedKV``."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * page_size * width * dtype.itemsize


class PagedAttend:
    """``apr.models.llama.Attend`` for one step of the engine."""

    def __init__(self, kv: PagedKV, slots_N: Tensor, groups: list[_Group]) -> None:
        """
        Args:
            slots_N: where the keys and values of each token go.
            groups: all tokens, in order.
        """
        self.kv, self.slots_N, self.groups = kv, slots_N, groups

    @classmethod
    def of_chunks(cls, kv: PagedKV, chunks: Sequence[Chunk]) -> PagedAttend:
        """For ``chunks``, which are in order."""
        size, device = kv.page_size, kv.k.device
        slots = [
            c.sequence.pages[position // size] * size + position % size
            for c in chunks
            for position in range(c.start, c.end)
        ]
        groups: list[_Group] = []
        for _, members in groupby(chunks, lambda c: _group_key(c, size)):
            groups.append(_group(list(members), groups[-1].end if groups else 0, size, device))
        return cls(kv, torch.tensor(slots, device=device), groups)

    @classmethod
    def of_rows(cls, kv: PagedKV, positions_B: Tensor, pages_BP: Tensor) -> PagedAttend:
        """For a token of each of B sequences; nothing here waits for the device."""
        size = kv.page_size
        pages_B = pages_BP.gather(1, (positions_B // size)[:, None])[:, 0]
        group = _Group(0, positions_B[:, None], pages_BP, size)
        return cls(kv, pages_B * size + positions_B % size, [group])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k_pages, v_pages, rounded = self.kv.k[layer], self.kv.v[layer], self.kv.precision.rounded
        k_pages.view(-1, k_pages.shape[-1])[self.slots_N] = rounded(k).flatten(1)
        v_pages.view(-1, v_pages.shape[-1])[self.slots_N] = rounded(v).flatten(1)
        outs = [group.attend(q, k_pages, v_pages) for group in self.groups]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def _group_key(chunk: Chunk, page_size: int) -> tuple[int, int]:
    num_pages = -(-chunk.end // page_size)
    return (chunk.end - chunk.start).bit_length(), num_pages.bit_length()


def _group(chunks: Sequence[Chunk], start: int, size: int, device: torch.device) -> _Group:
    """``chunks``, which begin at token ``start`` of the step, padded to the longest."""
    lengths = [c.end - c.start for c in chunks]
    num_pages = -(-max(c.end for c in chunks) // size)
    table = [
        [*c.sequence.pages[:num_pages], *[0] * (num_pages - len(c.sequence.pages))] for c in chunks
    ]
    first_B = torch.tensor([c.start for c in chunks], device=device)
    places = None
    if min(lengths) < max(lengths):
        places = [b * max(lengths) + i for b, n in enumerate(lengths) for i in range(n)]
    return _Group(
        start,
        first_B[:, None] + torch.arange(max(lengths), device=device),
        torch.tensor(table, device=device),
        size,
        None if places is None else torch.tensor(places, device=device),
    )


class _Group:
    """Sequences padded to one dense call."""

    def __init__(
        self,
        start: int,
        query_BQ: Tensor,
        pages_BP: Tensor,
        page_size: int,
        places: Tensor | None = None,
    ) -> None:
        """
        Args:
            start: number of the group's first token in the step.
            query_BQ: position of each query.
            places: where each token stands in the padded (B, Q); None where nothing is padded.
        """
        self.start, self.places = start, places
        self.end = start + (query_BQ.numel() if places is None else len(places))
        self.num_sequences, self.num_queries = query_BQ.shape
        self.pages_BP = pages_BP.flatten()
        num_keys = pages_BP.shape[1] * page_size
        self.mask_BQK = torch.arange(num_keys, device=query_BQ.device) <= query_BQ[..., None]

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor) -> Tensor:
        """Queries of the whole step (N, H, d) -> outputs of this group (tokens, H, d)."""
        _, num_heads, d = q.shape
        q = self._pad(q[self.start : self.end]).view(self.num_sequences, -1, num_heads, d)
        k = self._gather(k_pages, d)
        v = self._gather(v_pages, d)
        with sdpa_kernel(_ON_CUDA) if q.is_cuda else nullcontext():
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                k,
                v,
                attn_mask=self.mask_BQK[:, None],
                enable_gqa=k.shape[1] != num_heads,
            )
        out = out.transpose(1, 2).reshape(-1, num_heads, d)
        return out if self.places is None else out[self.places]

    def _pad(self, q: Tensor) -> Tensor:
        if self.places is None:
            return q
        padded = q.new_zeros(self.num_sequences * self.num_queries, *q.shape[1:])
        padded[self.places] = q
        return padded

    def _gather(self, pages: Tensor, d: int) -> Tensor:
        """One layer's pages of keys or values -> (B, KV, K, d)."""
        _, size, width = pages.shape
        rows = pages.view(-1, size * width).index_select(0, self.pages_BP)
        return rows.view(self.num_sequences, -1, width // d, d).transpose(1, 2)
