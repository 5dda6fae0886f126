"""What each of several workers sees of one cache of keys and values, and attention over it
(Hogwild! inference, Rodionov et al., 2504.06261).

The prompt is a block of tokens, and what each worker writes is another. A worker's view is one
text: the prompt, the others' blocks in order, its own block (the contiguous layout of the paper).
A block therefore stands elsewhere in each view, and moves whenever one before it grows. Its keys
are stored once for all views, rotated to their places within the block, and are never rotated
again: since rotary attention depends on differences of positions alone, a worker's query is rotated
on instead, for each block by as far as that block begins before the worker's own (figure 2 of the
paper). The softmax is over all blocks together.

Axis suffixes: ``_N`` token of the step, ``_G`` group of workers on one prompt, ``_R`` token of a
group, ``_B`` block of a group, ``_C`` place in a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from apr.engine.attention import PagedKV
from apr.models.llama import Llama, rotate


class Token(NamedTuple):
    """An id on its way through the network."""

    id: int
    place: int  # within its block
    slot: int  # where its key and value go
    reach_B: list[int]  # places that it sees, of each block
    shift_B: list[int]  # tokens of its view from where each block begins to where its own does


def view(block: int, num_blocks: int) -> list[int]:
    """Blocks in the order in which whoever writes ``block`` sees them; block 0 is the prompt."""
    if block == 0:
        return [0]
    return [0, *(b for b in range(1, num_blocks) if b != block), block]


def shifts(block: int, lengths: Sequence[int]) -> list[int]:
    """How many tokens before ``block`` each block begins, in the view of who writes ``block``."""
    out = [0] * len(lengths)
    distance = 0
    for b in reversed(view(block, len(lengths))[:-1]):
        distance += lengths[b]
        out[b] = distance
    return out


class SharedAttend:
    """``apr.models.llama.Attend`` for one step of several groups.

    It is given queries and keys that the network has rotated to their places within their blocks.
    """

    def __init__(
        self,
        model: Llama,
        kv: PagedKV,
        tokens_GR: Sequence[Sequence[Token]],
        pages_GB: Sequence[Sequence[int]],
    ) -> None:
        """
        Args:
            kv: of pages that hold a block each.
            tokens_GR: the step's tokens, group by group.
            pages_GB: where the blocks of each group are.
        """
        self.kv = kv
        tokens_N = [t for tokens in tokens_GR for t in tokens]
        reach_NB = self._columns([t.reach_B for t in tokens_N])
        # Blocks that nobody sees yet would be padding.
        num_blocks = 1 + int(reach_NB.amax(0).nonzero().max())
        shift_NB = self._columns([t.shift_B for t in tokens_N])[:, :num_blocks]
        self.cos, self.sin = (table[shift_NB].unsqueeze(2) for table in (model.cos, model.sin))
        self.pages_GB = self._columns(pages_GB)[:, :num_blocks]
        self.slots_N = self._tensor([t.slot for t in tokens_N])
        self.num_rows = max(map(len, tokens_GR))
        rows = [g * self.num_rows + r for g, t in enumerate(tokens_GR) for r in range(len(t))]
        self.rows_N = self._tensor(rows)
        # Rows of padding see one key, or their softmax would be of nothing.
        reach = reach_NB.new_ones(len(pages_GB) * self.num_rows, num_blocks)
        reach[self.rows_N] = reach_NB[:, :num_blocks]
        self.num_places = int(reach.max())
        place_C = torch.arange(self.num_places, device=reach.device)
        hidden = place_C >= reach.view(len(pages_GB), 1, 1, self.num_rows, num_blocks, 1)
        self.hidden_GRBC = hidden

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (N, H, d), k and v (N, KV, d) -> (N, H, d)."""
        k_pages, v_pages = self.kv.k[layer], self.kv.v[layer]
        k_pages.view(-1, k_pages.shape[-1])[self.slots_N] = k.flatten(1)
        v_pages.view(-1, v_pages.shape[-1])[self.slots_N] = v.flatten(1)
        q, k, v = self._spread(q, k.shape[1]), self._gather(k_pages, k), self._gather(v_pages, v)
        scores = torch.einsum("grbkhd,gbckd->gkhrbc", q, k) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(self.hidden_GRBC, float("-inf"))
        weights = scores.flatten(-2).softmax(-1).view_as(scores)
        out = torch.einsum("gkhrbc,gbckd->grkhd", weights, v)
        return out.flatten(2, 3).flatten(0, 1)[self.rows_N]

    def _spread(self, q: Tensor, num_kv: int) -> Tensor:
        """(N, H, d) -> (G, R, B, KV, H / KV, d): a query for each block, rotated to meet it."""
        q = rotate(q.unsqueeze(1), self.cos.to(q.dtype), self.sin.to(q.dtype))
        (_, num_blocks, _, d), num_groups = q.shape, len(self.pages_GB)
        rows = q.new_zeros(num_groups * self.num_rows, *q.shape[1:])
        rows[self.rows_N] = q
        return rows.view(num_groups, self.num_rows, num_blocks, num_kv, -1, d)

    def _gather(self, pages: Tensor, new: Tensor) -> Tensor:
        """Pages of keys or values, of which (N, KV, d) are new -> (G, B, C, KV, d)."""
        found = pages[:, : self.num_places].index_select(0, self.pages_GB.flatten())
        return found.view(*self.pages_GB.shape, self.num_places, *new.shape[1:])

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.kv.k.device)

    def _columns(self, lists: Sequence[Sequence[int]]) -> Tensor:
        """Lists as rows, filled up with 0."""
        width = max(map(len, lists))
        filled = [[*values, *[0] * (width - len(values))] for values in lists]
        return torch.tensor(filled, device=self.kv.k.device)
