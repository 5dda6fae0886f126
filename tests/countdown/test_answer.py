from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.countdown import compact
from apr.countdown.answer import canonical, expression, read_answers, spell
from apr.countdown.grade import grade
from apr.countdown.problem import Problem
from apr.countdown.solver import SearchConfig, search
from apr.errors import DataError
from tests.countdown.paths import first_path

numbers = st.lists(st.integers(1, 12), min_size=2, max_size=4)


@given(numbers, st.integers(1, 60))
def test_an_expression_is_as_right_as_the_steps_it_stands_for(
    numbers: list[int], target: int
) -> None:
    path = first_path(numbers, target)
    if path is not None:
        assert grade(Problem(tuple(numbers), target), expression(path)).correct


@given(numbers, st.integers(1, 60))
def test_the_solvers_paths_can_be_spelled(numbers: list[int], target: int) -> None:
    posed = Problem(tuple(numbers), target)
    goal = search(posed, SearchConfig(), random.Random(0)).goal
    if goal is not None:
        answer = "".join(compact.path_pieces(goal.path))
        assert grade(posed, spell(answer)).correct


@pytest.mark.parametrize(
    ("answer", "spelled"),
    [
        (" 5 + 3 = 8 , 8 * 9 = 72", "(5 + 3) * 9"),
        (" 8 * 9 = 72 , 72 + 5 = 77", "8 * 9 + 5"),
        ("53 - 31 = 22, 22 / 22 = 1, 26 + 1 = 27", "26 + (53 - 31) / 22"),
        ("9 - 3 = 6, 10 - 6 = 4", "10 - (9 - 3)"),
        ("8 / 4 = 2, 16 / 2 = 8", "16 / (8 / 4)"),
        ("8 / 4 = 2, 16 * 2 = 32", "16 * 8 / 4"),
        ("2 + 2 = 4, 4 * 4 = 16", "(2 + 2) * 4"),
        ("26+(53-31)/22", "26 + (53 - 31) / 22"),
        ("24", None),
        ("", None),
        ("nonsense", None),
        ("5 + 3 = 9", None),
    ],
)
def test_spelling(answer: str, spelled: str | None) -> None:
    assert spell(answer) == spelled


@pytest.mark.parametrize(
    ("form", "answers"),
    [
        ("(3 + 5) * 9", [" 5 + 3 = 8 , 9 * 8 = 72", " 3 + 5 = 8 , 8 * 9 = 72", "9*(3+5)"]),
        ("10 + 2 + 5 - 3", ["10 + 5 - 3 + 2", "(5 - 3) + (10 + 2)", "10 - (3 - 2) + 5"]),
        ("16 * 8 / 4", ["16 / 4 * 8", "8 / 4 = 2, 16 * 2 = 32", "16 * (8 / 4)"]),
        ("1 * 4 * 8 / 2", ["8 / (2 / 1) * 4"]),
        ("10 - 3", ["10 - 3 = 7"]),
        ("24", [" 24", "024"]),
        # What is left unused is part of what is claimed.
        ("3 + 5, 9 - 2", ["5 + 3 = 8, 9 - 2 = 7", "9 - 2 = 7, 3 + 5 = 8"]),
        # What cannot be read, or is wrong, is its own text.
        ("5 + 3 = 9", ["5 + 3 = 9", " 5  + 3 = 9\n"]),
        ("who knows", ["who knows "]),
        ("", ["", " "]),
    ],
)
def test_equal_claims_have_one_form(form: str, answers: list[str]) -> None:
    assert {canonical(answer) for answer in answers} == {form}


@pytest.mark.parametrize(
    ("one", "other"),
    [("9 - 3", "9 + 3"), ("8 / 4 / 2", "8 / (4 / 2)"), ("(5 + 3) * 9", "5 + 3 * 9")],
)
def test_other_claims_have_another(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


@given(numbers, st.integers(1, 60), st.randoms())
def test_a_canonical_form_is_as_right_as_what_it_stands_for(
    numbers: list[int], target: int, rng: random.Random
) -> None:
    path = first_path(numbers, target)
    if path is None:
        return
    steps = [f"{a} {op} {b} = {value}" for a, op, b, value in path]
    turned = [
        f"{b} {op} {a} = {value}" if op in "+*" and rng.random() < 0.5 else step
        for step, (a, op, b, value) in zip(steps, path, strict=True)
    ]
    form = canonical(", ".join(steps))
    assert canonical(", ".join(turned)) == form
    assert grade(Problem(tuple(numbers), target), form).correct


def test_a_result_that_equals_a_number_takes_its_turn() -> None:
    posed = Problem((8, 5, 3, 2), 32)
    spelled = spell("5 + 3 = 8, 8 + 8 = 16, 16 * 2 = 32")
    assert spelled == "(5 + 3 + 8) * 2"
    assert grade(posed, spelled).correct


def test_answers_are_read_in_order() -> None:
    lines = [
        '{"numbers": [3, 5], "target": 8, "answer": "3+5"}',
        " ",
        '{"numbers": [3], "target": 4, "answer": null, "more": 1}',
    ]
    assert list(read_answers(lines, "here")) == [
        (Problem((3, 5), 8), "3+5"),
        (Problem((3,), 4), None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        '{"numbers": [3], "target": 3}',
        '{"numbers": [], "target": 3, "answer": ""}',
        '{"numbers": 3, "target": 3, "answer": "3"}',
        '{"numbers": [3], "target": 3, "answer": 3}',
    ],
)
def test_what_is_no_answer_is_named(line: str) -> None:
    good = '{"numbers": [3, 5], "target": 8, "answer": "3+5"}'
    with pytest.raises(DataError, match="here, line 2"):
        list(read_answers([good, line], "here"))
