"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn
from torch.optim import Optimizer


class Kind(StrEnum):
    """Which update the weight matrices get; embeddings, head and norms always get AdamW."""

    ADAMW = "adamw"
    MUON = "muon"
    """Orthogonalised momentum (Jordan et al., 2024), by ``torch.optim.Muon``."""


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """Optimiser and schedule."""

    kind: Kind = Kind.MUON
    lr: float = 3e-3
    """Peak rate of AdamW."""
    matrix_lr: float = 0.02
    """Peak rate of Muon, for the weight matrices."""
    final: float = 0.0
    """Rate at the end, as a share of the peak."""
    warmup: int = 100
    """Steps of linear warm-up."""
    decay: float = 1.0
    """Share of the run over which the rate falls (1: a cosine over all of it)."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """Largest norm of the gradient."""


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[Optimizer]:
    """One optimiser, or two with Muon; each parameter is in exactly one."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        hidden = p.dim() == 2 and "embed" not in name and "lm_head" not in name
        (matrices if hidden and config.kind is Kind.MUON else rest).append(p)
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).is_cuda or None
    optimizers: list[Optimizer] = [
        torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def rate(step: int, steps: int, config: OptimConfig) -> float:
    """Share of the peak rate at ``step`` of ``steps``: linear warm-up, flat, cosine to the end."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    start = max(config.warmup, steps - config.decay * steps)
    progress = min(1.0, max(0.0, step - start) / max(1.0, steps - start))
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizers: list[Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
