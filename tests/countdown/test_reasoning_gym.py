"""Problems of ``reasoning-gym``, an independent library, and its grader beside ours.

Both say the same of right answers, wrong values, numbers used twice or not at all, and text that is
no expression. Where they differ is listed below. Needs ``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apr.countdown.answer import expression
from apr.countdown.grade import grade
from apr.countdown.problem import Problem, read_problems
from apr.countdown.solver import SearchConfig, search
from tests.countdown.paths import first_path

reasoning_gym = pytest.importorskip(
    "reasoning_gym", reason="reasoning-gym is not installed: pip install -e '.[bench]'"
)

Entry = dict[str, Any]


@pytest.fixture(scope="module")
def dataset() -> Any:
    return reasoning_gym.create_dataset(
        "countdown", size=100, seed=0, min_numbers=3, min_target=10, max_target=999
    )


@pytest.fixture(scope="module")
def entries(dataset: Any) -> list[Entry]:
    """Made once, since their data set draws an entry again each time."""
    return list(dataset)


def entry_of(posed: Problem) -> Entry:
    return {"metadata": {"numbers": list(posed.numbers), "target": posed.target}}


def problem_of(entry: Entry) -> Problem:
    return Problem(tuple(entry["metadata"]["numbers"]), entry["metadata"]["target"])


def solution(posed: Problem) -> str:
    """By the solver up to four numbers, beyond which a full search is long."""
    if len(posed.numbers) > 4:
        path = first_path(posed.numbers, posed.target)
    else:
        goal = search(posed, SearchConfig(), random.Random(0)).goal
        path = goal.path if goal is not None else None
    assert path is not None, f"{posed} was not solved"
    return expression(path)


def verdicts(dataset: Any, posed: Problem, answer: str) -> tuple[bool, bool]:
    """Theirs, and ours."""
    return dataset.score_answer(answer, entry_of(posed)) == 1.0, grade(posed, answer).correct


def test_their_problems_are_read_in_order(entries: list[Entry], tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(entry["metadata"]) + "\n" for entry in entries))
    assert read_problems(path) == [problem_of(entry) for entry in entries]


def test_both_graders_accept_our_solutions(dataset: Any, entries: list[Entry]) -> None:
    for posed in map(problem_of, entries):
        assert verdicts(dataset, posed, solution(posed)) == (True, True)


WRONG: dict[str, Callable[[Problem, str], tuple[Problem, str]]] = {
    "value": lambda p, x: (Problem(p.numbers, p.target + 1), x),
    "number used twice": lambda p, x: (p, f"({x}) * {p.numbers[0]} / {p.numbers[0]}"),
    "number not used": lambda p, x: (Problem((*p.numbers, 7), p.target), x),
    "number not given": lambda p, x: (Problem((*p.numbers[:-1], 10**6), p.target), x),
    "target itself": lambda p, x: (p, str(p.target)),
    "bracket too many": lambda p, x: (p, f"{x})"),
    "bracket open": lambda p, x: (p, f"({x}"),
    "operation missing": lambda p, x: (p, " ".join(map(str, p.numbers))),
    "operand missing": lambda p, x: (p, f"{x} +"),
    "words": lambda p, x: (p, f"The answer is {x}."),
    "nothing": lambda p, x: (p, ""),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_both_graders_reject_what_is_wrong(
    dataset: Any, entries: list[Entry], spoil: Callable[[Problem, str], tuple[Problem, str]]
) -> None:
    for entry in entries:
        posed = problem_of(entry)
        path = first_path(posed.numbers, posed.target)
        assert path is not None
        posed, answer = spoil(posed, expression(path))
        assert verdicts(dataset, posed, answer) == (False, False)


def test_their_solutions_are_right_unless_they_go_below_zero(
    dataset: Any, entries: list[Entry]
) -> None:
    """Which they may there; here every intermediate result is a whole number from 0 up."""
    num_right = 0
    for entry in entries:
        assert dataset.score_answer(entry["answer"], entry) == 1.0
        verdict = grade(problem_of(entry), entry["answer"])
        num_right += verdict.correct
        below_zero = ("is negative.", "A number is missing before '-'.")
        assert verdict.correct or verdict.reason.endswith(below_zero)
    assert num_right > len(entries) / 2


@pytest.mark.parametrize(
    ("numbers", "target", "answer"),
    [
        pytest.param((2, 3, 9), 8, "2 - 3 + 9", id="a negative result on the way"),
        pytest.param((2, 7), 5, "-2 + 7", id="a sign in place of an operation"),
        pytest.param((3, 3, 8, 8), 24, "8 / (3 - 8 / 3)", id="a fraction on the way"),
        pytest.param((2, 5), 32, "2 ** 5", id="a power"),
        pytest.param((2, 4, 7), 1, "7 % 4 - 2", id="a remainder"),
        pytest.param((3, 4), 10, "3! + 4", id="a factorial"),
        pytest.param((4, 9), 7, "sqrt(9) + 4", id="a function, since the text is evaluated"),
        pytest.param((1, 5, 8), 12, "1.5 * 8", id="a decimal, taken for two numbers"),
        pytest.param((1, 99_999), 100_001, "99999 + 1", id="a near miss, within 1 in 100,000"),
        pytest.param((3, 5), 8, "3 + 5 # certainly", id="a comment"),
    ],
)
def test_where_theirs_is_laxer(
    dataset: Any, numbers: tuple[int, ...], target: int, answer: str
) -> None:
    assert verdicts(dataset, Problem(numbers, target), answer) == (True, False)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("(3 + 5) * 8 = 64", id="the result is stated"),
        pytest.param("3 + 5 = 8 , 8 * 8 = 64", id="a path"),
        pytest.param("(3 + 5) × 8", id="another sign"),
        pytest.param("(03 + 5) * 8", id="a leading zero"),
    ],
)
def test_where_ours_reads_more(dataset: Any, answer: str) -> None:
    assert verdicts(dataset, Problem((3, 5, 8), 64), answer) == (False, True)
