"""Whether each thread of a finished trace told the truth about its own sub-problem.

For credit per thread. A child sees nothing but its message, so it is judged on the sub-problem that
its message states, whether or not its parent was right to state it; that is the parent's affair
(``poses_truly``). Whether a sub-problem has a solution is worked out exactly, and a claimed path is
followed by the grader's own rules. Text is read, never evaluated, and no text raises.

Threads of the pasta telling return all that they wrote, which cannot be judged (``check_judged``).
"""

from __future__ import annotations

import re
import reprlib
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from apr.countdown.balance import balance, balances, parts
from apr.countdown.grade import MAX_DIGITS, Claim, Flaw, follow, read
from apr.countdown.narrate import Telling, Text
from apr.countdown.problem import Numbers, Path, Problem, reaches
from apr.countdown.solver import UNBOUNDED, Bounds, start_of, successors
from apr.errors import ConfigError, DataError, ProblemError
from apr.trace import End, Thread, Trace

_NUMBER = rf"[0-9]{{1,{MAX_DIGITS}}}"
_COMPACT = re.compile(
    rf"\s*({_NUMBER})\s*:((?:\s+{_NUMBER})*)\s*(?:,(.*)|=((?:\s+{_NUMBER})*))?", re.DOTALL
)
_PAPER = re.compile(
    rf"Current State: ({_NUMBER}):\[({_NUMBER}(?:, {_NUMBER})*)\], Operations: \[([^\]\n]*)\]\Z"
)


class Verdict(StrEnum):
    """What a thread's last word is worth."""

    FOUND = "found"
    """It claims a path, and the path leads from its sub-problem to the target."""
    EMPTY = "empty"
    """It claims nothing, and there is nothing to find."""
    MISSED = "missed"
    """It claims nothing, though its sub-problem has a solution."""
    FALSE = "false"
    """It claims a path that does not start from its sub-problem or does not reach the target."""
    UNREADABLE = "unreadable"
    """It never joined: it wrote what nobody can read, or ran out of tokens, calls or time."""


TRUTHFUL = frozenset({Verdict.FOUND, Verdict.EMPTY})


class SubProblem(NamedTuple):
    """What a thread was asked."""

    target: int
    numbers: Numbers  # what is left to combine, largest first; may hold a zero
    given: Path  # the steps that led there
    first: Numbers | None = None  # where products on both sides are to be compared: see Balance


def check_judged(telling: Telling) -> None:
    """Raises ConfigError where threads told so cannot be judged."""
    if telling == Telling.PASTA:
        raise ConfigError(
            "threads of the pasta telling return more than a path and cannot be judged one by one: "
            "give credit by the root, or train on the threads telling"
        )


def judge_all(
    trace: Trace, text: Text, telling: Telling = Telling.THREADS, bounds: Bounds = UNBOUNDED
) -> list[Verdict | None]:
    """The verdict on each thread of ``trace``, in order; see ``judge``.

    Raises:
        ConfigError: threads told so cannot be judged.
        DataError: the trace is not of a Countdown problem.
    """
    check_judged(telling)
    problem = problem_of(trace)
    return [judge(problem, thread, text, bounds) for thread in trace.threads]


def problem_of(trace: Trace) -> Problem:
    """What ``trace`` poses.

    Raises:
        DataError: it is not of a Countdown problem.
    """
    try:
        return Problem(tuple(trace.problem["numbers"]), trace.problem["target"])
    except (KeyError, TypeError, ProblemError) as e:
        raise DataError(
            f"the trace poses {reprlib.repr(trace.problem)}, which is no Countdown problem: name "
            "traces of Countdown, since no others can be judged or explained"
        ) from e


def judge(
    problem: Problem, thread: Thread, text: Text, bounds: Bounds = UNBOUNDED
) -> Verdict | None:
    """Whether ``thread``, of a trace of ``problem``, told the truth; None: it is not to be judged.

    Not judged are threads that were cut short from outside (cancelled, or the engine failed), and
    children whose message states no sub-problem, about which there is no truth to tell.

    Args:
        bounds: what can only be found beyond them, a thread does not miss (the solver's settings);
            a path that goes there is found all the same. The first look at six numbers takes
            milliseconds, or within bounds seconds.
    """
    if thread.end in (End.CANCELLED, End.FAILED):
        return None
    asked = asked_of(problem, thread, text)
    if asked is None:
        return None
    if thread.end is not End.JOINED:
        return Verdict.UNREADABLE
    if thread.join.strip():
        return Verdict.FOUND if _leads(asked, thread.join, text) else Verdict.FALSE
    missed = findable(asked, bounds, whole=thread.parent is None)
    return Verdict.MISSED if missed else Verdict.EMPTY


def poses_truly(problem: Problem, thread: Thread, text: Text) -> bool:
    """Whether ``thread`` was asked for a part of ``problem``: its target, from a state that the
    steps in its message lead to. It tells on the parent, which wrote the message.
    """
    asked = asked_of(problem, thread, text)
    if asked is None or asked.target != problem.target:
        return False
    node = start_of(problem)
    try:
        for step in asked.given:
            node = node.after(step)
    except ValueError:  # A number that is not there.
        return False
    return node.numbers == asked.numbers


def asked_of(problem: Problem, thread: Thread, text: Text) -> SubProblem | None:
    """The root's is ``problem`` itself, a child's what its message states, if it states any.

    A child is never asked more than the problem: a message with more numbers is none, which also
    bounds the work.
    """
    if thread.parent is None:
        return SubProblem(problem.target, start_of(problem).numbers, ())
    try:
        asked = _READ[text](thread.message)
    except Flaw:
        return None
    return asked if 0 < len(asked.numbers) <= len(problem.numbers) else None


def findable(asked: SubProblem, bounds: Bounds, whole: bool = False) -> bool:
    """Whether a search within ``bounds`` finds what was asked for.

    Args:
        whole: it is the problem itself, of which products on both sides are compared, too.
    """
    target, numbers, _, first = asked
    if first is not None:
        return balance(numbers, target, first).path is not None
    if winnable(numbers, target, bounds.max_value):
        return True
    return whole and bounds.balances and any(b.path for b in balances(numbers, target))


def _read_compact(message: str) -> SubProblem:
    """What is said by `` 24 : 9 , 5 + 3``; the last step's result is one of the numbers left."""
    target, stated, given, first = _stated(message)
    numbers = _state(stated + [step.value for step in given[-1:]])
    return SubProblem(target, numbers, given, first)


def _read_whole(message: str) -> SubProblem:
    """What is said by `` 24 : 9 5 3 , 5 + 3``; the last step is to be taken from the numbers."""
    target, stated, given, first = _stated(message)
    for step in given[-1:]:
        for n in (step.a, step.b):
            if n not in stated:
                raise Flaw(f"{n} is not there to be used.")
            stated.remove(n)
        stated.append(step.value)
    return SubProblem(target, _state(stated), given, first)


def _stated(message: str) -> tuple[int, list[int], Path, Numbers | None]:
    """Target, numbers, steps and what is balanced as a message in the compact texts has them."""
    found = _COMPACT.fullmatch(message)
    if found is None:
        raise Flaw("The message states no target and numbers.")
    target, numbers, first = int(found[1]), [*map(int, found[2].split())], None
    if found[4] is not None:
        first = tuple(map(int, found[4].split()))
        if first not in parts(_state(numbers), target):
            raise Flaw("No such numbers can be balanced.")
    return target, numbers, () if found[3] is None else _steps(found[3]), first


def _read_paper(message: str) -> SubProblem:
    """What is said by ``Current State: 24:[9, 8], Operations: ['5+3=8']``, wherever it stands."""
    found = _PAPER.search(message)
    if found is None:
        raise Flaw("The message states no target and numbers.")
    target, left, steps = found.groups()
    given = _steps(steps.replace("'", "")) if steps else ()
    return SubProblem(int(target), _state(list(map(int, left.split(", ")))), given)


_READ = {Text.COMPACT: _read_compact, Text.WHOLE: _read_whole, Text.PAPER: _read_paper}


def _state(numbers: list[int]) -> Numbers:
    return tuple(sorted(numbers, reverse=True))


def _steps(text: str) -> Path:
    """`` 5 + 3 = 8 , 8 - 2`` as steps; the last may leave out its result.

    Raises:
        Flaw: it cannot be read, or its arithmetic is wrong.
    """
    *stated, last = text.split(",")
    before, after = read(",".join(stated)).path, read(last).path
    if len(before) != len(stated) or len(after) != 1:
        raise Flaw("A step is not written like 5 + 3 = 8.")
    return before + after


def _leads(asked: SubProblem, join: str, text: Text) -> bool:
    """Whether ``join`` is a path from the state that was asked about to its target."""
    try:
        claim = read(join)
        if text != Text.PAPER:
            # Paths of the compact texts go all the way from the problem, the paper's from there.
            claim = _beyond(asked.given, claim)
        follow(asked.numbers, asked.target, claim)
    except Flaw:
        return False
    return True


def _beyond(given: Path, claim: Claim) -> Claim:
    """What ``claim`` says after the steps ``given``; raises Flaw if it does not begin with them."""
    n = len(given)
    if _plain(claim.path[:n]) != _plain(given):
        raise Flaw("The path does not begin with the steps that were given.")
    return Claim(claim.path[n:], claim.states[n:], claim.result)


def _plain(path: Path) -> list[tuple[str, list[int]]]:
    """Steps whose arithmetic holds, such that 3 + 5 and 5 + 3 are the same."""
    return [(step.op, sorted((step.a, step.b))) for step in path]


# The rollouts of one problem ask for the same states over and over.
@lru_cache(maxsize=1 << 14)
def winnable(numbers: Numbers, target: int, max_value: int) -> bool:
    """Whether ``target`` can be made of ``numbers``, by results up to ``max_value`` if not 0."""
    if not reaches(numbers, target):
        return False
    if not max_value or len(numbers) == 1:
        return True
    after = (state for _, state in successors(numbers, max_value))
    return any(winnable(state, target, max_value) for state in after)
