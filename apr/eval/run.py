"""One method over many problems, a bounded number of them at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

from apr.methods import Method
from apr.trace import Trace

P = TypeVar("P")


async def run_problems(
    method: Method[P],
    problems: Iterable[P],
    concurrency: int,
    on_trace: Callable[[Trace], None] | None = None,
) -> list[Trace]:
    """Solve ``problems``; the traces come back in their order, whichever ends first.

    Args:
        on_trace: called with each trace as it ends.

    Raises:
        ContextError: the prompt of a problem leaves no room to sample; all runs are cancelled.
    """
    gate = asyncio.Semaphore(concurrency)

    async def solve(problem: P) -> Trace:
        async with gate:
            trace = await method.solve(problem)
        if on_trace is not None:
            on_trace(trace)
        return trace

    tasks: list[asyncio.Task[Trace]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(solve(problem)) for problem in problems]
    except ExceptionGroup as e:
        raise e.exceptions[0] from None
    return [task.result() for task in tasks]
