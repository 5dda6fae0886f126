"""Answers as programs hand them in and as people write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from apr.countdown.grade import Flaw, read
from apr.countdown.problem import Path, Problem
from apr.errors import DataError

_SHAPE = '{"numbers": [3, 5, 8], "target": 64, "answer": "(3 + 5) * 8"}'
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}
_NUMBER = 3
T = TypeVar("T")


def read_answers(lines: Iterable[str], place: str) -> Iterator[tuple[Problem, str | None]]:
    """Problems and the answers to grade; the answer null where none is claimed.

    Raises:
        DataError: a line is no such record; ``place`` and its number are named.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            posed, answer = Problem(tuple(record["numbers"]), record["target"]), record["answer"]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(
                f"{place}, line {number} is no answer to grade ({type(e).__name__} {e}): "
                f"write it as {_SHAPE}"
            ) from e
        if not isinstance(answer, str | None):
            raise DataError(f"{place}, line {number}: an answer is text or null, as in {_SHAPE}")
        yield posed, answer


def spell(answer: str) -> str | None:
    """``answer``, in any text that the grader reads, as one expression; None if it is no path."""
    try:
        path = read(answer).path
    except Flaw:
        return None
    return expression(path) if path else None


def canonical(answer: str) -> str:
    """``answer`` as an expression with the operands of each sum and each product in one order.

    Paths that differ in the order of steps or operands come out equal, save where a result is also
    among the numbers, and a step could mean either. What the grader cannot read is its own text.
    """
    try:
        claim = read(answer)
    except Flaw:
        return " ".join(answer.split())
    if not claim.path:
        return "" if claim.result is None else str(claim.result)
    return ", ".join(sorted(operand.text for operand in _fold(claim.path, _number, _ordered)))


def expression(path: Path) -> str:
    """``(5 + 3) * 9`` for the steps 5 + 3 = 8 and 8 * 9 = 72; results left unused do not show."""
    operands = _fold(path, lambda n: (str(n), _NUMBER), _spelled)
    return operands[-1][0] if operands else ""


def _spelled(left: tuple[str, int], op: str, right: tuple[str, int]) -> tuple[str, int]:
    rank = _RANK[op]
    (a, a_rank), (b, b_rank) = left, right
    if a_rank < rank:
        a = f"({a})"
    if b_rank < rank or (b_rank == rank and op in "-/"):
        b = f"({b})"
    return f"{a} {op} {b}", rank


class _Ordered(NamedTuple):
    """A sum or a product with its operands in order; a number is either, of one operand."""

    signs: str  # "+-" or "*/"; empty for a number
    plain: tuple[str, ...]  # added, or multiplied
    inverse: tuple[str, ...]  # subtracted, or divided by

    @property
    def text(self) -> str:
        if not self.signs:
            return self.plain[0]
        join, undo = (f" {sign} " for sign in self.signs)
        return join.join(self.plain) + "".join(undo + operand for operand in self.inverse)

    def under(self, signs: str) -> _Ordered:
        """The same as a sum or a product, whichever ``signs`` stand for."""
        if self.signs == signs:
            return self
        return _Ordered(signs, (f"({self.text})" if self.signs else self.text,), ())


def _number(n: int) -> _Ordered:
    return _Ordered("", (str(n),), ())


def _ordered(left: _Ordered, op: str, right: _Ordered) -> _Ordered:
    signs = "+-" if op in "+-" else "*/"
    (_, a, a_inverse), (_, b, b_inverse) = left.under(signs), right.under(signs)
    if op in "-/":
        b, b_inverse = b_inverse, b
    return _Ordered(signs, tuple(sorted(a + b)), tuple(sorted(a_inverse + b_inverse)))


def _fold(path: Path, number: Callable[[int], T], combine: Callable[[T, str, T], T]) -> list[T]:
    """``path`` as the operands that its steps leave, the last result last; a whole one leaves one.

    A result is used before a number of the same value: a whole path uses every result in the end.
    """
    made: list[tuple[int, T]] = []

    def take(n: int) -> T:
        found = next((i for i in reversed(range(len(made))) if made[i][0] == n), None)
        return number(n) if found is None else made.pop(found)[1]

    for a, op, b, value in path:
        made.append((value, combine(take(a), op, take(b))))
    return [operand for _, operand in made]
