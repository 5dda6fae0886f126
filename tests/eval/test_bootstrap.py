from __future__ import annotations

import numpy as np
import pytest

from apr.eval.bootstrap import Estimate, bootstrap, difference, ratio
from apr.eval.metrics import Interval, wilson

NAN = float("nan")


def shares(num_ones: int, num_zeros: int) -> np.ndarray:
    return np.array([1.0] * num_ones + [0.0] * num_zeros)


def test_the_interval_of_a_share_is_close_to_wilsons() -> None:
    value, interval = bootstrap(shares(120, 180))
    assert value == pytest.approx(0.4)
    assert interval == pytest.approx(wilson(120, 300), abs=0.01)


def test_the_same_values_have_the_same_interval() -> None:
    assert bootstrap(shares(7, 13)) == bootstrap(shares(7, 13))


def test_what_is_always_equal_is_certain() -> None:
    assert bootstrap(np.full(9, 0.25)) == Estimate(0.25, Interval(0.25, 0.25))


def test_pairs_are_told_apart_far_better_than_their_means() -> None:
    """One more of a hundred hard and easy problems solved, always the same ones."""
    hard_and_easy = shares(50, 50)
    better = hard_and_easy.copy()
    better[50:60] = 1.0
    value, (low, high) = difference(better, hard_and_easy)
    assert value == pytest.approx(0.1)
    assert 0.03 < low < 0.06
    assert 0.14 < high < 0.18
    assert bootstrap(better).interval.low < bootstrap(hard_and_easy).interval.high


def test_a_difference_is_that_of_the_other_way_round() -> None:
    a, b = shares(30, 20), shares(10, 40)[::-1]
    there, back = difference(a, b), difference(b, a)
    assert there.value == -back.value
    assert there.interval == pytest.approx((-back.interval.high, -back.interval.low), abs=0.021)


def test_problems_without_a_value_are_left_out() -> None:
    a, b = np.array([1.0, NAN, 0.0, 1.0]), np.array([0.0, 1.0, NAN, 1.0])
    assert bootstrap(a).value == pytest.approx(2 / 3)
    assert difference(a, b) == bootstrap(np.array([1.0, 0.0]))
    assert ratio(a + 1, b + 1).value == pytest.approx(4 / 3)


def test_nothing_known_gives_nothing() -> None:
    for estimate in (bootstrap(np.array([])), ratio(np.array([NAN]), np.array([1.0]))):
        assert np.isnan([estimate.value, *estimate.interval]).all()


def test_a_ratio_is_of_means_and_keeps_pairs_together() -> None:
    b = np.arange(1.0, 31.0)
    value, interval = ratio(3 * b, b)
    assert [value, *interval] == pytest.approx([3.0] * 3)
    value, (low, high) = ratio(b, b[::-1])
    assert value == pytest.approx(1.0)
    assert low < 0.8 < 1.2 < high
    assert np.isnan(ratio(b, np.zeros(30)).value)
