"""Embeddings of numbers that start as waves, so that arithmetic is found early.

A number token means nothing to a network at first, and each sum must be met to be learnt. Trained
networks come to hold numbers as waves of several periods, and add them by turning one wave by the
other (Zhou et al., 2406.03445). Starting there costs nothing, changes nothing in what a network is,
and spares most of the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from apr.models.llama import Llama

_PERIODS = (2, 2.5, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
"""The short ones tell digits, the long ones size."""
_OTHERS = 10
"""Factor of the random dimensions beside them: by waves alone neighbours look too much alike for a
network to see whether a result is the target or next to it."""
_HEAD = 0.1
"""Height of the waves in the output matrix, where tall ones would make the first guesses loud."""


def periods(largest: int) -> tuple[float, ...]:
    """Of the waves for numbers up to ``largest``: up to one that is at least twice as long."""
    return tuple(p for i, p in enumerate(_PERIODS) if not i or _PERIODS[i - 1] < 2 * largest)


def width(largest: int) -> int:
    """Dimensions that the waves take: a cosine and a sine each."""
    return 2 * len(periods(largest))


@torch.no_grad()
def start_as_waves(model: Llama, numbers: Mapping[int, int]) -> None:
    """Write waves into the first dimensions of the embeddings of numbers, in and out.

    Args:
        model: at least ``width`` of the largest number wide.
        numbers: the number that each such token id stands for.
    """
    ids = torch.tensor(list(numbers))
    values = torch.tensor(list(numbers.values()), dtype=torch.float32)
    angles = 2 * math.pi * values[:, None] / torch.tensor(periods(max(numbers.values())))
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    taken = waves.shape[1]
    model.embed_tokens.weight[ids, taken:] *= _OTHERS
    model.embed_tokens.weight[ids, :taken] = waves
    if not model.config.tie_word_embeddings:
        model.lm_head.weight[ids, :taken] = _HEAD * waves
