from __future__ import annotations

import pytest

from apr.train.advantage import Advantage, Credit, Rollout, advantages, differ, thread_advantages
from tests.train.trees import ADVANTAGES, ROLLOUTS, judge

GROUP = [Rollout(trace, trace.grade.correct, tuple(judge(trace))) for trace in ROLLOUTS]


@pytest.mark.parametrize(
    ("returns", "kind", "expected"),
    [
        ([1.0, 0.0, 0.0, 1.0], Advantage.GRPO, [1.0, -1.0, -1.0, 1.0]),
        ([3.0, 1.0, 2.0], Advantage.GRPO, [1.5**0.5, -(1.5**0.5), 0.0]),
        ([3.0, 1.0, 2.0], Advantage.MEAN_ONLY, [1.0, -1.0, 0.0]),
        # 3 against the mean of 1 and 2, and so on.
        ([3.0, 1.0, 2.0], Advantage.LEAVE_ONE_OUT, [1.5, -1.5, 0.0]),
        ([1.0, 0.0], Advantage.LEAVE_ONE_OUT, [1.0, -1.0]),
    ],
)
def test_a_return_is_compared_with_its_group(
    returns: list[float], kind: Advantage, expected: list[float]
) -> None:
    assert advantages(returns, kind) == pytest.approx(expected)


@pytest.mark.parametrize("kind", list(Advantage))
@pytest.mark.parametrize("returns", [[], [1.0], [0.0, 0.0], [0.7, 0.7, 0.7], [0.3, 0.1 + 0.2]])
def test_a_group_that_says_nothing_has_no_advantages(returns: list[float], kind: Advantage) -> None:
    """Rounding is not something said: its standard deviation would make a whole advantage of it."""
    assert not differ(returns)
    assert advantages(returns, kind) == [0.0] * len(returns)


@pytest.mark.parametrize(("kind", "credit"), list(ADVANTAGES))
def test_each_thread_gets_the_advantage_worked_out_by_hand(kind: Advantage, credit: Credit) -> None:
    found = thread_advantages(GROUP, kind, credit, weight=0.25)
    for advantages_H, expected_H in zip(found, ADVANTAGES[kind, credit], strict=True):
        assert advantages_H == pytest.approx(expected_H)


@pytest.mark.parametrize("kind", list(Advantage))
def test_mixed_credit_goes_from_the_roots_to_the_threads(kind: Advantage) -> None:
    for weight, credit in ((0.0, Credit.ROOT), (1.0, Credit.THREAD)):
        mixed = thread_advantages(GROUP, kind, Credit.MIXED, weight)
        assert mixed == thread_advantages(GROUP, kind, credit)


def test_children_can_be_told_apart_where_the_rollouts_cannot() -> None:
    alike = [rollout._replace(reward=1.0) for rollout in GROUP]
    root = thread_advantages(alike, Advantage.MEAN_ONLY, Credit.ROOT)
    assert {a for advantages_H in root for a in advantages_H} == {0.0}
    own = thread_advantages(alike, Advantage.MEAN_ONLY, Credit.THREAD)
    assert own[0] == pytest.approx([0.0, 2 / 3, -1 / 2, 0.0])
    assert own[1] == pytest.approx([0.0, -1 / 3, -1 / 3, 1 / 2, 0.0, 0.0])
