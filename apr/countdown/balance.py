"""Products on both sides: how large numbers lead to a target without one being divided.

``(52 + 32) * 62 / 93 = 56`` and ``(52 + 32) * 62 = 93 * 56`` say the same. The second asks for two
products and whether they are equal; the first, of whoever writes results down one by one, to know
beforehand that 5208 / 93 leaves no rest. So here the target stands among the numbers, and what is
compared are products of two.

Of four numbers and the target, one is left over when four of them make two products. Either it
joins another one before (52 + 32 above), or it makes up the difference between the products, as in
``10 * 32 + 55 = 75 * 5``. To which of the two it is to be added only those would know who compare
them first, so it is added to both. What is left out are products of three numbers, and quotients in
a product.

No line asks for more than a table of products up to 100 * 100 and one of sums up to 100 + 100:
134 * 62 is told as 34 * 62 and 6200 more, and a difference as what it makes up, 1792 + 93 after
93 + 92.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from itertools import combinations
from typing import NamedTuple

from apr.countdown.problem import Numbers, Path, Step

HUNDRED = 100


class Mark(StrEnum):
    """What is done with a result."""

    KEEP = "keep"
    """It is used by the lines to come."""
    SIDE = "side"
    """It is one side; lines to come are compared with it."""
    MISS = "miss"
    HIT = "hit"


class Line(NamedTuple):
    """One result on the way."""

    step: Step
    mark: Mark
    proof: Path = ()  # of a comparison: the path to the target, if it holds


class Balance(NamedTuple):
    """Everything one thread compares, up to a hit."""

    first: Numbers
    """Two that join before, or one that makes up a difference; of three numbers nobody."""
    joined: tuple[Step, ...]  # the sum and the difference of two that join
    rest: Numbers  # whom products are made of, beside what is joined
    lines: tuple[Line, ...]

    @property
    def path(self) -> Path | None:
        """From the numbers to the target; None where no comparison held."""
        return self.lines[-1].proof if self.lines[-1].mark is Mark.HIT else None


def balances(numbers: Numbers, target: int) -> tuple[Balance, ...]:
    """All there is to compare, in parts for one thread each; numbers of another count have none."""
    return tuple([balance(numbers, target, first) for first in parts(numbers, target)])


def parts(numbers: Numbers, target: int) -> list[Numbers]:
    """Who is ``first`` in each of ``balances``."""
    everyone = (*numbers, target)
    if len(numbers) == 3:
        return [()]
    if len(numbers) != 4:
        return []
    found: list[Numbers] = [*combinations(everyone, 2), *((n,) for n in everyone)]
    return list(dict.fromkeys(found))


def balance(numbers: Numbers, target: int, first: Numbers) -> Balance:
    """What comes of comparing under ``first``, which must be one of ``parts``."""
    rest = [*numbers, target]
    for n in first:
        rest.remove(n)
    joined = _joined(*first) if len(first) == 2 else ()
    compared = _compare_joined(target, joined, rest) if joined else _compare(target, first, rest)
    lines: list[Line] = []
    for line in compared:
        lines.append(line)
        if line.mark is Mark.HIT:
            break
    return Balance(first, joined, tuple(rest), tuple(lines))


def _joined(a: int, b: int) -> tuple[Step, ...]:
    total = _plus(a, b)
    return total, total._replace(op="-", value=total.a - total.b)


def _compare_joined(target: int, joined: tuple[Step, ...], rest: list[int]) -> Iterator[Line]:
    """What is joined times one of the three others, beside the product of the two that are left."""
    for n in (2, 1, 0):
        factor, (a, b) = rest[n], rest[:n] + rest[n + 1 :]
        side = _times(a, b)
        yield Line(side, Mark.SIDE)
        for step in joined:
            product = _times(step.value, factor)
            path = _prove_joined(target, step, side, product, factor)
            *before, last = _told(product)
            yield from (Line(part, Mark.KEEP) for part in before)
            yield _judged(last, product.value == side.value, path)


def _prove_joined(target: int, joined: Step, side: Step, product: Step, factor: int) -> Path:
    """The path where ``product``, of ``joined`` and ``factor``, equals ``side``."""
    if target == factor:
        return (joined, side, Step(side.value, "/", joined.value, target))
    if target in (side.a, side.b):
        return (joined, product, Step(product.value, "/", _other(side, target), target))
    whole = Step(side.value, "/", factor, joined.value)
    return (side, whole, _undone(joined, target))


def _undone(joined: Step, target: int) -> Step:
    """How ``target``, which is joined with another, is got back from the result."""
    value, other = joined.value, _other(joined, target)
    if joined.op == "+":
        return Step(value, "-", other, target)
    if joined.a == target:
        return Step(max(value, other), "+", min(value, other), target)
    return Step(other, "-", value, target)


def _compare(target: int, first: Numbers, rest: list[int]) -> Iterator[Line]:
    """Two products of all four in ``rest``: they are equal, or ``first`` is between them."""
    for n in (1, 2, 3):
        side, product = _times(rest[0], rest[n]), _times(*rest[1:n], *rest[n + 1 :])
        yield Line(side, Mark.SIDE)
        if not first:
            path = _prove(target, side, product, 0)
            yield _judged(product, product.value == side.value, path)
            continue
        yield Line(product, Mark.KEEP)
        for less, more in ((side, product), (product, side)):
            path = _prove(target, less, more, first[0])
            *before, last = _added(less.value, first[0])
            yield from (Line(part, Mark.KEEP) for part in before)
            yield _judged(last, last.value == more.value, path)


def _prove(target: int, less: Step, more: Step, by: int) -> Path:
    """The path where the product ``more`` is ``by`` above the product ``less``."""
    if by == target:
        return (less, more, Step(more.value, "-", less.value, target))
    asked, known = (less, more) if target in (less.a, less.b) else (more, less)
    quotient = Step(asked.value, "/", _other(asked, target), target)
    if not by:
        return (known, quotient)
    op = "-" if known is more else "+"
    return (known, Step(known.value, op, by, asked.value), quotient)


def _judged(step: Step, holds: bool, proof: Path) -> Line:
    return Line(step, Mark.HIT if holds else Mark.MISS, proof)


def _other(step: Step, one: int) -> int:
    """The operand beside ``one``."""
    return step.b if step.a == one else step.a


def _told(product: Step) -> list[Step]:
    """The steps that lead to its result: of more than a hundred times something, two."""
    if product.a <= HUNDRED:
        return [product]
    part = _times(product.a - HUNDRED, product.b)
    return [part, _plus(HUNDRED * product.b, part.value)]


def _added(a: int, b: int) -> list[Step]:
    """The steps to ``a + b``: beyond a hundred its last two digits first."""
    return [_plus(a % HUNDRED, b), _plus(a, b)] if a >= HUNDRED else [_plus(a, b)]


def _times(a: int, b: int) -> Step:
    a, b = max(a, b), min(a, b)
    return Step(a, "*", b, a * b)


def _plus(a: int, b: int) -> Step:
    a, b = max(a, b), min(a, b)
    return Step(a, "+", b, a + b)
