"""What comparing products finds, beside a plain look at all equations of its kind."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.countdown import compact
from apr.countdown.balance import Balance, Mark, balance, balances, parts
from apr.countdown.grade import grade
from apr.countdown.problem import Numbers, Problem, ProblemSpec, problem

FOUR = (93, 62, 52, 32)
SMALL = st.lists(st.integers(1, 12), min_size=3, max_size=4)
LARGE = st.lists(st.integers(1, 99), min_size=3, max_size=4)


def of(numbers: list[int]) -> Numbers:
    return tuple(sorted(numbers, reverse=True))


def spelled(found: Balance) -> str:
    return "".join(compact.balance_pieces(found))


def equation(numbers: Numbers, target: int) -> bool:
    """Whether any equation of two products holds, over all orders of all numbers."""
    for a, b, c, *rest in permutations((*numbers, target)):
        if len(rest) == 1:
            holds = a * b == c * rest[0]
        else:
            d, e = rest
            holds = a * b in ((c + d) * e, (c - d) * e, c * d - e)
        if holds:
            return True
    return False


def path(found: Balance) -> str:
    assert found.path is not None
    return "".join(compact.path_pieces(found.path))


def test_who_joins_or_makes_up_a_difference() -> None:
    assert parts((9, 5, 3), 24) == [()]
    pairs = [(93, 62), (93, 52), (93, 32), (93, 56), (62, 52), (62, 32), (62, 56), (52, 32)]
    pairs += [(52, 56), (32, 56)]
    assert parts(FOUR, 56) == [*pairs, (93,), (62,), (52,), (32,), (56,)]
    assert parts((9, 9, 5, 5), 9) == [(9, 9), (9, 5), (5, 5), (5, 9), (9,), (5,)]
    assert parts((5,), 5) == parts((5, 2), 7) == parts((1, 2, 3, 4, 5), 6) == []
    assert [b.first for b in balances(FOUR, 56)] == parts(FOUR, 56)


def test_two_numbers_join() -> None:
    """(52 + 32) * 62 = 93 * 56."""
    found = balance(FOUR, 56, (52, 32))
    assert spelled(found) == (
        " 52 + 32 = 84 , 52 - 32 = 20 : 93 62 56"
        " 93 * 62 = 5766 : 84 * 56 = 4704 x 56 * 20 = 1120 x"
        " 93 * 56 = 5208 : 84 * 62 = 5208 !"
    )
    assert path(found) == " 52 + 32 = 84 , 84 * 62 = 5208 , 5208 / 93 = 56"


def test_a_factor_beyond_a_hundred_is_told_by_its_hundred_and_its_rest() -> None:
    """(91 + 27) * 8 = 16 * 59."""
    found = balance((91, 59, 27, 8), 16, (91, 27))
    assert spelled(found) == (
        " 91 + 27 = 118 , 91 - 27 = 64 : 59 8 16"
        " 59 * 8 = 472 : 18 * 16 = 288 , 1600 + 288 = 1888 x 64 * 16 = 1024 x"
        " 59 * 16 = 944 : 18 * 8 = 144 , 800 + 144 = 944 !"
    )
    assert path(found) == " 91 + 27 = 118 , 118 * 8 = 944 , 944 / 59 = 16"
    hundred = spelled(balance((60, 40, 9, 8), 10, (60, 40)))
    assert ": 100 * 10 = 1000 x" in hundred


@pytest.mark.parametrize(
    ("numbers", "target", "joins", "line", "proved"),
    [
        # 60 * 35 = 21 * (77 + 23)
        ((60, 35, 23, 21), 77, 23, " 100 * 21 = 2100 !", " 2100 / 21 = 100 , 100 - 23 = 77"),
        # 60 * 35 = 21 * (123 - 23)
        ((60, 35, 23, 21), 123, 23, " 100 * 21 = 2100 !", " 2100 / 21 = 100 , 100 + 23 = 123"),
        # 60 * 35 = 84 * (90 - 65): the target is what is taken away
        ((90, 84, 60, 35), 65, 90, " 84 * 25 = 2100 !", " 2100 / 84 = 25 , 90 - 25 = 65"),
    ],
)
def test_the_target_joins_a_number(
    numbers: Numbers, target: int, joins: int, line: str, proved: str
) -> None:
    first = (joins, target)
    found = balance(numbers, target, first)
    assert " 60 * 35 = 2100 :" in spelled(found)
    assert spelled(found).endswith(line)
    assert path(found) == f" 60 * 35 = 2100 ,{proved}"


def test_a_number_makes_up_the_difference() -> None:
    """10 * 32 + 55 = 75 * 5."""
    found = balance((75, 55, 32, 5), 10, (55,))
    assert spelled(found) == (
        " : 75 32 5 10"
        " 75 * 32 = 2400 : 10 * 5 = 50 , 55 + 0 = 55 , 2400 + 55 = 2455 x 55 + 50 = 105 x"
        " 75 * 5 = 375 : 32 * 10 = 320 , 75 + 55 = 130 , 375 + 55 = 430 x"
        " 55 + 20 = 75 , 320 + 55 = 375 !"
    )
    assert path(found) == " 75 * 5 = 375 , 375 - 55 = 320 , 320 / 32 = 10"


def test_the_target_makes_up_the_difference() -> None:
    """43 * 41 - 46 * 37 = 61."""
    found = balance((46, 43, 41, 37), 61, (61,))
    assert spelled(found).endswith(
        " 46 * 37 = 1702 : 43 * 41 = 1763 , 61 + 2 = 63 , 1702 + 61 = 1763 !"
    )
    assert path(found) == " 46 * 37 = 1702 , 43 * 41 = 1763 , 1763 - 1702 = 61"


def test_three_numbers() -> None:
    (found,) = balances((75, 50, 40), 60)
    assert spelled(found) == (
        " : 75 50 40 60 75 * 50 = 3750 : 60 * 40 = 2400 x 75 * 40 = 3000 : 60 * 50 = 3000 !"
    )
    assert path(found) == " 75 * 40 = 3000 , 3000 / 50 = 60"


@given(st.one_of(SMALL, LARGE), st.integers(1, 100))
def test_a_hit_is_a_path_and_every_result_is_right(numbers: list[int], target: int) -> None:
    values = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for found in balances(of(numbers), target):
        for a, op, b, value in (*found.joined, *(line.step for line in found.lines)):
            assert a >= b
            assert values[op](a, b) == value
        marks = [line.mark for line in found.lines]
        assert marks.count(Mark.HIT) == (found.path is not None)
        assert Mark.HIT not in marks[:-1]
        compared = [line for line in found.lines if line.mark in (Mark.HIT, Mark.MISS)]
        assert [bool(line.proof) for line in found.lines] == [x in compared for x in found.lines]
        if found.path is not None:
            answer = "".join(compact.path_pieces(found.path))
            assert grade(Problem(tuple(numbers), target), answer).correct, answer


@given(st.one_of(SMALL, LARGE), st.integers(1, 100))
def test_whatever_holds_is_found(numbers: list[int], target: int) -> None:
    found = any(b.path is not None for b in balances(of(numbers), target))
    assert found == equation(of(numbers), target)


def test_every_product_is_of_a_table_up_to_a_hundred() -> None:
    spec = ProblemSpec(low=1, high=99, target_low=10, target_high=100)
    for index in range(50):
        posed = problem(spec, 0, index)
        for found in balances(of(list(posed.numbers)), posed.target):
            steps = [line.step for line in found.lines]
            assert all(step.a <= 100 for step in steps if step.op == "*")
            assert all(step.value <= 199 * 99 for step in steps)
            assert not any(step.op in "-/" for step in steps)
