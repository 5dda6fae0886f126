"""Paths that a child may claim though they are wrong, for its parent to learn not to believe.

A model that searches wrongly does so in one way above all: a result comes out wrong, and with it
the target is met. Here one result of a path that misses is misstated so that it does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from apr.countdown.balance import Balance, Mark
from apr.countdown.problem import Path, Step, divisible
from apr.countdown.solver import Search

FARTHEST = 20
"""How far from the truth a result in the midst of a path may be."""


def false_path(target: int, found: Search, rng: random.Random) -> Path | None:
    """A path out of ``found`` with one wrong result, because of which it ends at ``target``.

    Half of the time the wrong result is not the last, where ``found`` has a path that allows it.
    None: the search came to no complete expression that misses.
    """
    missed = [path for path in _complete(found) if path[-1].value != target]
    if not missed:
        return None
    # Near misses are what a model takes for hits.
    path = min(rng.choices(missed, k=4), key=lambda p: abs(p[-1].value - target))
    if rng.random() < 0.5:
        misled = [p for at in range(len(path) - 1) if (p := _misled(path, at, target))]
        if misled:
            return rng.choice(misled)
    return (*path[:-1], path[-1]._replace(value=target))


def false_proof(found: Balance, rng: random.Random) -> Path:
    """The path that one of the comparisons that do not hold in ``found`` would prove."""
    return rng.choice([line.proof for line in found.lines if line.mark is Mark.MISS])


def _complete(found: Search) -> Iterator[Path]:
    for visit in found.visits:
        yield from (node.path for node in visit.successors if len(node.numbers) == 1)
        for search in visit.searches:
            yield from _complete(search)


def _misled(path: Path, at: int, target: int) -> Path | None:
    """``path`` with the result of step ``at`` misstated by as little as leads to ``target``."""
    true = path[at].value
    for off in range(1, FARTHEST + 1):
        for value in (true + off, true - off):
            told = _retold(path, at, value) if value > 0 else None
            if told and told[-1].value == target:
                return told
    return None


def _retold(path: Path, at: int, value: int) -> Path | None:
    """``path`` as it goes on, rightly, from ``value`` as the result of step ``at``."""
    told = [*path[:at], path[at]._replace(value=value)]
    instead = {path[at].value: value}
    for step in path[at + 1 :]:
        a, b = sorted((instead.pop(n, n) for n in (step.a, step.b)), reverse=True)
        if step.op == "/" and not divisible(a, b):
            return None
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[step.op]
        told.append(Step(a, step.op, b, result))
        instead[step.value] = result
    return tuple(told)
