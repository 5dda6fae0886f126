from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from apr.countdown.problem import (
    Problem,
    ProblemSpec,
    Split,
    problem,
    reaches,
    read_problems,
    solvable,
    split_of,
)
from apr.errors import DataError, ProblemError
from tests.countdown.paths import first_path

PAPER = ProblemSpec()


@pytest.mark.parametrize("numbers", [(), (0,), (-3, 4), (True, 2), (1.5,), ("3",)])
def test_numbers_that_cannot_be_used_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ProblemError):
        Problem(numbers, 10)


@pytest.mark.parametrize("target", [0, -1, True, 2.0, None])
def test_targets_that_cannot_be_reached_are_refused(target: int) -> None:
    with pytest.raises(ProblemError, match="no target"):
        Problem((1, 2), target)


@pytest.mark.parametrize(
    "ranges",
    [
        {"num_numbers": (0, 3)},
        {"num_numbers": (4, 3)},
        {"low": 0},
        {"low": 9, "high": 8},
        {"target_low": 0},
        {"target_low": 50, "target_high": 40},
    ],
)
def test_ranges_that_hold_nothing_are_refused(ranges: dict[str, int]) -> None:
    with pytest.raises(ProblemError, match="range from 1 up"):
        ProblemSpec(**ranges)  # type: ignore[arg-type]


def test_a_problem_depends_on_seed_and_index_alone() -> None:
    forward = [problem(PAPER, 3, i) for i in range(50)]
    backward = [problem(PAPER, 3, i) for i in reversed(range(50))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 50
    assert forward != [problem(PAPER, 4, i) for i in range(50)]


def test_a_problem_is_the_same_in_every_process() -> None:
    code = (
        "from apr.countdown.problem import *;"
        "print([problem(ProblemSpec(), 3, i) for i in range(5)])"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == str([problem(PAPER, 3, i) for i in range(5)])


def test_a_problem_keeps_to_its_spec() -> None:
    spec = ProblemSpec((2, 5), low=3, high=12, target_low=20, target_high=40)
    posed = [problem(spec, 0, i) for i in range(300)]
    assert {len(p.numbers) for p in posed} == {2, 3, 4, 5}
    assert {n for p in posed for n in p.numbers} == set(range(3, 13))
    assert all(20 <= p.target <= 40 and solvable(p) for p in posed)


def test_solvable_can_be_asked_for_either_way() -> None:
    for want in (True, False):
        spec = ProblemSpec((3, 3), solvable=want)
        assert all(solvable(problem(spec, 0, i)) is want for i in range(50))
    either = ProblemSpec((3, 3), solvable=None)
    assert {solvable(problem(either, 0, i)) for i in range(200)} == {True, False}


def test_a_spec_that_no_problem_fits_is_refused() -> None:
    impossible = ProblemSpec((1, 1), low=1, high=2, target_low=50, target_high=60)
    with pytest.raises(ProblemError, match="widen its ranges"):
        problem(impossible, 0, 0)


def test_splits_share_no_multiset_of_numbers() -> None:
    spec = ProblemSpec((3, 3), high=12, solvable=None)
    numbers = {
        split: {tuple(sorted(problem(spec, 0, i, split).numbers)) for i in range(1_000)}
        for split in Split
    }
    assert all(numbers.values())
    assert not numbers[Split.TRAIN] & numbers[Split.TEST]
    assert not numbers[Split.TRAIN] & numbers[Split.VALID]
    assert not numbers[Split.VALID] & numbers[Split.TEST]


def test_a_split_does_not_depend_on_the_order_of_numbers() -> None:
    assert split_of((3, 1, 2)) is split_of((1, 2, 3)) is split_of([2, 3, 1])


def test_splits_have_their_sizes() -> None:
    splits = [split_of((a, b, c)) for a in range(20) for b in range(20) for c in range(20)]
    assert 0.07 < splits.count(Split.TEST) / len(splits) < 0.13
    assert 0.03 < splits.count(Split.VALID) / len(splits) < 0.07


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no such"):
        problem(PAPER, 0, 0, "no such split")


@pytest.mark.parametrize(
    ("numbers", "target", "expected"),
    [
        ((5,), 5, True),
        ((5,), 6, False),
        ((3, 3), 1, True),
        ((3, 3), 0, True),
        ((1, 2), 4, False),
        ((26, 53, 31, 22), 27, True),
        ((7, 7, 9, 24), 24, True),
        ((1, 1, 1, 1), 50, False),
        ((100, 75, 50, 25, 6, 3), 952, True),
        ((1, 1, 1, 1, 1, 1), 99, False),
        ((99, 98, 97, 96, 95), 99 * 98 * 97 * 96 * 95, True),
    ],
)
def test_reaches(numbers: tuple[int, ...], target: int, expected: bool) -> None:
    assert reaches(numbers, target) is expected
    path = first_path(numbers, target)
    assert (path is not None) is expected
    if path:
        assert len(path) == len(numbers) - 1
        assert path[-1].value == target


def test_problems_are_read_from_lines_or_a_list(tmp_path: Path) -> None:
    items = [{"numbers": [3, 5, 8], "target": 24}, {"numbers": [1], "target": 1}]
    lines, whole = tmp_path / "p.jsonl", tmp_path / "p.json"
    lines.write_text("\n\n".join(map(json.dumps, items)) + "\n")
    whole.write_text(json.dumps(items))
    expected = [Problem((3, 5, 8), 24), Problem((1,), 1)]
    assert read_problems(lines) == read_problems(str(whole)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"numbers": [3], "target": 3}\nnonsense', "line 2: not JSON"),
        ('{"numbers": [3]}', "line 1: not a problem"),
        ('{"numbers": 3, "target": 3}', "line 1: not a problem"),
        ('{"numbers": [0], "target": 3}', "line 1: number 0 cannot be used"),
        ("[7]", "item 1: not a problem"),
        ("[" * 100_000, "not JSON"),
        ("3", "line 1: not a problem"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_problems(path)


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    line = '{"numbers": [3], "target": 3, "note": "a\u2028b\x85c"}'
    path.write_text(f"{line}\n{line}\n", encoding="utf-8", newline="\r\n")
    assert read_problems(path) == 2 * [Problem((3,), 3)]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "p.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "nowhere.jsonl", binary, tmp_path):
        with pytest.raises(DataError, match="cannot read problems"):
            read_problems(path)


@pytest.mark.parametrize(
    ("numbers", "target", "covered"),
    [
        ((1, 2, 20), 10, True),
        ((20, 20, 20), 50, True),
        ((1, 2, 21), 10, False),
        ((1, 2, 3), 9, False),
        ((1, 2, 3), 51, False),
        ((1, 2), 10, False),
        ((1, 2, 3, 4), 10, False),
    ],
)
def test_a_kind_of_problem_says_what_it_covers(
    numbers: tuple[int, ...], target: int, covered: bool
) -> None:
    spec = ProblemSpec(num_numbers=(3, 3), high=20, target_high=50)
    assert spec.covers(Problem(numbers, target)) is covered
