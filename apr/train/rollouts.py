"""From groups of traces to token batches: what is kept, what each token is worth, how it is cut.

Nothing is tokenised again. Ids and log-probabilities are those that crossed the engine's border;
what the runtime injected (prompts, joined messages) is context and never trained on.

Threads of one group often write the same text: children given the same message do nearly the same
work. Equal sequences go through the network once, and each counts with its own advantage.

Axis suffixes: ``_T`` token of a batch, ``_U`` those of them that were sampled, ``_N`` the same with
each of several equal sequences counted, ``_G`` rollout of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from apr.trace import Trace, TrainingSequence
from apr.train.advantage import Rollout
from apr.train.reward import RewardConfig, reward
from apr.types import Ids

Judge = Callable[[Trace], Sequence[float | None]]
"""What each thread of a trace was worth by itself, None where nobody can tell."""


class Sample(NamedTuple):
    """A training sequence and what its sampled tokens are worth."""

    sequence: TrainingSequence
    advantage: float
    weight: float  # of each sampled token in the loss


class TokenBatch(NamedTuple):
    """Distinct sequences one after another, T tokens in all, and who sampled them."""

    ids_T: Tensor
    positions_T: Tensor  # within the sequence
    segments_T: Tensor  # number of the sequence; on the host, where attention is laid out
    before_U: Tensor  # index in T of the token before each sampled one
    place_N: Tensor  # index in U
    engine_N: Tensor  # the engine's log-probability
    advantages_N: Tensor
    weights_N: Tensor


def rollouts_of(
    group_G: Sequence[Trace], config: RewardConfig, step: int, judge: Judge | None
) -> list[Rollout]:
    """Reward a group; traces that the world cut short are left out, never rewarded 0."""
    return [
        Rollout(
            trace,
            reward(trace, config, step),
            tuple(judge(trace)) if judge else (None,) * len(trace.threads),
        )
        for trace in group_G
        if trace.grade is not None
    ]


def token_batches(
    samples: Sequence[Sample], most_tokens: int, device: torch.device
) -> Iterator[TokenBatch]:
    """Cut ``samples`` into batches of at most ``most_tokens`` (a longer sequence is one alone).

    Sequences of like length come together, which attention computes without padding.
    """
    equal: dict[tuple[Ids, tuple[int, ...]], list[Sample]] = {}
    for sample in samples:
        equal.setdefault((sample.sequence.ids_T, sample.sequence.mask_T), []).append(sample)
    batch: list[list[Sample]] = []
    room = most_tokens
    for ids, mask in sorted(equal, key=lambda key: len(key[0])):
        if batch and len(ids) > room:
            yield _collate(batch, device)
            batch, room = [], most_tokens
        batch.append(equal[ids, mask])
        room -= len(ids)
    if batch:
        yield _collate(batch, device)


def _collate(batch: Sequence[Sequence[Sample]], device: torch.device) -> TokenBatch:
    """Each item of ``batch`` holds samples of one sequence."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    before: list[int] = []
    place: list[int] = []
    engine: list[float] = []
    advantages: list[float] = []
    weights: list[float] = []
    for n, samples in enumerate(batch):
        first = samples[0].sequence
        start, length, seen = len(ids), len(first.ids_T), len(before)
        sampled = [t for t in range(1, length) if first.mask_T[t]]
        ids += first.ids_T
        positions += range(length)
        segments += [n] * length
        before += [start + t - 1 for t in sampled]
        for sequence, advantage, weight in samples:
            place += range(seen, len(before))
            engine += [sequence.logprobs_T[t] for t in sampled]
            advantages += [advantage] * len(sampled)
            weights += [weight] * len(sampled)
    columns = (ids, positions, segments, before, place, engine, advantages, weights)
    batch_of = TokenBatch(*(torch.tensor(column, device=device) for column in columns))
    return batch_of._replace(segments_T=torch.tensor(segments))
