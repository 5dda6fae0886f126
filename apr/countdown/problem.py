"""Countdown problems: their values, an exact check for a solution, and a stream of them.

A problem is a multiset of numbers and a target. Every number is to be used exactly once; sums,
products, differences that are not negative and divisions without remainder are allowed (Pan et al.,
2504.15466, section 4.1). Which split a problem belongs to is decided by its numbers alone, so no
problem is tested on whose numbers were posed in training, whatever the target. What a search comes
to on its way, three numbers after one step from four, may be any numbers.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from apr.errors import DataError, ProblemError

MAX_DRAWS = 100_000
FORWARD_SIZE = 3


class Step(NamedTuple):
    """One operation, ``a op b = value``."""

    a: int
    op: str  # one of + - * /
    b: int
    value: int


Path = tuple[Step, ...]
Numbers = tuple[int, ...]


def divisible(a: int, b: int) -> bool:
    """Whether ``a / b`` is a whole number."""
    return b != 0 and a % b == 0


@dataclass(frozen=True, slots=True)
class Problem:
    """Reach ``target`` from ``numbers``, each used exactly once."""

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        if not self.numbers:
            raise ProblemError("a problem needs numbers: give at least one")
        for n in self.numbers:
            if not _is_positive(n):
                raise ProblemError(f"number {n!r} cannot be used: give whole numbers from 1 up")
        if not _is_positive(self.target):
            raise ProblemError(
                f"target {self.target!r} is no target: give a whole number from 1 up"
            )


def _is_positive(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n > 0


class Split(StrEnum):
    """Disjoint parts of all problems, by their numbers."""

    TRAIN = "train"
    VALID = "valid"
    """1 in 20."""
    TEST = "test"
    """1 in 10."""


@dataclass(frozen=True, slots=True)
class ProblemSpec:
    """Which problems to draw. Ranges are inclusive."""

    num_numbers: tuple[int, int] = (4, 4)
    """How many numbers a problem has, drawn evenly from this range."""
    low: int = 1
    """Smallest number."""
    high: int = 99
    """Largest number."""
    target_low: int = 10
    """Smallest target."""
    target_high: int = 100
    """Largest target."""
    solvable: bool | None = True
    """True: every problem has a solution; False: none has; None: either."""

    def __post_init__(self) -> None:
        ranges = {
            "num_numbers": self.num_numbers,
            "low and high": (self.low, self.high),
            "target_low and target_high": (self.target_low, self.target_high),
        }
        for name, (low, high) in ranges.items():
            if not 1 <= low <= high:
                raise ProblemError(f"{name} must be a range from 1 up, not {low} to {high}")

    def covers(self, problem: Problem) -> bool:
        """Whether ``problem`` is of this kind, its solvability aside."""
        low, high = self.num_numbers
        return (
            low <= len(problem.numbers) <= high
            and all(self.low <= n <= self.high for n in problem.numbers)
            and self.target_low <= problem.target <= self.target_high
        )

    def __str__(self) -> str:
        low, high = self.num_numbers
        count = f"{low}" if low == high else f"{low} to {high}"
        return (
            f"{count} numbers from {self.low} to {self.high}, "
            f"targets from {self.target_low} to {self.target_high}"
        )


def problem(spec: ProblemSpec, seed: int, index: int, split: Split | str = Split.TRAIN) -> Problem:
    """The problem that ``seed`` and ``index`` name, the same in any order and any process.

    Raises:
        ProblemError: no problem of this kind turned up in ``MAX_DRAWS`` draws.
    """
    split = Split(split)
    for draw in range(MAX_DRAWS):
        numbers, target = _draw(spec, f"{seed}/{index}/{draw}")
        if split_of(numbers) is not split:
            continue
        if spec.solvable is None or reaches(numbers, target) is spec.solvable:
            return Problem(numbers, target)
    raise ProblemError(
        f"no problem in the {split} split with {spec} came up in {MAX_DRAWS} draws: "
        "widen its ranges"
    )


def first_problem(
    spec: ProblemSpec,
    seed: int,
    index: int,
    split: Split | str,
    holds: Callable[[Problem], bool],
    kind: str,
    draws: int = MAX_DRAWS,
) -> Problem:
    """The first problem for which ``holds``, of a series of its own that begins with ``index``.

    Args:
        kind: what it is then, and what to do where none is, to say so.

    Raises:
        ProblemError: none of ``draws`` problems is like that.
    """
    for draw in range(draws):
        # Far beyond the indices that anybody counts to, so that no other series poses the same.
        posed = problem(spec, seed, index + (draw << 40), split)
        if holds(posed):
            return posed
    raise ProblemError(f"of {draws} problems with {spec} none is {kind}")


def _draw(spec: ProblemSpec, key: str) -> tuple[tuple[int, ...], int]:
    # A hash as the generator: nothing to seed, and the same numbers under every Python and numpy.
    most = spec.num_numbers[1]
    raw = hashlib.shake_128(key.encode()).digest(8 * (most + 2))
    size, target, *words = struct.unpack(f"<{most + 2}Q", raw)
    count = _within(size, *spec.num_numbers)
    numbers = tuple(_within(word, spec.low, spec.high) for word in words[:count])
    return numbers, _within(target, spec.target_low, spec.target_high)


def _within(word: int, low: int, high: int) -> int:
    return low + word % (high - low + 1)


def split_of(numbers: Iterable[int]) -> Split:
    """The split that problems with these numbers belong to, in whatever order they stand."""
    key = ",".join(map(str, sorted(numbers)))
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % 20
    if bucket < 2:
        return Split.TEST
    return Split.VALID if bucket == 2 else Split.TRAIN


def solvable(problem: Problem) -> bool:
    """Whether ``problem`` has a solution. Exact; under a second up to six numbers."""
    return reaches(problem.numbers, problem.target)


def reaches(numbers: tuple[int, ...], target: int) -> bool:
    """Whether ``target`` (0 or more) can be made of all of ``numbers``.

    Meets in the middle: what small parts of the numbers make is worked out forwards, what the rest
    would then have to make backwards.
    """
    known = {1 << i: {n} for i, n in enumerate(numbers)}
    return _meets((1 << len(numbers)) - 1, {target}, known)


def _meets(part: int, goals: set[int], known: dict[int, set[int]]) -> bool:
    """Whether the numbers in the bit set ``part`` make one of ``goals``."""
    if part.bit_count() <= FORWARD_SIZE:
        return not goals.isdisjoint(_makes(part, known))
    for small, large in _halves(part):
        wanted = _wanted(goals, _makes(small, known))
        if wanted is None or _meets(large, wanted, known):
            return True
    return False


def _halves(part: int) -> Iterator[tuple[int, int]]:
    """Every way to cut ``part`` in two, once, the smaller half first."""
    lowest = part & -part
    rest = part ^ lowest
    other = rest
    while other:
        one = part ^ other
        yield (one, other) if one.bit_count() <= other.bit_count() else (other, one)
        other = (other - 1) & rest


def _makes(part: int, known: dict[int, set[int]]) -> set[int]:
    """Everything the numbers in ``part`` make, kept in ``known``."""
    if part not in known:
        made: set[int] = set()
        for small, large in _halves(part):
            for a in _makes(small, known):
                for b in _makes(large, known):
                    made.add(a + b)
                    made.add(a * b)
                    made.add(a - b if a > b else b - a)
                    if b and a % b == 0:
                        made.add(a // b)
                    if a and b % a == 0:
                        made.add(b // a)
        known[part] = made
    return known[part]


def _wanted(goals: set[int], made: set[int]) -> set[int] | None:
    """What has to be combined with one of ``made`` to get one of ``goals``; None: anything."""
    wanted: set[int] = set()
    for goal in goals:
        for value in made:
            wanted.add(goal + value)
            wanted.add(goal - value if goal > value else value - goal)
            if value:
                wanted.add(goal * value)
                if goal % value == 0:
                    wanted.add(goal // value)
                if goal and value % goal == 0:
                    wanted.add(value // goal)
            elif not goal:
                return None
    return wanted


def read_problems(path: str | FilePath) -> list[Problem]:
    """Problems from a file: JSON lines, or one JSON list, of ``{"numbers": [...], "target": n}``.

    Raises:
        DataError: the file cannot be read, or a line of it is not a problem.
    """
    try:
        text = FilePath(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read problems from {path}: {error}") from error
    if text.lstrip().startswith("["):
        items = _load(text, f"{path}")
        return [_problem_of(item, f"{path}, item {n}") for n, item in enumerate(items, 1)]
    found: list[Problem] = []
    for n, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}, line {n}"
            found.append(_problem_of(_load(line, place), place))
    return found


def _load(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({error}); mend or remove it") from error


def _problem_of(item: Any, place: str) -> Problem:
    try:
        return Problem(tuple(item["numbers"]), item["target"])
    except (KeyError, TypeError) as error:
        shape = '{"numbers": [3, 5, 8], "target": 24}'
        raise DataError(f"{place}: not a problem; write it as {shape}") from error
    except ProblemError as error:
        raise DataError(f"{place}: {error}") from error
