"""The clipped policy loss over the sampled tokens of many rollouts, one term a token.

The loss is a sum over tokens with weights that are known beforehand, so that it can be computed in
pieces of any size, on any number of processes, and the gradients added. By default they add up to
one over the whole update, but for tokens of calls that were cut short, which are never trained on.

Axis suffix: ``_N`` token that was sampled, over all sequences of a piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from apr.config import check_least
from apr.errors import ConfigError


class Aggregation(StrEnum):
    """What each token's term is divided by, the policy's and the KL's alike."""

    ROLLOUT = "rollout"
    """Tokens of its rollout, over all threads, then the number of rollouts: one that spawns many
    threads counts once (GRPO, with a rollout for a response)."""
    TOKEN = "token"
    """Tokens of the whole update: long rollouts count for more (DAPO, 2503.14476)."""
    CONSTANT = "constant"
    """``divisor`` and the number of rollouts: length is neither rewarded nor punished
    (Dr. GRPO, 2503.20783)."""


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Terms of the loss; the defaults are the paper's."""

    aggregation: Aggregation = Aggregation.ROLLOUT
    divisor: int = 1000
    """Tokens that a rollout is divided by, for ``constant`` aggregation."""
    clip_low: float = 0.2
    """How far below 1 the ratio of new to old probability still counts."""
    clip_high: float = 0.2
    """How far above 1 it counts (DAPO: 0.28)."""
    kl: float = 0.001
    """Weight of the divergence from the reference, the weights that training started from (paper:
    .001 for APR, .01 for SoS+). 0 saves the pass of the reference."""
    importance_cap: float = 2.0
    """Most that a token is weighted up where the trainer finds it likelier than the engine did
    (truncated importance sampling); 0 leaves the correction out."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1 or self.clip_high < 0:
            raise ConfigError("clip_low is from 0 up to below 1, and clip_high 0 or more")
        check_least(0, kl=self.kl, importance_cap=self.importance_cap)
        check_least(1, divisor=self.divisor)


class Terms(NamedTuple):
    """The loss of a piece, and sums over its tokens to report."""

    loss: Tensor  # to be differentiated
    kl: Tensor  # weighted as in the loss: pieces add up to the mean
    clipped: Tensor  # number of tokens whose ratio the clip holds back


def token_weight(
    aggregation: Aggregation, divisor: int, num_own: int, num_rollouts: int, num_tokens: int
) -> float:
    """Weight of each token of a rollout that sampled ``num_own`` tokens.

    Args:
        num_rollouts, num_tokens: of the whole update, over all processes.
    """
    if aggregation is Aggregation.TOKEN:
        return 1 / num_tokens
    return 1 / (num_rollouts * (num_own if aggregation is Aggregation.ROLLOUT else divisor))


def policy_terms(
    new_N: Tensor,
    old_N: Tensor,
    engine_N: Tensor,
    reference_N: Tensor | None,
    advantages_N: Tensor,
    weights_N: Tensor,
    config: LossConfig,
) -> Terms:
    """The loss over N tokens.

    With the ratio rho = pi_new / pi_old and the correction w = min(pi_old / pi_engine, cap)::

        sum_n weight_n [ -w_n min(rho_n A_n, clip(rho_n) A_n) + kl * k3_n ]
        k3_n = pi_ref / pi_new - log(pi_ref / pi_new) - 1

    k3 is never negative, and for samples of the new weights its mean is KL(new, reference)
    (Schulman, 2020). What a step descends is another: its gradient is, in the mean over such
    samples, that of KL(reference, new), and has no bound where the reference is far the likelier.

    Args:
        new_N: log-probabilities under the weights being trained; carries the gradient.
        old_N: under the weights that sampled, as the trainer computes them.
        engine_N: under the weights that sampled, as the engine computed them.
        reference_N: under the reference; None where ``config.kl`` is 0.
    """
    ratio_N = (new_N - old_N).exp()
    held_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain_N = torch.minimum(ratio_N * advantages_N, held_N * advantages_N)
    if config.importance_cap:
        gain_N = gain_N * (old_N - engine_N).exp().clamp(max=config.importance_cap)
    loss = -(weights_N * gain_N).sum()
    kl = new_N.new_zeros(())
    if reference_N is not None:
        log_ratio_N = reference_N - new_N
        kl = (weights_N * (log_ratio_N.exp() - log_ratio_N - 1)).sum()
        loss = loss + config.kl * kl
    clipped = (held_N * advantages_N < ratio_N * advantages_N).sum()
    return Terms(loss, kl.detach(), clipped)
