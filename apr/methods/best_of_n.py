"""Best of n: n samples of one method, of which a chooser takes one.

With the verifier as the chooser it solves what any sample solves: pass@n (Chen et al., 2107.03374).

Cost: in total, n samples; in sequence, the longest of them. At temperature 0 all samples are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Generic

from apr.config import check_least
from apr.errors import ConfigError
from apr.interfaces import Task
from apr.methods import P
from apr.methods.coordinate import Coordinator, Within, coordinate, draw_samples
from apr.runtime import Observer, Runtime
from apr.trace import Thread, Trace


class Chooser(StrEnum):
    """Which sample is taken, of those that claim an answer."""

    FIRST = "first"
    """The first in the order of their numbers, whichever ended first."""
    LOGPROB = "logprob"
    """The one whose sampled tokens, over all its threads, have the highest mean logprob."""
    ORACLE = "oracle"
    """The first that is correct: an upper bound, since it takes a verifier to know."""


@dataclass(frozen=True)
class BestOfN(Generic[P]):
    """``n`` samples of the method ``within``, each with the runtime's limits to itself."""

    runtime: Runtime
    task: Task[P]
    within: Within[P]
    n: int
    chooser: Chooser = Chooser.FIRST
    name: str = "best_of_n"

    def __post_init__(self) -> None:
        check_least(1, n=self.n)

    async def solve(self, problem: P, observer: Observer | None = None) -> Trace:
        async def plan(coordinator: Coordinator) -> Thread | None:
            samples = await draw_samples(coordinator, self.within, self.task, problem, self.n)
            return choose(self.chooser, samples)

        return await coordinate(self.runtime, self.name, self.task, problem, observer, plan)


def choose(chooser: Chooser, samples: Sequence[Trace]) -> Thread | None:
    """The root of the sample to take; None where none claims an answer. Ties go to the first.

    Raises:
        ConfigError: they are to be chosen by logprobs, and none has any.
    """
    claims = [sample for sample in samples if sample.answer is not None]
    if chooser is Chooser.LOGPROB:
        if claims and max(map(mean_logprob, claims)) == -math.inf:
            raise ConfigError(
                "the engine gives no logprobs to choose samples by: take another chooser"
            )
        claims.sort(key=mean_logprob, reverse=True)
    if chooser is Chooser.ORACLE:
        claims.sort(key=lambda sample: sample.is_correct, reverse=True)
    return claims[0].root if claims else None


def mean_logprob(trace: Trace) -> float:
    """Mean over all sampled tokens that have a logprob; minus infinity where none has."""
    logprobs = [p for t in trace.threads for c in t.calls for p in c.logprobs]
    return fmean(logprobs) if logprobs else -math.inf
