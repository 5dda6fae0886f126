"""Self-consistency, cons@n (Wang et al., 2203.11171): n samples of one method vote on the answer.

Samples that claim no solution have no vote (Pan et al., 2504.15466, section 4). The verifier has
none either: it grades the answer that won, and never sees the others.

Cost: in total, n samples; in sequence, the longest of them. At temperature 0 all samples are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from apr.config import check_least
from apr.interfaces import Task
from apr.methods import P
from apr.methods.coordinate import Coordinator, Within, coordinate, draw_samples
from apr.runtime import Observer, Runtime
from apr.trace import Thread, Trace


@dataclass(frozen=True)
class SelfConsistency(Generic[P]):
    """``n`` samples of the method ``within``, each with the runtime's limits to itself."""

    runtime: Runtime
    task: Task[P]
    within: Within[P]
    n: int
    name: str = "self_consistency"

    def __post_init__(self) -> None:
        check_least(1, n=self.n)

    async def solve(self, problem: P, observer: Observer | None = None) -> Trace:
        async def plan(coordinator: Coordinator) -> Thread | None:
            samples = await draw_samples(coordinator, self.within, self.task, problem, self.n)
            return vote(self.task, samples)

        return await coordinate(self.runtime, self.name, self.task, problem, observer, plan)


def vote(task: Task[P], samples: Sequence[Trace]) -> Thread | None:
    """The root of the first sample whose claim most others share; None where none claims any.

    Claims are told apart by their canonical form. Of forms with equally many votes, the one that
    was claimed by the earliest sample wins.
    """
    claims = [(task.canonical(s.answer), s.root) for s in samples if s.answer is not None]
    votes = Counter(form for form, _ in claims)
    # ``max`` takes the first of equals.
    return max(claims, key=lambda c: votes[c[0]])[1] if claims else None
