"""One thread that may not spawn: a serial chain of thought."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic

from apr.interfaces import Task
from apr.methods import P, run_graded
from apr.runtime import Observer, Runtime
from apr.trace import Trace


@dataclass(frozen=True)
class Serial(Generic[P]):
    """Refuses every spawn; the refusals are noted on the trace, and told to the model."""

    runtime: Runtime
    task: Task[P]
    name: str = "serial"

    async def solve(self, problem: P, observer: Observer | None = None) -> Trace:
        limits = replace(self.runtime.limits, depth=0)
        runtime = replace(self.runtime, limits=limits)
        return await run_graded(runtime, self.name, self.task, problem, observer)
