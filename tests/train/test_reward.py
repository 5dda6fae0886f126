from __future__ import annotations

from dataclasses import replace

import pytest

from apr.errors import ConfigError
from apr.trace import Trace
from apr.train.reward import Prices, RewardConfig, Shape, reward
from apr.types import Grade
from tests.train.trees import FAILED, NESTED, SERIAL, WIDE, thread, trace

# 14 tokens, 10 in sequence, 3 children that all came back.
RIGHT, WRONG = NESTED, replace(NESTED, grade=Grade(False, ""))
CHEAP = Prices(total_tokens=10.0, sequential_tokens=20.0, children=0.02)


def cost(most: float, prices: Prices = CHEAP) -> RewardConfig:
    return RewardConfig(Shape.COST, replace(prices, most=most))


@pytest.mark.parametrize(
    ("config", "right", "wrong"),
    [
        (RewardConfig(), 1.0, 0.0),
        # 14 x .01 + 10 x .02 + 3 x .02 is .4
        (cost(most=0.9), 0.6, 0.0),
        (cost(most=0.3), 0.7, 0.0),
        (cost(0.9, Prices(total_tokens=10.0)), 0.86, 0.0),
        (cost(0.9, Prices(sequential_tokens=10.0)), 0.9, 0.0),
        (cost(0.9, Prices(children=0.1)), 0.7, 0.0),
        # 4 of 14 tokens ran beside the critical path.
        (RewardConfig(Shape.THREADWEAVER, factor=0.5, cap=0.5), 1 + 0.5 * 2 / 7, 0.0),
        (RewardConfig(Shape.THREADWEAVER, factor=0.5, cap=0.2), 1.1, 0.0),
        (RewardConfig(Shape.PARL, spawned=0.1, finished=0.2), 1.3, 0.3),
    ],
)
def test_a_trace_is_worth_what_its_shape_says(
    config: RewardConfig, right: float, wrong: float
) -> None:
    assert reward(RIGHT, config) == pytest.approx(right)
    assert reward(WRONG, config) == pytest.approx(wrong)


def test_a_wrong_trace_never_gains_from_being_cheap() -> None:
    """SERIAL samples the fewest tokens, NESTED the most."""
    for shape in (Shape.CORRECT, Shape.COST, Shape.THREADWEAVER):
        config = RewardConfig(shape, replace(CHEAP, most=0.99, total_tokens=1000.0))
        assert [reward(t, config) for t in (WRONG, WIDE, SERIAL)] == [0.0] * 3
        assert reward(RIGHT, config) >= 0.01 - 1e-12


def test_children_that_do_not_come_back_earn_a_share_of_the_bonus() -> None:
    config = RewardConfig(Shape.PARL, spawned=0.1, finished=0.2)
    # Of five children one was exhausted and one cancelled, for which it could do nothing.
    assert reward(WIDE, config) == pytest.approx(0.1 + 0.2 * 3 / 4)
    assert reward(SERIAL, config) == 0.0


@pytest.mark.parametrize(
    ("step", "left"), [(0, 1.0), (1, 0.75), (2, 0.5), (4, 0.0), (5, 0.0), (1000, 0.0)]
)
def test_all_but_correctness_fades_out(step: int, left: float) -> None:
    def worth(trace: Trace, config: RewardConfig) -> float:
        return reward(trace, replace(config, anneal=4), step)

    assert worth(RIGHT, RewardConfig()) == 1.0
    assert worth(RIGHT, cost(most=0.9)) == pytest.approx(1 - 0.4 * left)
    assert worth(RIGHT, RewardConfig(Shape.THREADWEAVER)) == pytest.approx(1 + 0.1 * left)
    assert worth(RIGHT, RewardConfig(Shape.PARL)) == pytest.approx(1 + 0.2 * left)
    assert worth(WRONG, RewardConfig(Shape.PARL)) == pytest.approx(0.2 * left)


def test_without_annealing_nothing_fades() -> None:
    assert reward(RIGHT, cost(most=0.9), step=10**6) == reward(RIGHT, cost(most=0.9), step=0)


def test_a_trace_that_sampled_nothing_is_rewarded_like_any_other() -> None:
    empty = trace(thread(0, None, "go"), correct=True)
    assert [reward(empty, RewardConfig(shape)) for shape in Shape] == [1.0] * 4


def test_a_trace_that_the_world_cut_short_has_no_reward() -> None:
    with pytest.raises(AssertionError, match="has no reward"):
        reward(FAILED, RewardConfig())


@pytest.mark.parametrize(
    "bad",
    [
        {"factor": -0.1},
        {"cap": -0.1},
        {"spawned": -0.1},
        {"finished": -0.1},
        {"anneal": -1},
    ],
)
def test_a_price_or_bonus_below_nothing_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="0 or more"):
        RewardConfig(**bad)


@pytest.mark.parametrize("most", [-0.1, 1.0, 2.0])
def test_cost_may_not_take_all_of_a_correct_trace(most: float) -> None:
    with pytest.raises(ConfigError, match=r"most is from 0 up to below 1, not "):
        Prices(most=most)


@pytest.mark.parametrize("price", ["total_tokens", "sequential_tokens", "children"])
def test_a_price_below_nothing_is_refused(price: str) -> None:
    with pytest.raises(ConfigError, match=f"{price} is -1.0: give 0 or more"):
        Prices(**{price: -1.0})
