"""Adaptive parallel reasoning (2504.15466): the model decides when to spawn, and what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from apr.interfaces import Task
from apr.methods import P, run_graded
from apr.runtime import Observer, Runtime
from apr.trace import Trace


@dataclass(frozen=True)
class APR(Generic[P]):
    """Threads as the model spawns them, within the runtime's limits."""

    runtime: Runtime
    task: Task[P]
    name: str = "apr"

    async def solve(self, problem: P, observer: Observer | None = None) -> Trace:
        return await run_graded(self.runtime, self.name, self.task, problem, observer)
