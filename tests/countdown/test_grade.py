from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.countdown.grade import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, grade
from apr.countdown.problem import Problem

PROBLEM = Problem((26, 53, 31, 22), 27)

PAPER = """\
Moving to Node #0
Current State: 62:[5, 50, 79, 27], Operations: []
Exploring Operation: 79-27=52, Resulting Numbers: [5, 50, 52]
Generated Node #0,3: 62:[5, 50, 52] Operation: 79-27=52
Moving to Node #0,3
Current State: 62:[5, 50, 52], Operations: ['79-27=52']
Exploring Operation: 50/5=10, Resulting Numbers: [52, 10]
Generated Node #0,3,1: 62:[52, 10] Operation: 50/5=10
Moving to Node #0,3,1
Current State: 62:[52, 10], Operations: ['79-27=52', '50/5=10']
Exploring Operation: 52+10=62, Resulting Numbers: [62]
62,62 equal: Goal Reached"""
PAPER_PROBLEM = Problem((5, 50, 79, 27), 62)


@pytest.mark.parametrize(
    "answer",
    [
        "26+(53-31)/22",
        " 26 + ( 53 - 31 ) / 22 ",
        "(((26)))+((53-31)/22)",
        "(53 − 31) ÷ 22 + 26",
        "26+(53-31)/22 = 27",
        " 53 - 31 = 22 , 22 / 22 = 1 , 26 + 1 = 27",
        "53-31=22,22/22=1,1+26=27",
        "(53 - 31) / 22 = 1, 1 + 26 = 27",
        "\n53-31=22 ,\n22/22=1 ,\n1+26=27\n",
    ],
)
def test_right_answers(answer: str) -> None:
    assert grade(PROBLEM, answer) == (True, "correct")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "No solution is claimed"),
        ("", "Not every number is used"),
        ("27", "Not every number is used"),
        ("26 + 1", "1 is not there"),
        ("53 - 26", "Not every number is used: 31, 22, 27 are left"),
        ("26 + (53 - 31) / 22 + 26 - 26", "26 is not there"),
        ("26 + 53 - 31 - 22", "It makes 26, not 27"),
        ("26 + (31 - 53) / 22", "31 - 53 is negative"),
        ("26 + (53 - 22) / 31 * 0", "0 is not there"),
        ("26 / 22 + 53 - 31", "26 / 22 is no whole number"),
        ("26 / (53 - 53)", "26 / 0 is no whole number"),
        ("-26 + 53", "A number is missing before '-'"),
        ("26 ** 2", "A number is missing before '*'"),
        ("26 53", "'53' cannot stand"),
        ("26 + (53 - 31 / 22", "no whole number"),
        ("26 + (53 - 31", "A bracket is not closed"),
        ("26 + )", "A number is missing before ')'"),
        ("26 +", "It breaks off"),
        ("26.0 + 53", "It cannot be read from '.0 + 53' on"),
        ("__import__('os')", "It cannot be read"),
        ("26 + (53 - 31) / 22 = 28", "It says '28' where it makes 27"),
        ("26 + (53 - 31) / 22 = x", "It cannot be read"),
        ("26 + (53 - 31) / 22 =", "It says ''"),
        (" 53 - 31 = 21 , 22 / 21 = 1 , 26 + 1 = 27", "It says '21' where it makes 22"),
        (" 53 - 31 = 22 , 22 / 22 = 1", "Not every number is used"),
        (" 53 - 31 = 22 , 22 / 22 = 1 , 26 + 1 = 27 ,", "It breaks off"),
        (" 53 - 31 = 22 , 22 / 22 = 1 , 26 + 1", "A step is not written"),
        (" 53 - 31 , 22 / 22 = 1 , 26 + 1 = 27", "A step is not written"),
        (" 27 = 27 , 26 = 26", "A step is not written"),
        (" 53 - 31 = 22 22 / 22 = 1", "'22' cannot stand"),
        ("２６+(53-31)/22", "It cannot be read"),
        ("24,27 equal: Goal Reached", "It says that 24 equals 27"),
    ],
)
def test_wrong_answers(answer: str | None, reason: str) -> None:
    verdict = grade(PROBLEM, answer)
    assert not verdict.correct
    assert reason in verdict.reason
    assert verdict.reason.endswith(".")


def test_a_number_counts_as_often_as_it_is_given() -> None:
    twice = Problem((6, 6, 2), 24)
    assert grade(twice, "6 * (6 - 2)").correct
    assert grade(twice, " 6 - 2 = 4 , 6 * 4 = 24").correct
    assert not grade(Problem((6, 2, 2), 24), "6 * (6 - 2)").correct
    assert not grade(twice, "6 * 2 * 2").correct
    # A result that equals a number does not stand in for it.
    assert not grade(Problem((2, 3, 5), 10), "5 + 5").correct
    assert grade(Problem((2, 3, 5), 10), "2 + 3 + 5").correct


def test_a_problem_of_one_number() -> None:
    single = Problem((5,), 5)
    assert grade(single, "5").correct
    assert grade(single, " 5").correct
    assert grade(single, "").correct
    assert not grade(single, "7").correct
    assert not grade(Problem((5,), 7), "7").correct
    path = "Moving to Node #0\nCurrent State: 5:[5], Operations: []\n5,5 equal: Goal Reached"
    assert grade(single, path).correct


def test_zero_is_a_result_like_any_other() -> None:
    assert grade(Problem((7, 7, 9, 24), 24), "(7 - 7) * 9 + 24").correct
    assert grade(Problem((7, 7, 9, 24), 24), "(7 - 7) / 9 + 24").correct
    assert not grade(Problem((7, 7, 9, 24), 24), "9 / (7 - 7) + 24").correct


def test_a_path_in_the_paper_text() -> None:
    assert grade(PAPER_PROBLEM, PAPER) == (True, "correct")
    assert grade(PAPER_PROBLEM, f"\n{PAPER}\n").correct
    assert not grade(Problem((5, 50, 79, 28), 62), PAPER).correct
    assert not grade(Problem((5, 50, 79, 27, 1), 62), PAPER).correct
    assert not grade(Problem((5, 50, 79, 27), 61), PAPER).correct


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("79-27=52, R", "79-27=51, R", "It says '51' where it makes 52"),
        ("[5, 50, 52]\nG", "[5, 50, 53]\nG", "Step 1 leaves"),
        ("[52, 10]\nG", "[52, 10, 5]\nG", "Step 2 leaves"),
        ("[62]", "[]", "cannot be read"),
        ("50/5=10, R", "50/10=5, R", "10 is not there"),
        ("52+10=62, R", "52+10+0=62, R", "cannot be read"),
        ("62,62 equal: Goal Reached", "62,62 equal: Goal Reached\nand so on", "cannot be read"),
        ("62,62 equal: Goal Reached", "52,52 equal: Goal Reached", "It says 52 where 62 is left"),
        ("62,62 equal: Goal Reached", "62,62 unequal: No Solution", "does not end"),
        ("Moving to Node #0,3\n", "<Calling Sub Searches>\n", "cannot be read"),
        ("Exploring Operation: 52+10=62, Resulting Numbers: [62]\n", "", "52, 10 are left"),
    ],
)
def test_flaws_of_a_path_in_the_paper_text(old: str, new: str, reason: str) -> None:
    assert old in PAPER
    verdict = grade(PAPER_PROBLEM, PAPER.replace(old, new))
    assert not verdict.correct
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "answer",
    [
        "(" * MAX_LENGTH,
        "(" * 400 + "26" + ")" * 400,
        "1" * MAX_LENGTH,
        "9" * MAX_DIGITS + "*" + "9" * MAX_DIGITS,
        "+".join(["1"] * (MAX_LENGTH // 2)),
        "*".join(["99"] * (MAX_LENGTH // 3)),
        "1+" * MAX_LENGTH,
        "1=" * (MAX_LENGTH // 2),
        "," * MAX_LENGTH,
        " " * MAX_LENGTH,
        "\ud800",
        "\x00",
        "Goal Reached\n" * 3000,
        "Exploring Operation: " + "1" * 40_000 + "+1=2, Resulting Numbers: [3]",
        "Exploring Operation: 1+1=2, Resulting Numbers: ["
        + "9" * 5000
        + "]\n2,2 equal: Goal Reached",
        "1" * 5000 + "," + "1" * 5000 + " equal: Goal Reached",
    ],
)
def test_hostile_text_is_only_wrong(answer: str) -> None:
    assert not grade(PROBLEM, answer).correct


def test_brackets_up_to_the_bound_are_read() -> None:
    nested = "(" * MAX_DEPTH + "26" + ")" * MAX_DEPTH
    assert grade(PROBLEM, f"{nested}+(53-31)/22").correct


def test_huge_problems_do_not_raise() -> None:
    huge = Problem((10**6000, 10**6000), 10**6000)
    for answer in (None, "", "1", "1+1", "1,1 equal: Goal Reached"):
        assert not grade(huge, answer).correct
    assert not grade(Problem((10**6000,), 1), "").correct


PIECES = [
    *("26", "53", "31", "22", "27", "0", "1", " ", "+", "-", "*", "/", "(", ")", "=", ",", "\n"),
    *("Exploring Operation: 53-31=22, Resulting Numbers: [26, 22, 22]\n", "Moving to Node #0\n"),
    *("Current State: ", "Generated Node #0: ", "27,27 equal: Goal Reached", "×", "½", "²", "٣"),
]


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)))
def test_no_text_raises(answer: str) -> None:
    verdict = grade(PROBLEM, answer)
    assert verdict.correct == (verdict.reason == "correct")


@given(
    st.sampled_from("+-*/").flatmap(
        lambda op: st.tuples(st.integers(0, 200), st.just(op), st.integers(0, 200))
    )
)
def test_one_step_is_judged_as_arithmetic_does(step: tuple[int, str, int]) -> None:
    a, op, b = step
    exact = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else -1}[op]
    allowed = exact >= 0 and exact == int(exact) and min(a, b) > 0
    problem = Problem((max(a, 1), max(b, 1)), max(1, int(exact)))
    assert grade(problem, f"{a}{op}{b}").correct == (allowed and exact > 0)
