"""The one grader: exact whole numbers over the multiset, each number used once, none left over.

An answer is an arithmetic expression, or a solution path in the `compact` or the `paper` text. All
forms are read into the same steps and followed by the same rules, so no method, filter or reward is
judged more gently than another. Text is read, never evaluated; length, depth and numbers have
bounds, and no text raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from apr.countdown.problem import Path, Problem, Step, divisible
from apr.types import Grade

MAX_LENGTH = 50_000
"""Characters of an answer."""
MAX_DEPTH = 100
"""Brackets within brackets."""
MAX_DIGITS = 100
"""Digits of a number, written or worked out."""

_LIMIT = 10**MAX_DIGITS
_SIGNS = str.maketrans("×÷−", "*/-")
_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()=,])")
_EXPLORED = re.compile(
    r"Exploring Operation: ([0-9]+[-+*/][0-9]+=[0-9]+), "
    r"Resulting Numbers: \[([0-9]+(?:, [0-9]+)*)\]"
)
_GOAL = re.compile(r"([0-9]+),([0-9]+) equal: Goal Reached")
_ELSEWHERE = re.compile(r"Moving to Node #[0-9,]+|(?:Current State|Generated Node #[0-9,]+): .*")
"""Lines of a path that only say again where it stands."""


class Claim(NamedTuple):
    """What an answer says: steps whose arithmetic holds, whatever numbers they are made of."""

    path: Path
    states: tuple[tuple[int, ...], ...]  # what it says is left after each step; () if it does not
    result: int | None  # what it says it comes to; None for an empty answer


class Flaw(Exception):
    """Why an answer is wrong, in one sentence; ``grade`` turns it into a verdict."""


def grade(problem: Problem, answer: str | None) -> Grade:
    """Whether ``answer`` solves ``problem``; the reason says what is wrong with it. Never raises.

    Args:
        answer: any text, such as ``26 + (53 - 31) / 22`` or `` 5 + 3 = 8 , 9 * 8 = 72``.
    """
    if answer is None:
        return Grade(False, "No solution is claimed.")
    try:
        follow(problem.numbers, problem.target, read(answer))
    except Flaw as flaw:
        return Grade(False, str(flaw))
    return Grade(True, "correct")


def read(answer: str) -> Claim:
    """What ``answer`` says.

    Raises:
        Flaw: it cannot be read, or its arithmetic is wrong.
    """
    if len(answer) > MAX_LENGTH:
        raise Flaw(f"The answer is longer than {MAX_LENGTH} characters.")
    if "Exploring Operation" in answer or "Goal Reached" in answer:
        return _read_paper(answer)
    return _Reader(answer).claim()


def follow(numbers: Iterable[int], target: int, claim: Claim) -> None:
    """Raises Flaw unless ``claim`` makes ``target`` of ``numbers`` (at least one), each once."""
    left = list(numbers)
    for i, step in enumerate(claim.path):
        for n in (step.a, step.b):
            if n not in left:
                raise Flaw(f"{n} is not there to be used in {step.a} {step.op} {step.b}.")
            left.remove(n)
        left.append(step.value)
        if claim.states and sorted(claim.states[i]) != sorted(left):
            raise Flaw(f"Step {i + 1} leaves {_spell(left)}, not {_spell(claim.states[i])}.")
    if len(left) > 1:
        raise Flaw(f"Not every number is used: {_spell(left)} are left.")
    if claim.result not in (None, left[0]):
        raise Flaw(f"It says {claim.result} where {_spell(left)} is left.")
    if left[0] != target:
        raise Flaw(f"It makes {_spell(left)}, not {_spell([target])}.")


def _read_paper(answer: str) -> Claim:
    path: list[Step] = []
    states: list[tuple[int, ...]] = []
    *lines, last = answer.strip().split("\n")
    for line in lines:
        if explored := _EXPLORED.fullmatch(line):
            path += _Reader(explored[1]).claim().path
            states.append(tuple(map(_integer, explored[2].split(", "))))
        elif not _ELSEWHERE.fullmatch(line):
            raise Flaw(f"The path holds a line that cannot be read: {_clip(line)}.")
    goal = _GOAL.fullmatch(last)
    if goal is None:
        raise Flaw("The path does not end in a goal that is reached.")
    result, target = _integer(goal[1]), _integer(goal[2])
    if result != target:
        raise Flaw(f"It says that {result} equals {target}.")
    return Claim(tuple(path), tuple(states), result)


class _Reader:
    """Recursive descent. The text is one expression, or several that each state their result::

    claim    expression [= number]  |  expression = number , ...
    expression    product + or - product ...
    product    atom * or / atom ...
    atom    number  |  ( expression )
    """

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text.translate(_SIGNS))
        self.at = 0
        self.path: list[Step] = []

    def claim(self) -> Claim:
        if len(self.tokens) == 1:
            return Claim((), (), None)
        items = [self.item()]
        while self.next == ",":
            self.take()
            items.append(self.item())
        if self.next:
            raise Flaw(f"{self.next!r} cannot stand where it does.")
        if len(items) > 1 and not all(is_step for _, is_step in items):
            raise Flaw("A step is not written like 5 + 3 = 8.")
        return Claim(tuple(self.path), (), items[-1][0])

    def item(self) -> tuple[int, bool]:
        """An expression; its value, and whether it is a step that states its result."""
        before = len(self.path)
        value = self.expression(0)
        if self.next != "=":
            return value, False
        self.take()
        stated = self.take()
        if not stated.isdigit() or _integer(stated) != value:
            raise Flaw(f"It says {stated!r} where it makes {value}.")
        return value, len(self.path) > before

    def expression(self, depth: int) -> int:
        return self.chain("+-", self.product, depth)

    def product(self, depth: int) -> int:
        return self.chain("*/", self.atom, depth)

    def chain(self, signs: str, operand: Callable[[int], int], depth: int) -> int:
        value = operand(depth)
        while self.next and self.next in signs:
            op, b = self.take(), operand(depth)
            step = Step(value, op, b, _value(value, op, b))
            self.path.append(step)
            value = step.value
        return value

    def atom(self, depth: int) -> int:
        token = self.take()
        if token.isdigit():
            return _integer(token)
        if token != "(":
            raise Flaw(f"A number is missing before {token!r}." if token else "It breaks off.")
        if depth >= MAX_DEPTH:
            raise Flaw(f"Brackets are nested more than {MAX_DEPTH} deep.")
        value = self.expression(depth + 1)
        if self.take() != ")":
            raise Flaw("A bracket is not closed.")
        return value

    @property
    def next(self) -> str:
        """The token to come; empty at the end."""
        return self.tokens[self.at]

    def take(self) -> str:
        token = self.tokens[self.at]
        self.at += bool(token)
        return token


def _tokens(text: str) -> list[str]:
    """Numbers and signs of ``text``, and an empty one for its end."""
    text = text.rstrip()
    tokens: list[str] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Flaw(f"It cannot be read from {_clip(text[at:].lstrip())} on.")
        tokens.append(found[1])
        at = found.end()
    return [*tokens, ""]


def _value(a: int, op: str, b: int) -> int:
    """What a step makes, by the rules: no negative number, no fraction."""
    if op == "-" and b > a:
        raise Flaw(f"{a} - {b} is negative.")
    if op == "/" and not divisible(a, b):
        raise Flaw(f"{a} / {b} is no whole number.")
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // (b or 1)}[op]
    if value >= _LIMIT:
        raise Flaw(f"A result has more than {MAX_DIGITS} digits.")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise Flaw(f"A number has more than {MAX_DIGITS} digits.")
    return int(digits)


def _spell(numbers: Iterable[int]) -> str:
    """Numbers for a reason; a problem's own can be too long for ``str``."""
    return ", ".join(str(n) if n < _LIMIT else "a huge number" for n in numbers)


def _clip(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
