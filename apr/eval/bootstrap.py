"""How far a mean over problems can be trusted: the percentile bootstrap (Efron, 1979).

Problems are what is drawn at random, so problems are what is resampled. Two methods that met the
same problems are compared pair by pair: what makes a problem hard for both cancels out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apr.eval.metrics import Interval

Floats = NDArray[np.float64]

RESAMPLES = 10_000
_SEED = 0
_CHUNK = 500


class Estimate(NamedTuple):
    value: float
    interval: Interval  # 95 %


def bootstrap(values_P: Floats) -> Estimate:
    """Mean over problems, and the interval that 95 % of its resamples fall into.

    The same values give the same interval: the resamples are drawn from a fixed seed. Problems
    without a value (nan) are left out; with none left, all is nan.
    """
    values_P = values_P[~np.isnan(values_P)]
    if not len(values_P):
        return Estimate(np.nan, Interval(np.nan, np.nan))
    means = _counts(len(values_P)) @ values_P / len(values_P)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values_P.mean()), Interval(float(low), float(high)))


def difference(a_P: Floats, b_P: Floats) -> Estimate:
    """Mean of ``a - b`` over problems that have both; ``a_P[i]`` and ``b_P[i]`` are of one."""
    return bootstrap(a_P - b_P)


def ratio(a_P: Floats, b_P: Floats) -> Estimate:
    """Mean of ``a`` over mean of ``b``, over problems that have both, resampled in pairs."""
    both = ~(np.isnan(a_P) | np.isnan(b_P))
    a_P, b_P = a_P[both], b_P[both]
    if not len(a_P) or not b_P.sum():
        return Estimate(np.nan, Interval(np.nan, np.nan))
    counts = _counts(len(a_P))
    below = counts @ b_P
    ratios = (counts @ a_P)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(float(a_P.sum() / b_P.sum()), Interval(float(low), float(high)))


@lru_cache(maxsize=4)
def _counts(num_problems: int) -> NDArray[np.float32]:
    """How often each resample holds each problem, (RESAMPLES, num_problems)."""
    rng = np.random.default_rng(_SEED)
    counts = np.empty((RESAMPLES, num_problems), np.float32)
    even = np.full(num_problems, 1 / num_problems)
    for start in range(0, RESAMPLES, _CHUNK):
        counts[start : start + _CHUNK] = rng.multinomial(num_problems, even, _CHUNK)
    return counts
