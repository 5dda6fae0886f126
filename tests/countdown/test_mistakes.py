from __future__ import annotations

import random
from collections.abc import Iterator

from apr.countdown.grade import grade
from apr.countdown.mistakes import FARTHEST, false_path
from apr.countdown.problem import Path, Problem, ProblemSpec, Step, problem
from apr.countdown.solver import SearchConfig, combine, search

SPEC = ProblemSpec(num_numbers=(2, 4), high=30, solvable=None)
FULL = SearchConfig(max_value=300)


def claims() -> Iterator[tuple[Problem, Path]]:
    """False paths out of searches that have met a miss before they ended."""
    for index in range(80):
        posed = problem(SPEC, 0, index)
        found = search(posed, FULL, random.Random(0))
        path = false_path(posed.target, found, random.Random(index))
        if path is not None:
            yield posed, path


def wrong(path: Path) -> list[Step]:
    return [step for step in path if step not in combine(step.a, step.b)]


def test_one_result_is_wrong_and_the_target_is_met_by_it() -> None:
    where: dict[bool, int] = {True: 0, False: 0}
    for posed, path in claims():
        (mistake,) = wrong(path)
        assert path[-1].value == posed.target
        assert not grade(posed, spelled(path)).correct
        assert used(path) == sorted(posed.numbers), "it is wrong in its arithmetic alone"
        where[mistake is path[-1]] += 1
    assert min(where.values()) > 10, "the last result and one before it"


def spelled(path: Path) -> str:
    return " , ".join(f"{a} {op} {b} = {value}" for a, op, b, value in path)


def used(path: Path) -> list[int]:
    """Numbers that the path takes and does not make itself."""
    left = [n for step in path for n in (step.a, step.b)]
    for step in path[:-1]:
        left.remove(step.value)
    return sorted(left)


def test_a_result_before_the_last_is_not_far_from_the_truth() -> None:
    for _, path in claims():
        (mistake,) = wrong(path)
        if mistake is not path[-1]:
            truth = {s.op: s.value for s in combine(mistake.a, mistake.b)}[mistake.op]
            assert 0 < abs(mistake.value - truth) <= FARTHEST


def test_near_misses_come_first() -> None:
    """The last result alone: a path of one step has no other."""
    found = search(Problem((50, 3), 52), FULL, random.Random(0))
    paths = [false_path(52, found, random.Random(seed)) for seed in range(40)]
    ops = [path[0].op for path in paths if path]
    assert ops.count("+") > 20, "53 is nearer than 47 and 150"


def test_without_a_complete_expression_there_is_nothing_to_misstate() -> None:
    found = search(Problem((5,), 5), FULL, random.Random(0))
    assert false_path(5, found, random.Random(0)) is None
    assert false_path(6, found, random.Random(0)) is None
