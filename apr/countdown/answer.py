"""Answers as programs hand them in and as people write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from apr.countdown.grade import Flaw, read
from apr.countdown.problem import Path, Problem
from apr.errors import DataError

_SHAPE = '{"numbers": [3, 5, 8], "target": 64, "answer": "(3 + 5) * 8"}'
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}
_NUMBER = 3


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


def expression(path: Path) -> str:
    """``(5 + 3) * 9`` for the steps 5 + 3 = 8 and 8 * 9 = 72; results left unused do not show."""
    made: dict[int, list[tuple[str, int]]] = {}
    whole = ""

    def take(n: int) -> tuple[str, int]:
        # A result before a number of the same value: a whole path uses every result in the end.
        return made[n].pop() if made.get(n) else (str(n), _NUMBER)

    for a, op, b, value in path:
        rank = _RANK[op]
        (left, left_rank), (right, right_rank) = take(a), take(b)
        if left_rank < rank:
            left = f"({left})"
        if right_rank < rank or (right_rank == rank and op in "-/"):
            right = f"({right})"
        whole = f"{left} {op} {right}"
        made.setdefault(value, []).append((whole, rank))
    return whole
