"""Flash attention over sequences of any length, as torch's operator on CUDA does it, on a CPU.

The operator exists for CUDA alone. With this in its place all that stands around it can be tested:
what it is given, tracing by the compiler, the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

from apr.train.attention import causal_reference


def install() -> None:
    """Give the operator and its backward pass a kernel for the CPU."""
    varlen._varlen_attn.register_kernel("cpu", _forward)
    varlen._varlen_attn_backward.register_kernel("cpu", _backward)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, bounds_k: Tensor, longest: int, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    assert rest[:2] == (longest, True), "causal, and as many keys as queries"
    assert bounds.dtype == torch.int32, "the only type that the kernels take"
    assert torch.equal(bounds, bounds_k)
    assert all(x.is_contiguous() for x in (q, k, v))
    assert q.shape == k.shape == v.shape
    assert q.dtype == k.dtype == v.dtype
    out = _each(bounds, longest, lambda s: causal_reference(0, q[s], k[s], v[s]), q)
    return out, q.new_zeros(q.shape[1], len(q)).float(), torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    # By hand: nothing that an operator does is recorded for a gradient.
    bounds, longest = rest[2], rest[4]

    def each(n: int) -> Tensor:
        return _each(bounds, longest, lambda s: _gradients(grad[s], q[s], k[s], v[s])[n], q)

    return each(0), each(1), each(2)


def _gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one sequence."""
    scale = q.shape[-1] ** -0.5
    hidden = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    d_weights = torch.einsum("qhd,khd->hqk", grad, v)
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True)) * scale
    return (
        torch.einsum("hqk,khd->qhd", d_scores, k),
        torch.einsum("hqk,qhd->khd", d_scores, q),
        torch.einsum("hqk,qhd->khd", weights, grad),
    )


def _each(bounds: Tensor, longest: int, work: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    # What the kernel would leave unwritten is NaN here.
    out = torch.full_like(like, float("nan"))
    for start, end in pairwise(bounds.tolist()):
        if start < end:
            out[start : min(end, start + longest)] = work(slice(start, end))[:longest]
    return out
