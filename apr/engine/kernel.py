"""Attention over pages in C (``attention.c``): no gathering, no padding, shared prefixes read once.

The same as ``apr.engine.attention`` up to rounding, where there is a CPU and a compiler.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apr.engine.attention import lazy_zeros
from apr.engine.scheduler import Chunk
from apr.models import native
from apr.models.llama import LlamaConfig
from apr.models.precision import Precision


class _Step(ctypes.Structure):
    """``step`` of ``attention.c``."""

    _fields_ = (
        *((n, ctypes.c_int32) for n in ("num_tokens", "num_chunks", "num_heads", "num_kv_heads")),
        *((name, ctypes.c_void_p) for name in ("chunks", "pages", "tokens", "tiles")),
        ("num_tiles", ctypes.c_int32),
    )


def attention_library(
    config: LlamaConfig, page_size: int, dtype: torch.dtype, precision: Precision
) -> ctypes.CDLL | None:
    """``attention.c`` for one shape of pages; None where it cannot be compiled."""
    library = native.library(
        Path(__file__).with_name("attention.c"),
        dtype,
        HEAD_DIM=config.head_dim,
        PAGE=page_size,
        COMMON=math.gcd(config.head_dim, page_size, native.WIDEST),
        STORED=precision.number,
    )
    if library is not None:
        n, p = ctypes.c_int64, ctypes.c_void_p
        library.attend_alone.argtypes = [p, p, p, n, p, n, p, n, p]
        library.plan.argtypes = [p]
        library.attend_alone.restype = library.plan.restype = None
        library.block_bytes.restype = n
    return library


def compiled_page_bytes(library: ctypes.CDLL, config: LlamaConfig) -> int:
    """Memory that one page takes over all layers."""
    return config.num_hidden_layers * config.num_key_value_heads * int(library.block_bytes())


class CompiledKV:
    """Keys and values of every layer in pages that only ``attention.c`` reads and writes."""

    def __init__(
        self, library: ctypes.CDLL, config: LlamaConfig, num_pages: int, dtype: torch.dtype
    ) -> None:
        self.library, self.dtype = library, dtype
        self.config = config
        self.num_pages = num_pages
        self.page_bytes = compiled_page_bytes(library, config)
        layers = config.num_hidden_layers
        shape = (layers, num_pages * self.page_bytes // layers)
        self.layers = lazy_zeros(shape, torch.device("cpu"), torch.uint8)
        self.function, self.advance = (
            ctypes.cast(f, ctypes.c_void_p).value or 0 for f in (library.attend, library.advance)
        )

    def order(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Sequences that begin with the same pages side by side."""
        return sorted(chunks, key=lambda c: c.sequence.pages.tobytes())

    def attend(self, chunks: Sequence[Chunk]) -> StepAttend:
        """For a step of ``chunks``, its tokens in their order."""
        return StepAttend(self, chunks)


class StepAttend(native.CompiledAttend):
    """Attention for one step of the engine."""

    def __init__(self, kv: CompiledKV, chunks: Sequence[Chunk]) -> None:
        self.kv, self.function, self.advance = kv, kv.function, kv.advance
        sequences, starts, ends = zip(*chunks, strict=True)
        tables = [sequence.pages for sequence in sequences]
        lengths = np.array(ends) - starts
        num_tokens = int(lengths.sum())
        self.chunks = np.empty((len(chunks), 3), np.int32)
        self.chunks[:, 0] = lengths.cumsum() - lengths
        self.chunks[:, 1] = starts
        widths = np.array([len(t) for t in tables])
        self.chunks[:, 2] = widths.cumsum() - widths
        self.pages = np.frombuffer(b"".join(tables), np.int32)
        self.tokens = np.empty((num_tokens, 2), np.int32)
        self.tiles = np.empty((num_tokens + 1, 2), np.int32)
        config = kv.config
        self.plan = _Step(
            num_tokens,
            len(chunks),
            config.num_attention_heads,
            config.num_key_value_heads,
            *(x.ctypes.data for x in (self.chunks, self.pages, self.tokens, self.tiles)),
        )
        self.step, self.layers = ctypes.addressof(self.plan), kv.layers
        kv.library.plan(self.step)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype)
        self.kv.library.attend_alone(
            self.step,
            self.kv.layers[layer].data_ptr(),
            q.data_ptr(),
            q.stride(0),
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            out.data_ptr(),
        )
        return out
