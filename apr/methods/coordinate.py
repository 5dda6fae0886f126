"""What methods with a structure made by hand have in common: a root that samples nothing itself.

A coordinator starts whole runs and ends with the message of one of them. It costs no tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from apr.interfaces import Join, Task
from apr.methods import Method, P, graded
from apr.runtime import Observer, Path, Runtime
from apr.trace import End, Thread, Trace, coordinated

Run = Callable[[Runtime, Observer], Awaitable[Trace]]
Within = Callable[[Runtime, Task[P]], Method[P]]
"""A kind of method, such as ``Serial`` or ``APR``."""


class Coordinator:
    """Starts runs, phase after phase; their roots become the children of its own.

    Each run has the runtime's limits to itself and, where sampling is seeded, a seed of its own.
    """

    def __init__(self, runtime: Runtime, observer: Observer) -> None:
        self.runtime = runtime
        self.observer = observer
        self.phases: list[list[Trace]] = []

    async def phase(self, runs: Sequence[Run]) -> list[Trace]:
        """Run all at the same time; returns their traces in order.

        Where the world fails one, the others are cancelled and leave an empty thread each.
        """
        if not runs:
            return []
        first = sum(map(len, self.phases))
        traces = [coordinated("", (), End.FAILED)] * len(runs)
        self.phases.append(traces)

        async def one(i: int, run: Run) -> None:
            number = first + i
            traces[i] = await run(self.runtime.reseeded(number), _Below(self.observer, number))
            if traces[i].error is not None:
                raise _Failed

        try:
            async with asyncio.TaskGroup() as group:
                for i, run in enumerate(runs):
                    group.create_task(one(i, run))
        except ExceptionGroup as e:
            # A defect before a failure, which the trace tells anyway.
            raise min(e.exceptions, key=lambda cause: isinstance(cause, _Failed)) from None
        return traces

    def record(self, traces: list[Trace]) -> None:
        """Take as a phase what ran by itself, and has told the observer so already."""
        self.phases.append(traces)
        if any(trace.error is not None for trace in traces):
            raise _Failed


async def coordinate(
    runtime: Runtime,
    name: str,
    task: Task[P],
    problem: P,
    observer: Observer | None,
    plan: Callable[[Coordinator], Awaitable[Thread | None]],
) -> Trace:
    """Carry out ``plan``; the coordinator ends as the thread it returns, or joins with nothing.

    Returns:
        A trace with answer and grade; with neither where the world failed a run.
    """
    message, observer = task.prompt(problem), observer or Observer()
    coordinator = Coordinator(runtime, observer)
    observer.on_thread((), message)
    end, join = End.CANCELLED, Join("", False)
    try:
        chosen = await plan(coordinator)
        end = End.JOINED
        if chosen is not None:
            end, join = chosen.end, Join(chosen.join, chosen.success)
    except _Failed:
        end = End.FAILED
    finally:
        observer.on_end((), end, join if end is End.JOINED else None)
    trace = coordinated(message, coordinator.phases, end, join.message, join.success)
    return graded(trace, name, task, problem)


async def draw_samples(
    coordinator: Coordinator, within: Within[P], task: Task[P], problem: P, n: int
) -> list[Trace]:
    """``n`` samples of one method at the same time, graded each."""

    def sample(runtime: Runtime, observer: Observer) -> Awaitable[Trace]:
        return within(runtime, task).solve(problem, observer)

    return await coordinator.phase([sample] * n)


class _Failed(Exception):
    """The world failed a run, which ends the plan."""


class _Below(Observer):
    """Tells ``above`` of a run as of child ``number`` of its root."""

    def __init__(self, above: Observer, number: int) -> None:
        self.above = above
        self.number = number

    def on_thread(self, path: Path, message: str) -> None:
        self.above.on_thread((self.number, *path), message)

    def on_tokens(self, path: Path, ids: Sequence[int]) -> None:
        self.above.on_tokens((self.number, *path), ids)

    def on_end(self, path: Path, end: End, join: Join | None) -> None:
        self.above.on_end((self.number, *path), end, join)
