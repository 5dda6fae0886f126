from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest

from apr.errors import ConfigError
from apr.eval.metrics import Interval, pass_at_n, summarize, wilson
from apr.trace import Call, End, Thread, Trace
from apr.types import FinishReason, Grade


def call(num_prompt: int, num_sampled: int, end: float) -> Call:
    ids = tuple(range(num_sampled))
    return Call(tuple(range(num_prompt)), ids, tuple(0.0 for _ in ids), FinishReason.STOP, 0.0, end)


def thread(index: int, parent: int | None, *calls: Call, spawns: tuple[int, ...] = ()) -> Thread:
    return Thread(index, parent, "", calls, (spawns,) if spawns else (), End.JOINED, "")


# 4 + 6 tokens of the root, and in parallel 10 and 20: 40 in all, 30 in sequence.
WIDE = Trace(
    {},
    "apr",
    (
        thread(0, None, call(5, 4, 1.0), call(12, 6, 3.0), spawns=(1, 2)),
        thread(1, 0, call(3, 10, 2.0)),
        thread(2, 0, call(3, 20, 2.5)),
    ),
    grade=Grade(True, "correct"),
)
NARROW = Trace({}, "apr", (thread(0, None, call(5, 10, 1.0)),), grade=Grade(False, "no"))
FAILED = Trace({}, "apr", (thread(0, None, call(500, 900, 99.0)),), error="EngineError: down")


def test_summary_reads_its_figures_off_the_traces() -> None:
    summary = summarize([WIDE, NARROW])
    assert summary.num_problems == 2
    assert summary.num_failed == 0
    assert summary.num_correct == 1
    assert summary.accuracy == 0.5
    assert summary.interval == wilson(1, 2)
    assert summary.total_tokens == (40 + 10) / 2
    assert summary.sequential_tokens == (30 + 10) / 2
    assert summary.longest_context == (23 + 15) / 2
    assert summary.num_children == 1.0
    assert summary.peak_width == 1.5
    assert summary.seconds == (3.0 + 1.0) / 2


def test_runs_that_the_world_cut_short_count_for_nothing() -> None:
    both, one = summarize([WIDE, FAILED]), summarize([WIDE])
    assert both == one._replace(num_problems=2, num_failed=1)


def test_nothing_graded_has_no_accuracy() -> None:
    for traces in ([], [FAILED], [replace(WIDE, grade=None)]):
        summary = summarize(traces)
        assert math.isnan(summary.accuracy)
        assert math.isnan(summary.total_tokens) == (not traces or traces == [FAILED])
        assert summary.interval == Interval(0.0, 1.0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_exact_where_none_or_all_succeed() -> None:
    for trials in range(1, 1001):
        assert wilson(0, trials).low == 0.0
        assert wilson(trials, trials).high == 1.0


def test_wilson_is_symmetric_and_holds_the_proportion() -> None:
    for trials in (1, 7, 500):
        for successes in {0, 1, trials // 2, trials - 1, trials}:
            low, high = wilson(successes, trials)
            assert 0.0 <= low <= successes / trials <= high <= 1.0
            mirrored = wilson(trials - successes, trials)
            assert (1 - high, 1 - low) == pytest.approx(mirrored)


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "n", "chance"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (4, 1, 1, 1 / 4),
        # Of the six pairs of four samples three hold the correct one.
        (4, 1, 2, 1 / 2),
        (4, 2, 2, 5 / 6),
        (4, 2, 3, 1.0),
        (10, 0, 10, 0.0),
        (2000, 1, 1000, 1 / 2),
    ],
)
def test_pass_at_n(num_samples: int, num_correct: int, n: int, chance: float) -> None:
    assert pass_at_n(num_samples, num_correct, n) == pytest.approx(chance)


def test_pass_at_n_is_the_share_of_choices_that_hold_a_correct_sample() -> None:
    correct = [True, False, True, False, False, False, True]
    for n in range(1, 8):
        choices = list(combinations(correct, n))
        assert pass_at_n(7, 3, n) == pytest.approx(sum(map(any, choices)) / len(choices))


@pytest.mark.parametrize("n", [0, 5])
def test_pass_at_n_takes_that_many_samples(n: int) -> None:
    with pytest.raises(ConfigError, match=f"pass@{n} cannot be told from 4 samples"):
        pass_at_n(4, 2, n)


def test_what_nobody_graded_has_costs_and_no_accuracy() -> None:
    summary = summarize([replace(WIDE, grade=None), replace(NARROW, grade=None)])
    assert (summary.num_problems, summary.num_failed, summary.num_correct) == (2, 0, 0)
    assert math.isnan(summary.accuracy)
    assert summary.total_tokens == (40 + 10) / 2
