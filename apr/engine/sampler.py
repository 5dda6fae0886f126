"""From logits to sampled ids, a whole batch at once.

A row's id depends on its own logits, settings and random number alone, never on its neighbours.

Axis suffixes: ``_B`` sequence, ``_V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from apr.types import Sampling


class Drawn(NamedTuple):
    """One id for each sequence."""

    ids: list[int]
    logprobs: list[float]  # at temperature 1, before any filter


def draw(logits_BV: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> Drawn:
    """Sample one id for each row.

    Args:
        uniforms: a random number in [0, 1) for each row; greedy rows ignore theirs.
    """
    if logits_BV.dtype in (torch.bfloat16, torch.float16):
        logits_BV = logits_BV.float()
    ids_B = logits_BV.argmax(-1)
    hot = [i for i, s in enumerate(samplings) if s.temperature > 0]
    if hot:
        rows = torch.tensor(hot, device=logits_BV.device)
        chosen = [samplings[i] for i in hot]
        ids_B[rows] = _draw_hot(logits_BV[rows], chosen, [uniforms[i] for i in hot])
    logprobs_B = logits_BV.log_softmax(-1).gather(-1, ids_B[:, None])[:, 0]
    return Drawn(ids_B.tolist(), logprobs_B.tolist())


def _draw_hot(
    logits_BV: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]
) -> Tensor:
    """Inverse of the cumulative distribution, in float64 so that no id is lost to rounding."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=logits_BV.device, dtype=torch.float64)[:, None]

    probs_BV = (logits_BV.double() / column([s.temperature for s in samplings])).softmax(-1)
    if any(s.top_k or s.top_p < 1 for s in samplings):
        everything = logits_BV.shape[-1]
        top_k = column([s.top_k or everything for s in samplings])
        probs_BV = _keep_likeliest(probs_BV, top_k, column([s.top_p for s in samplings]))
    cdf_BV = probs_BV.cumsum(-1)
    # right=True passes over ids without mass, which do not raise the sum.
    ids_B1 = torch.searchsorted(cdf_BV, column(uniforms) * cdf_BV[:, -1:], right=True)
    return ids_B1[:, 0].clamp_(max=logits_BV.shape[-1] - 1)


def _keep_likeliest(probs_BV: Tensor, top_k_B1: Tensor, top_p_B1: Tensor) -> Tensor:
    """Zero but for the ``top_k`` likeliest ids, and of those the fewest that hold ``top_p``."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(probs_BV.shape[-1], device=probs_BV.device)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = (rank_V < top_k_B1) & (before_BV < top_p_B1)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV * kept_BV)
