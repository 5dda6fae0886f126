"""Why problems were not solved: wrong arithmetic apart from wrong search, which limit differently.

Reads finished traces. Every step that a thread wrote is worked out again, every verdict compared
with the result it stands behind, and each failure is put down to the first thread that had what it
took to go on rightly and did not.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from apr.countdown.judge import (
    SubProblem,
    Verdict,
    asked_of,
    findable,
    judge,
    poses_truly,
    problem_of,
)
from apr.countdown.narrate import Text
from apr.countdown.problem import Numbers, Problem, divisible, solvable
from apr.countdown.solver import SearchConfig, search, start_of
from apr.errors import DataError
from apr.trace import End, Thread, Trace
from apr.types import Ids

_NUMBER = r"([0-9]{1,15})"
_STEP = re.compile(rf"{_NUMBER}\s*([-+*/])\s*{_NUMBER}\s*=\s*{_NUMBER}")
_REST = re.compile(rf"{_NUMBER} / {_NUMBER} ,")
"""A division that is said to leave a rest."""
_COMPACT_VERDICT = re.compile(rf"= {_NUMBER} ([x!])")
_VERDICTS = {
    Text.COMPACT: _COMPACT_VERDICT,
    Text.WHOLE: _COMPACT_VERDICT,
    Text.PAPER: re.compile(rf"{_NUMBER},{_NUMBER} (equal|unequal)"),
}
_HITS = ("!", "equal")
_LINE = re.compile(rf"{_NUMBER} ([-+*/]) {_NUMBER} = {_NUMBER} ([,:x!])")
"""A line of a thread that compares products: what is kept, a side, or a verdict."""
_BALANCED = re.compile(r"(?<=[x!,:]) =((?: [0-9]{1,15})*)(?= [0-9]{1,15} [-+*/] | :)")
"""Where one thread that does everything goes on to compare products, and who is ``first``."""
_UNBOUNDED = SearchConfig()
RANGE = 25
"""Width of the ranges of largest numbers."""


class Cause(StrEnum):
    """Why a problem was not solved; the first that holds."""

    UNSOLVABLE = "unsolvable"
    BEYOND = "beyond"
    UNREAD = "unread"
    UNHEARD = "unheard"
    NARROW = "narrow"
    MISSED = "missed"
    UNASKED = "unasked"
    FALSE = "false"
    EMPTY = "empty"

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    Cause.UNSOLVABLE: "no solution exists",
    Cause.BEYOND: "every solution has a result larger than the search ever looks at",
    Cause.UNREAD: "the root never joined: unreadable, or out of context or time",
    Cause.UNHEARD: "a child found a path, and the root did not pass it on",
    Cause.NARROW: "a solution exists, but not among the successors that the search keeps to",
    Cause.MISSED: "a child was asked for a part that has a solution, and did not find it",
    Cause.UNASKED: "no child was asked for a part that has a solution",
    Cause.FALSE: "a single thread claimed a path that is wrong",
    Cause.EMPTY: "a single thread found nothing",
}


@dataclass
class Tally:
    """How often something was done, and how often wrongly."""

    num: int = 0
    num_wrong: int = 0

    def add(self, wrong: bool) -> None:
        self.num += 1
        self.num_wrong += wrong

    @property
    def rate(self) -> float:
        """Share that was wrong; 0 where nothing was done."""
        return self.num_wrong / self.num if self.num else 0.0


@dataclass
class Diagnosis:
    """What went right and wrong in some traces."""

    problems: Tally = field(default_factory=Tally)
    steps: dict[str, Tally] = field(default_factory=lambda: {op: Tally() for op in "+-*/"})
    """By operation: steps written, and those whose result is wrong."""
    verdicts: Tally = field(default_factory=Tally)
    """Results marked as hit or miss, and those marked wrongly."""
    asked: Tally = field(default_factory=Tally)
    """Children, and those that were asked for what is no part of the problem."""
    causes: Counter[Cause] = field(default_factory=Counter)

    def shares(self) -> dict[str, str]:
        """What a table shows; nothing where nothing was done."""
        wrong = {f"wrong {op}": tally for op, tally in self.steps.items()}
        wrong |= {"wrong verdicts": self.verdicts, "wrongly asked": self.asked}
        return {
            "n": str(self.problems.num),
            "solved": f"{1 - self.problems.rate:.1%}" if self.problems.num else "",
            **{name: f"{t.rate:.2%}" if t.num else "" for name, t in wrong.items()},
        }

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "causes": dict(self.causes)}


def by_kind(traces: Iterable[Trace]) -> dict[str, list[Trace]]:
    """All of them, and apart by how many numbers a problem has and how large the largest is.

    Raises:
        DataError: a trace is not of a Countdown problem.
    """
    kinds: dict[str, list[Trace]] = {"all": []}
    for trace in sorted(traces, key=_size):
        num, largest = _size(trace)
        low = (largest - 1) // RANGE * RANGE + 1
        for kind in (f"{num} numbers", f"{num} numbers, largest {low} to {low + RANGE - 1}"):
            kinds.setdefault(kind, []).append(trace)
        kinds["all"].append(trace)
    return kinds


def _size(trace: Trace) -> tuple[int, int]:
    numbers = problem_of(trace).numbers
    return len(numbers), max(numbers)


def diagnose(
    traces: Iterable[Trace],
    text: Text,
    decode: Callable[[Ids], str],
    solver: SearchConfig = _UNBOUNDED,
) -> Diagnosis:
    """What became of ``traces``; those without a grade are left out.

    Args:
        text: in which their model writes.
        decode: reads its tokens.
        solver: the search that the model was taught, which looks so far and no further.

    Raises:
        DataError: a trace is not of a Countdown problem, or put together of samples.
    """
    found = Diagnosis()
    for trace in traces:
        if trace.grade is None:
            continue
        problem = problem_of(trace)
        if not trace.root.calls:
            raise DataError(
                f"{trace.method!r} puts samples together and is no search of its own: "
                "explain traces of the method that it draws"
            )
        found.problems.add(not trace.grade.correct)
        for thread in trace.threads:
            _read(found, problem, thread, text, decode)
        if not trace.grade.correct:
            found.causes[_cause(problem, trace, text, solver)] += 1
    return found


def _read(
    found: Diagnosis, problem: Problem, thread: Thread, text: Text, decode: Callable[[Ids], str]
) -> None:
    asked = asked_of(problem, thread, text)
    if thread.parent is not None:
        found.asked.add(not poses_truly(problem, thread, text))
    # A child of the compact text begins with the result of the step that it was given last.
    written = thread.message.rpartition(",")[2] if thread.parent is not None else ""
    for call in thread.calls:
        # What stands behind a join has been said before.
        written += decode(call.ids).partition("<join>")[0] + "\n"
    for a, op, b, value in _STEP.findall(written):
        found.steps[op].add(not _holds(int(a), op, int(b), int(value)))
    for a, b in _REST.findall(written):
        found.steps["/"].add(divisible(int(a), int(b)))
    for wrong in _judged_wrongly(problem, asked.first if asked else None, written, text):
        found.verdicts.add(wrong)


def _judged_wrongly(
    problem: Problem, first: Numbers | None, written: str, text: Text
) -> Iterator[bool]:
    """Of each verdict, whether it is wrong.

    Args:
        first: as in ``balance.Balance``, where products are all that is compared.
    """
    if first is not None:
        yield from _compared_wrongly(first, written)
        return
    searched, *compared = _BALANCED.split(written) if text != Text.PAPER else [written]
    for value, *_, mark in _VERDICTS[text].findall(searched):
        yield (int(value) == problem.target) != (mark in _HITS)
    for numbers, lines in zip(compared[::2], compared[1::2], strict=True):
        yield from _compared_wrongly(tuple(map(int, numbers.split())), lines)


def _compared_wrongly(first: Numbers, written: str) -> Iterator[bool]:
    """Of each verdict on two products as they were written, whether it is wrong."""
    side = kept = 0
    for _, op, _, text, mark in _LINE.findall(written):
        value = int(text)
        if mark == ":":
            side = value
        elif mark == "," and op == "*":
            kept = value
        elif mark != ",":
            if len(first) == 1:
                # Who makes up a difference is added to one product, then to the other.
                side, kept = kept, side
            yield (value == side) != (mark in _HITS)


def _holds(a: int, op: str, b: int, value: int) -> bool:
    if op == "/":
        return b != 0 and a == b * value
    return value == {"+": a + b, "-": a - b, "*": a * b}[op]


def _cause(problem: Problem, trace: Trace, text: Text, solver: SearchConfig) -> Cause:
    if not solvable(problem):
        return Cause.UNSOLVABLE
    bounds = solver.bounds
    whole = SubProblem(problem.target, start_of(problem).numbers, ())
    if not findable(whole, bounds, whole=True):
        return Cause.BEYOND
    children = trace.threads[1:]
    asked = [c for c in children if poses_truly(problem, c, text)]
    if any(judge(problem, c, text, bounds) is Verdict.FOUND for c in asked):
        return Cause.UNHEARD if trace.root.end is End.JOINED else Cause.UNREAD
    if solver.is_certain and search(problem, solver, random.Random(0)).goal is None:
        return Cause.NARROW
    parts = [part for c in asked if (part := asked_of(problem, c, text))]
    if any(findable(part, bounds) for part in parts):
        return Cause.MISSED
    if children:
        return Cause.UNASKED
    if trace.root.end is not End.JOINED:
        return Cause.UNREAD
    return Cause.EMPTY if trace.answer is None else Cause.FALSE
