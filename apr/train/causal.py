"""Causal attention over sequences laid end to end, and its gradient, in C (``causal.c``).

For training on a CPU: what torch has there pads sequences to one length and takes most of a step in
the backward pass.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from apr.models import native


class _Pass(ctypes.Structure):
    """``pass`` of ``causal.c``."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("num_sequences", "num_heads", "num_kv_heads")),
        *((name, ctypes.c_void_p) for name in ("bounds", "q", "k", "v")),
        *((n, ctypes.c_int64) for n in ("q_stride", "k_stride", "v_stride")),
        *((name, ctypes.c_void_p) for name in ("out", "sums")),
    )


def causal_library(head_dim: int, dtype: torch.dtype) -> ctypes.CDLL | None:
    """``causal.c`` for heads of one width; None where it cannot be compiled."""
    source = Path(__file__).with_name("causal.c")
    common = math.gcd(head_dim, native.WIDEST)
    found = native.library(source, dtype, HEAD_DIM=head_dim, COMMON=common)
    if found is not None:
        found.forward.argtypes = [ctypes.c_void_p]
        found.backward.argtypes = [ctypes.c_void_p] * 5
        found.forward.restype = found.backward.restype = None
    return found


def causal(compiled: ctypes.CDLL, q: Tensor, k: Tensor, v: Tensor, bounds_S2: Tensor) -> Tensor:
    """Attention of each token to those before it in its sequence; 0 for tokens of none.

    Args:
        compiled: for the width of a head and the type of numbers of ``q``, ``k`` and ``v``.
        q: (N, H, d) on the CPU; ``k`` and ``v`` (N, KV, d).
        bounds_S2: int32; of each sequence its first token, and the one behind its last.

    Returns:
        (N, H, d)
    """
    return cast(Tensor, _Causal.apply(compiled, q, k, v, bounds_S2))  # type: ignore[no-untyped-call]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compiled: ctypes.CDLL, q: Tensor, k: Tensor, v: Tensor, bounds_S2: Tensor
    ) -> Tensor:
        q, k, v = map(_whole_heads, (q, k, v))
        # Tokens of no sequence stay zero.
        out, sums = torch.zeros(q.shape, dtype=q.dtype), torch.empty(q.shape[:2], dtype=q.dtype)
        compiled.forward(ctypes.byref(_pass(q, k, v, bounds_S2, out, sums)))
        ctx.compiled = compiled
        ctx.save_for_backward(q, k, v, bounds_S2, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        grad = grads[0].contiguous()
        slopes = [torch.zeros(x.shape, dtype=x.dtype) for x in given[:3]]
        pointers = (x.data_ptr() for x in (grad, *slopes))
        ctx.compiled.backward(ctypes.byref(_pass(*given)), *pointers)
        return (None, *slopes, None)


def _whole_heads(x: Tensor) -> Tensor:
    """``x`` with the numbers of a token side by side; tokens may lie apart."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _pass(q: Tensor, k: Tensor, v: Tensor, bounds_S2: Tensor, out: Tensor, sums: Tensor) -> _Pass:
    return _Pass(
        len(bounds_S2),
        q.shape[1],
        k.shape[1],
        *(x.data_ptr() for x in (bounds_S2, q, k, v)),
        *(x.stride(0) for x in (q, k, v)),
        out.data_ptr(),
        sums.data_ptr(),
    )
