"""Sampling: the distribution asked for, row by row, and nothing else."""

from __future__ import annotations

import pytest
import torch

from apr.engine.sampler import draw
from apr.types import Sampling

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0]])


def shares(sampling: Sampling, count: int = 4000) -> list[float]:
    """How often each id is drawn, the random numbers spread evenly over [0, 1)."""
    uniforms = [(i + 0.5) / count for i in range(count)]
    drawn = draw(LOGITS.expand(count, -1).clone(), [sampling] * count, uniforms)
    return [drawn.ids.count(i) / count for i in range(LOGITS.shape[1])]


def test_greedy_takes_the_likeliest_and_reports_its_logprob() -> None:
    drawn = draw(LOGITS, [Sampling(1)], [0.99])
    assert drawn.ids == [4]
    assert drawn.logprobs[0] == pytest.approx(LOGITS.log_softmax(-1)[0, 4].item())


def test_shares_follow_the_softmax_at_the_temperature() -> None:
    for temperature in (0.5, 1.0, 2.0):
        want = (LOGITS / temperature).softmax(-1)[0].tolist()
        assert shares(Sampling(1, temperature=temperature)) == pytest.approx(want, abs=1e-3)


def test_top_k_keeps_the_likeliest_and_their_proportions() -> None:
    kept = LOGITS.softmax(-1)[0][[4, 0]]
    a, b = (kept / kept.sum()).tolist()
    assert shares(Sampling(1, temperature=1.0, top_k=2)) == pytest.approx([b, 0, 0, 0, a], abs=1e-3)


def test_top_p_keeps_the_fewest_that_hold_the_mass() -> None:
    # The softmax is about .64, .23, .09, .03, .01: .7 takes two of them.
    got = shares(Sampling(1, temperature=1.0, top_p=0.7))
    assert [i for i, share in enumerate(got) if share] == [0, 4]


def test_logprobs_are_those_at_temperature_one_whatever_was_asked() -> None:
    drawn = draw(LOGITS, [Sampling(1, temperature=0.3, top_k=1)], [0.2])
    assert drawn.logprobs[0] == pytest.approx(LOGITS.log_softmax(-1)[0, 4].item())


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    samplings = [
        Sampling(1),
        Sampling(1, temperature=1.0),
        Sampling(1, temperature=0.7, top_p=0.9),
        Sampling(1, temperature=1.5, top_k=5),
        Sampling(1, temperature=1.0, top_k=3, top_p=0.5),
        Sampling(1, temperature=0.01),
    ]
    uniforms = [0.1, 0.35, 0.6, 0.85, 0.99, 0.5]
    together = draw(logits, samplings, uniforms)
    alone = [draw(logits[i : i + 1], [samplings[i]], [uniforms[i]]) for i in range(6)]
    assert together.ids == [d.ids[0] for d in alone]
    assert together.logprobs == pytest.approx([d.logprobs[0] for d in alone])


def test_an_id_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]])
    for u in (0.0, 0.5, 1 - 2**-53):
        assert draw(logits, [Sampling(1, temperature=1.0)], [u]).ids[0] in (1, 3)
