"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apr.config import check_least
from apr.errors import ConfigError


class Kind(StrEnum):
    """Which update the weight matrices get; embeddings, head and norms always get AdamW."""

    ADAMW = "adamw"
    MUON = "muon"
    """Orthogonalised momentum (Jordan et al., 2024), as ``torch.optim.Muon`` has it."""


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

    def __post_init__(self) -> None:
        check_least(
            0,
            lr=self.lr,
            matrix_lr=self.matrix_lr,
            final=self.final,
            warmup=self.warmup,
            decay=self.decay,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}: give two numbers from 0 to below 1")


class StackedMuon(torch.optim.Muon):
    """Muon that works on all matrices of one shape at the same time.

    The update of ``torch.optim.Muon`` up to rounding, with as many launches for a stack of layers
    as that has for one: on a GPU a network this small spends its time launching. On a CPU it is
    computed in float32, since many emulate the bfloat16 of that, forty times as slowly. The state
    is the same, so a run may go on with either.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for (height, width), matrices in by_shape.items():
                updates = torch.stack(self._momentum(matrices, group["momentum"]))
                updates = _orthogonal(updates, group["ns_coefficients"], group["ns_steps"])
                rate = group["lr"] * math.sqrt(max(1, height / width))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(updates.to(matrices[0].dtype)), alpha=-rate)

    def _momentum(self, matrices: Sequence[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov's, after this step's gradients."""
        gradients, buffers = [], []
        for p in matrices:
            assert p.grad is not None
            gradients.append(p.grad)
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(state["momentum_buffer"])
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, buffers, momentum))


def _orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], num_steps: int
) -> Tensor:
    """Singular values of each of (S, height, width) brought near to 1, by Newton and Schulz."""
    a, b, c = coefficients
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
    on_cuda = next(model.parameters()).is_cuda
    optimizers: list[Optimizer] = [
        torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=on_cuda or None)
    ]
    if matrices:
        optimizers.append(
            StackedMuon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay)
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


def set_rate(optimizers: Sequence[Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
