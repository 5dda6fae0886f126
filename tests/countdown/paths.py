"""A path to hold others against: step by step towards what can still be reached."""

from __future__ import annotations

from collections.abc import Iterable

from apr.countdown.problem import Path, Step, reaches
from apr.countdown.solver import successors


def first_path(numbers: Iterable[int], target: int) -> Path | None:
    """Some path to ``target``, always the same one, or None where there is none."""
    state = tuple(sorted(numbers, reverse=True))
    if not reaches(state, target):
        return None
    path: list[Step] = []
    while len(state) > 1:
        step, state = next(s for s in successors(state) if reaches(s[1], target))
        path.append(step)
    return tuple(path)
