from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from apr.errors import ConfigError
from apr.models.llama import Llama
from apr.train.advantage import Advantage, Credit
from apr.train.grpo import token_logprobs
from apr.train.loss import Aggregation, LossConfig, Terms, policy_terms, token_weight
from apr.train.rollouts import Sample, TokenBatch, token_batches
from tests.tiny import tiny_model
from tests.train.trees import ADVANTAGES, NESTED, ROLLOUTS, SERIAL, WIDE


class Token(NamedTuple):
    """One term of the loss, by ratios of probabilities."""

    ratio: float  # new to old
    engine: float  # old to the engine's
    reference: float  # reference to new
    advantage: float
    gain: float  # expected: with the clip at .8 and 1.28, and a cap of 2
    held: bool = False  # expected: by the clip


TOKENS = [
    Token(1.00, 1.0, 1.0, 1.0, gain=1.0),
    Token(1.20, 1.0, 2.0, 2.0, gain=2.4),
    Token(1.50, 1.0, 0.5, 1.0, gain=1.28, held=True),
    Token(0.50, 1.0, 1.0, 1.0, gain=0.5),
    Token(0.90, 1.0, 1.0, -2.0, gain=-1.8),
    Token(0.50, 1.0, 4.0, -1.0, gain=-0.8, held=True),
    Token(1.50, 1.0, 1.0, -1.0, gain=-1.5),
    Token(1.00, 3.0, 1.0, 1.0, gain=2.0),
    Token(1.00, 0.5, 1.0, -1.0, gain=-0.5),
    Token(1.50, 3.0, 1.0, 2.0, gain=5.12, held=True),
    Token(1.50, 1.0, 1.0, 0.0, gain=0.0),
]
# ratio - log(ratio) - 1
K3 = {1.0: 0.0, 2.0: 0.3068528194400547, 0.5: 0.1931471805599453, 4.0: 1.6137056388801094}
WEIGHTS = [0.5 / (n + 1) for n in range(len(TOKENS))]
CONFIG = LossConfig(clip_low=0.2, clip_high=0.28, kl=0.1, importance_cap=2.0)


def log(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def terms(tokens: list[Token], weights: list[float], config: LossConfig) -> tuple[Terms, Tensor]:
    """The terms, and where their gradient will be."""
    old_N = torch.linspace(-5.0, -1.0, len(tokens), dtype=torch.float64)
    new_N = (old_N + log([t.ratio for t in tokens])).requires_grad_()
    found = policy_terms(
        new_N,
        old_N,
        old_N - log([t.engine for t in tokens]),
        new_N.detach() + log([t.reference for t in tokens]) if config.kl else None,
        torch.tensor([t.advantage for t in tokens], dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        config,
    )
    return found, new_N


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_alone_is_worth_what_was_worked_out_by_hand(token: Token) -> None:
    found, new_N = terms([token], [0.25], CONFIG)
    assert found.loss.item() == pytest.approx(0.25 * (0.1 * K3[token.reference] - token.gain))
    assert found.kl.item() == pytest.approx(0.25 * K3[token.reference])
    assert found.clipped.item() == token.held
    found.loss.backward()
    # Where the clip holds, nothing pulls but the reference.
    pull = 0.0 if token.held else token.gain
    expected = 0.25 * (0.1 * (1 - token.reference) - pull)
    assert new_N.grad.item() == pytest.approx(expected)


def test_the_loss_is_the_weighted_sum_of_its_tokens() -> None:
    found, _ = terms(TOKENS, WEIGHTS, CONFIG)
    pairs = list(zip(TOKENS, WEIGHTS, strict=True))
    kl = sum(w * K3[t.reference] for t, w in pairs)
    assert found.kl.item() == pytest.approx(kl)
    assert found.loss.item() == pytest.approx(0.1 * kl - sum(w * t.gain for t, w in pairs))
    assert found.clipped.item() == 3


def test_without_a_cap_the_engines_probabilities_are_left_out() -> None:
    for token, gain in ((TOKENS[7], 1.0), (TOKENS[8], -1.0), (TOKENS[9], 2.56)):
        found, _ = terms([token], [1.0], replace(CONFIG, importance_cap=0.0, kl=0.0))
        assert found.loss.item() == pytest.approx(-gain)
    found, _ = terms([TOKENS[7]], [1.0], replace(CONFIG, importance_cap=10.0, kl=0.0))
    assert found.loss.item() == pytest.approx(-3.0)


def test_without_a_reference_there_is_no_divergence() -> None:
    found, _ = terms(TOKENS, WEIGHTS, replace(CONFIG, kl=0.0))
    gain = sum(w * t.gain for t, w in zip(TOKENS, WEIGHTS, strict=True))
    assert (found.loss.item(), found.kl.item()) == (pytest.approx(-gain), 0.0)


def test_each_side_of_the_clip_has_its_own_width() -> None:
    narrow = replace(CONFIG, clip_low=0.05, clip_high=0.01, kl=0.0)
    expected = [1.0, 2.02, 1.01, 0.5, -1.9, -0.95, -1.5, 2.0, -0.5, 4.04, 0.0]
    for token, gain in zip(TOKENS, expected, strict=True):
        assert terms([token], [1.0], narrow)[0].loss.item() == pytest.approx(-gain)


# NESTED sampled 14 tokens, WIDE 12, SERIAL 4; divided by 20 where the divisor is constant.
WEIGHT = {
    Aggregation.ROLLOUT: [1 / 42, 1 / 36, 1 / 12],
    Aggregation.TOKEN: [1 / 30, 1 / 30, 1 / 30],
    Aggregation.CONSTANT: [1 / 60, 1 / 60, 1 / 60],
}


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_a_token_weighs_what_its_aggregation_says(aggregation: Aggregation) -> None:
    found = [
        token_weight(aggregation, 20, trace.total_tokens, num_rollouts=3, num_tokens=30)
        for trace in (NESTED, WIDE, SERIAL)
    ]
    assert found == pytest.approx(WEIGHT[aggregation])


def test_a_rollout_counts_once_however_many_threads_it_has() -> None:
    """In both terms: were the KL divided otherwise, a tree of many threads would weigh more."""
    for trace in ROLLOUTS:
        weight = token_weight(Aggregation.ROLLOUT, 1, trace.total_tokens, 3, 30)
        same = [Token(1.0, 1.0, 2.0, 0.6, gain=0.6)] * trace.total_tokens
        found, _ = terms(same, [weight] * len(same), CONFIG)
        assert found.kl.item() == pytest.approx(K3[2.0] / 3)
        assert found.loss.item() == pytest.approx((0.1 * K3[2.0] - 0.6) / 3)


def batch_of_group() -> TokenBatch:
    samples = [
        Sample(sequence, advantages_H[sequence.thread], weight)
        for trace, advantages_H, weight in zip(
            ROLLOUTS,
            ADVANTAGES[Advantage.GRPO, Credit.THREAD],
            WEIGHT[Aggregation.ROLLOUT],
            strict=True,
        )
        for sequence in trace.training_sequences()
    ]
    (batch,) = token_batches(samples, 1000, torch.device("cpu"))
    return batch


@torch.no_grad()
def moved(model: Llama, seed: int) -> Llama:
    """A copy of ``model`` a few inner steps away from it."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p += 0.02 * torch.randn(p.shape, generator=generator)
    return model


def test_the_gradient_is_that_of_finite_differences() -> None:
    model, batch = tiny_model().double(), batch_of_group()
    with torch.no_grad():
        old_N, _ = token_logprobs(moved(model, seed=1), batch)
        reference_N, _ = token_logprobs(moved(model, seed=2), batch)

    def loss() -> Tensor:
        new_N, _ = token_logprobs(model, batch)
        found = policy_terms(
            new_N, old_N, batch.engine_N, reference_N, batch.advantages_N, batch.weights_N, CONFIG
        )
        ratio_N = (new_N - old_N).exp()
        # The clip holds some tokens and not others, and none stands where the slope jumps.
        assert 3 <= found.clipped.item() < len(new_N) - 3
        assert min((ratio_N - kink).abs().min().item() for kink in (0.8, 1.28)) > 1e-3
        return found.loss

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        slope = (p.grad * direction).sum().item()
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p += step * direction
                sides.append(loss().item())
                p -= step * direction
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-8), name
        assert math.isfinite(slope)
        assert slope != 0.0


@pytest.mark.parametrize(
    "bad",
    [
        {"clip_low": -0.1},
        {"clip_low": 1.0},
        {"clip_high": -0.1},
        {"kl": -0.001},
        {"importance_cap": -1.0},
        {"divisor": 0},
    ],
)
def test_a_loss_out_of_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        LossConfig(**bad)
