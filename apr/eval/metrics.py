"""What a set of traces amounts to. Every figure is read off the traces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from apr.errors import ConfigError
from apr.trace import Trace

Z_95 = 1.959963984540054
"""Quantile of the normal distribution that leaves 2.5 % above it."""


class Interval(NamedTuple):
    low: float
    high: float


class Summary(NamedTuple):
    """Accuracy is of the traces that have a grade, means are over all that the world let end."""

    num_problems: int
    num_failed: int  # runs that the world cut short; they have no grade and count for nothing
    num_correct: int
    accuracy: float
    interval: Interval  # 95 %, Wilson
    total_tokens: float
    sequential_tokens: float
    longest_context: float
    num_children: float
    peak_width: float
    parallelism: float  # total over sequential tokens of a problem
    seconds: float  # wall clock of one problem while others ran beside it


def summarize(traces: Sequence[Trace]) -> Summary:
    """The figures of one method on one set of problems."""
    ended = [t for t in traces if t.error is None]
    graded = [t for t in ended if t.grade is not None]
    correct = sum(t.is_correct for t in graded)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    return Summary(
        num_problems=len(traces),
        num_failed=len(traces) - len(ended),
        num_correct=correct,
        accuracy=correct / len(graded) if graded else math.nan,
        interval=wilson(correct, len(graded)),
        total_tokens=mean([t.total_tokens for t in ended]),
        sequential_tokens=mean([t.sequential_tokens for t in ended]),
        longest_context=mean([t.longest_context for t in ended]),
        num_children=mean([t.num_children for t in ended]),
        peak_width=mean([t.peak_width for t in ended]),
        parallelism=mean([parallelism(t) for t in ended]),
        seconds=mean([t.wall_clock for t in ended]),
    )


def parallelism(trace: Trace) -> float:
    """Total over sequential tokens: 1 for a single thread, and for a trace that sampled nothing."""
    return trace.total_tokens / trace.sequential_tokens if trace.sequential_tokens else 1.0


def wilson(successes: int, trials: int, z: float = Z_95) -> Interval:
    """Wilson's score interval for a proportion (Wilson, 1927); all of [0, 1] without trials.

    It holds the proportion: of none it begins at 0.0 exactly, of all it ends at 1.0.
    """
    if not trials:
        return Interval(0.0, 1.0)
    p, zz = successes / trials, z * z / trials
    centre = (p + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(p * (1 - p) / trials + zz / (4 * trials))
    # Rounding may miss the two ends that are exact.
    low = centre - half if successes else 0.0
    return Interval(low, centre + half if successes < trials else 1.0)


def pass_at_n(num_samples: int, num_correct: int, n: int) -> float:
    """Chance that of ``n`` samples one at least is correct.

    The unbiased estimate from ``num_samples`` that were drawn (Chen et al., 2107.03374, equation
    1): the share of all choices of ``n`` among them that hold a correct one. Its mean over problems
    is pass@n.

    Raises:
        ConfigError: fewer samples than ``n`` were drawn.
    """
    if not 1 <= n <= num_samples:
        raise ConfigError(f"pass@{n} cannot be told from {num_samples} samples: draw more")
    return 1 - math.comb(num_samples - num_correct, n) / math.comb(num_samples, n)
