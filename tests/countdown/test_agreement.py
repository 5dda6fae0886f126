"""Solver, exact check and grader know the same rules: they never disagree on a problem."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from itertools import permutations

import pytest

from apr.countdown import compact
from apr.countdown.grade import grade
from apr.countdown.problem import Path, Problem, Step, solvable
from apr.countdown.solver import SearchConfig, search
from tests.countdown.paths import first_path

FULL = SearchConfig()


def draw(rng: random.Random) -> Problem:
    """Small numbers, so that about half of the problems have a solution."""
    numbers = tuple(rng.randint(1, 15) for _ in range(rng.choice([1, 2, 3, 3, 4, 4])))
    return Problem(numbers, rng.randint(1, 30))


@lru_cache(maxsize=1 << 16)
def brute_force(numbers: tuple[int, ...], target: int) -> bool:
    """Whether it can be solved, by trying everything in the plainest way."""
    if len(numbers) == 1:
        return numbers[0] == target
    for a, b, *rest in permutations(numbers):
        results = [a + b, a * b]
        results += [a - b] if a >= b else []
        results += [a // b] if b and a % b == 0 else []
        for result in results:
            if brute_force(tuple(sorted([result, *rest])), target):
                return True
    return False


def expression(path: Path) -> str:
    """``path`` as one expression; equal numbers may change places, which changes no value."""
    made: dict[int, list[str]] = defaultdict(list)
    text = ""
    for a, op, b, value in path:
        left = made[a].pop() if made[a] else str(a)
        right = made[b].pop() if made[b] else str(b)
        text = f"({left} {op} {right})"
        made[value].append(text)
    return text


def wrong_result(path: Path, rng: random.Random) -> Path:
    i = rng.randrange(len(path))
    return (
        *path[:i],
        path[i]._replace(value=path[i].value + rng.choice([1, 2, 10])),
        *path[i + 1 :],
    )


def foreign_number(path: Path, rng: random.Random) -> Path:
    a, foreign = path[0].a, 1009
    return (Step(a, "+", foreign, a + foreign), *path[1:])


def last_step_missing(path: Path, rng: random.Random) -> Path:
    return path[:-1]


def step_repeated(path: Path, rng: random.Random) -> Path:
    return (*path, rng.choice(path))


def step_too_many(path: Path, rng: random.Random) -> Path:
    return (*path, Step(path[-1].value, "+", 0, path[-1].value))


CORRUPTIONS: list[Callable[[Path, random.Random], Path]] = [
    wrong_result,
    foreign_number,
    last_step_missing,
    step_repeated,
    step_too_many,
]


def spell(path: Path) -> str:
    return "".join(compact.path_pieces(path))


def check_agreement(count: int, seed: int) -> tuple[int, int]:
    """Numbers of problems checked and solved."""
    rng = random.Random(seed)
    num_solved = 0
    for n in range(count):
        problem = draw(rng)
        found = search(problem, FULL, rng)
        solved = found.goal is not None
        assert solvable(problem) == solved, problem
        if len(problem.numbers) < 4 or n % 20 == 0:
            assert brute_force(tuple(sorted(problem.numbers)), problem.target) == solved, problem
        some = first_path(problem.numbers, problem.target)
        assert (some is not None) == solved, problem
        if found.goal is None or not found.goal.path:
            continue
        num_solved += 1
        for path in (found.goal.path, some or ()):
            assert grade(problem, spell(path)).correct, (problem, path)
            assert grade(problem, expression(path)).correct, (problem, path)
        corrupted = rng.choice(CORRUPTIONS)(found.goal.path, rng)
        assert not grade(problem, spell(corrupted)).correct, (problem, corrupted)
    return count, num_solved


def test_agreement_on_random_problems() -> None:
    count, solved = check_agreement(2_000, seed=1)
    assert count // 4 < solved < count


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_agreement_on_a_hundred_thousand_random_problems() -> None:
    check_agreement(100_000, seed=2)
