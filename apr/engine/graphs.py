"""Decoding as CUDA graphs: one launch for a step, in place of some hundred.

The sequences of a step that go on by one token are padded to a power of two of rows and of pages,
and for each such shape the network is captured once and replayed ever after. Rows that pad write to
a page that nobody reads. Away from CUDA the same function runs uncaptured: for tests.

Axis suffixes: ``_B`` row, ``_P`` page of a row, ``_V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from apr.engine.attention import PagedAttend, PagedKV
from apr.engine.scheduler import Chunk
from apr.models.llama import Llama


class _Shape(NamedTuple):
    """What a graph is captured for."""

    rows: int
    pages: int


class _Buffers(NamedTuple):
    """Where a graph reads its step from, and leaves what comes of it."""

    ids_B: Tensor
    positions_B: Tensor
    pages_BP: Tensor
    logits_BV: Tensor


class DecodeGraphs:
    """Steps of one token for each sequence."""

    def __init__(self, model: Llama, kv: PagedKV) -> None:
        self.model, self.kv = model, kv
        self.device = model.embed_tokens.weight.device
        self._graphs: dict[_Shape, tuple[_Buffers, torch.cuda.CUDAGraph | None]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """(len(chunks), V) of ``chunks``, each of one token; overwritten by the next step."""
        shape = _Shape(
            _power_of_two(len(chunks)), _power_of_two(max(len(c.sequence.pages) for c in chunks))
        )
        ids_B, positions_B = np.zeros(shape.rows, np.int64), np.zeros(shape.rows, np.int64)
        pages_BP = np.full(shape, self.kv.unread_page)
        for row, (sequence, start, _) in enumerate(chunks):
            ids_B[row], positions_B[row] = sequence.ids[start], start
            pages_BP[row, : len(sequence.pages)] = sequence.pages
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape)
        buffers, graph = self._graphs[shape]
        for buffer, values in zip(buffers, (ids_B, positions_B, pages_BP), strict=False):
            buffer.copy_(torch.from_numpy(values))
        if graph is None:
            self._run(buffers)
        else:
            graph.replay()
        return buffers.logits_BV[: len(chunks)]

    def _run(self, buffers: _Buffers) -> None:
        attend = PagedAttend.of_rows(self.kv, buffers.positions_B, buffers.pages_BP)
        hidden_BD = self.model(buffers.ids_B, buffers.positions_B, attend)
        buffers.logits_BV.copy_(self.model.logits(hidden_BD))

    def _capture(self, shape: _Shape) -> tuple[_Buffers, torch.cuda.CUDAGraph | None]:
        ids_B = torch.zeros(shape.rows, dtype=torch.int64, device=self.device)
        pages_BP = torch.full(shape, self.kv.unread_page, device=self.device)
        size = (shape.rows, self.model.config.vocab_size)
        logits_BV = torch.empty(size, dtype=self.kv.k.dtype, device=self.device)
        buffers = _Buffers(ids_B, ids_B.clone(), pages_BP, logits_BV)
        if self._pool is None:
            return buffers, None
        # What a library readies at its first call may not be captured.
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            self._run(buffers)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._run(buffers)
        return buffers, graph


def _power_of_two(n: int) -> int:
    """The least that is not below ``n``."""
    return 1 << (n - 1).bit_length()
