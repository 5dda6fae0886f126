"""Products on both sides: how large numbers lead to a target without one being divided.

``(52 + 32) * 62 / 93 = 56`` and ``(52 + 32) * 62 = 93 * 56`` say the same. The second asks for two
products and whether they are equal; the first, of whoever writes results down one by one, to know
beforehand that 5208 / 93 leaves no rest. So here the target stands among the numbers, and what is
compared are products of two.

Of four numbers and the target, one is left over when four of them make two products. Either it
joins another one before (52 + 32 above), or it makes up the difference between the products, as in
``75 * 5 - 55 = 10 * 32``. That is every solution whose large results are a product of two and what
is one sum or difference away from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from apr.countdown.problem import Path, Step

SIZES = (3, 4)
"""How many numbers can be balanced."""
Numbers = tuple[int, ...]


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


class Balance(NamedTuple):
    """Everything one thread compares, up to a hit."""

    first: Numbers
    """Who joins another number before: two numbers and the two others, each pair by itself; the
    target, with each number; or none, and a number makes up a difference (of three: nobody)."""
    lines: tuple[Line, ...]
    path: Path | None  # from the numbers to the target, or None


def balances(numbers: Numbers, target: int) -> tuple[Balance, ...]:
    """All there is to compare, in parts for one thread each; numbers of another count have none."""
    return tuple([balance(numbers, target, first) for first in parts(numbers, target)])


def parts(numbers: Numbers, target: int) -> list[Numbers]:
    """Who joins another first, in each of ``balances``."""
    if len(numbers) == 3:
        return [()]
    pairs: list[Numbers] = [(numbers[0], other) for other in numbers[1:]]
    return [*pairs, (target,), ()] if len(numbers) == 4 else []


def balance(numbers: Numbers, target: int, first: Numbers) -> Balance:
    """What comes of comparing under ``first``, which must be one of ``parts``."""
    lines: list[Line] = []
    for line, path in _lines(numbers, target, first):
        lines.append(line)
        if path is not None:
            return Balance(first, tuple(lines), path)
    return Balance(first, tuple(lines), None)


_Lines = Iterator[tuple[Line, Path | None]]


def _lines(numbers: Numbers, target: int, first: Numbers) -> _Lines:
    """Each line, and with a hit the path that it proves."""
    if len(numbers) == 3:
        yield from _equal(numbers, target)
    elif not first:
        yield from _apart(numbers, target)
    elif len(first) == 1:
        for n in range(4):
            others = numbers[:n] + numbers[n + 1 :]
            yield from _joined(target, (target, numbers[n]), others)
    else:
        others = list(numbers)
        for n in first:
            others.remove(n)
        yield from _joined(target, first, (*others, target))
        yield from _joined(target, tuple(others), (*first, target))


def _equal(numbers: Numbers, target: int) -> _Lines:
    """Of three numbers: the target times one, beside the product of the others."""
    for n, factor in enumerate(numbers):
        side = _times(target, factor)
        yield Line(side, Mark.SIDE), None
        product = _times(*numbers[:n], *numbers[n + 1 :])
        path = (product, Step(product.value, "/", factor, target))
        yield _compared(product, product.value == side.value, path)


def _joined(target: int, pair: Numbers, others: Numbers) -> _Lines:
    """The sum and the difference of ``pair``, each times one of the other three, beside the product
    of the two that are left."""
    a, b = max(pair), min(pair)
    joined = (Step(a, "+", b, a + b), Step(a, "-", b, a - b))
    yield from ((Line(step, Mark.KEEP), None) for step in joined)
    for n in (2, 1, 0):
        side = _times(*others[:n], *others[n + 1 :])
        yield Line(side, Mark.SIDE), None
        for step in joined:
            product = _times(step.value, others[n])
            path = _path(target, pair, step, side, product, others[n])
            yield _compared(product, product.value == side.value, path)


def _path(target: int, pair: Numbers, joined: Step, side: Step, product: Step, factor: int) -> Path:
    """What ``product``, of ``joined`` and ``factor``, proves where it equals ``side``."""
    if target in pair:
        other = pair[0] if pair[1] == target else pair[1]
        whole = Step(side.value, "/", factor, joined.value)
        return (side, whole, _undone(joined, other, target))
    if factor == target:
        return (joined, side, Step(side.value, "/", joined.value, target))
    left = side.b if side.a == target else side.a
    return (joined, product, Step(product.value, "/", left, target))


def _undone(joined: Step, other: int, target: int) -> Step:
    """How ``target``, which made ``joined`` with ``other``, is got back from its result."""
    value = joined.value
    if joined.op == "+":
        return Step(value, "-", other, target)
    if joined.a == target:
        return Step(max(value, other), "+", min(value, other), target)
    return Step(other, "-", value, target)


def _apart(numbers: Numbers, target: int) -> _Lines:
    """Two products and their difference: the target times a number beside two of the others, which
    the third makes up; or all four numbers, and the target does."""
    for n, factor in enumerate(numbers):
        side = _times(target, factor)
        yield Line(side, Mark.SIDE), None
        others = numbers[:n] + numbers[n + 1 :]
        for m in (2, 1, 0):
            product = _times(*others[:m], *others[m + 1 :])
            more = product.value > side.value
            made_up = Step(product.value, "-" if more else "+", others[m], side.value)
            path = (product, made_up, Step(side.value, "/", factor, target))
            yield from _differ(side, product, others[m], path)
    for n in (1, 2, 3):
        side = _times(numbers[0], numbers[n])
        product = _times(*numbers[1:n], *numbers[n + 1 :])
        yield Line(side, Mark.SIDE), None
        yield from _differ(side, product, target, (side, product, _difference(side, product)))


def _differ(side: Step, product: Step, by: int, path: Path) -> _Lines:
    difference = _difference(side, product)
    yield Line(product, Mark.KEEP), None
    yield _compared(difference, difference.value == by, path)


def _difference(one: Step, other: Step) -> Step:
    a, b = max(one.value, other.value), min(one.value, other.value)
    return Step(a, "-", b, a - b)


def _compared(step: Step, holds: bool, path: Path) -> tuple[Line, Path | None]:
    return (Line(step, Mark.HIT), path) if holds else (Line(step, Mark.MISS), None)


def _times(a: int, b: int) -> Step:
    a, b = max(a, b), min(a, b)
    return Step(a, "*", b, a * b)
