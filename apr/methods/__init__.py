"""Ways to spend inference on a problem, all over the runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypeVar

from apr.interfaces import Task
from apr.runtime import Observer, Runtime
from apr.trace import End, Thread, Trace

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)


class Method(Protocol[P_contra]):
    """A way to spend inference on a problem; made once, it solves any number of them."""

    @property
    def name(self) -> str: ...

    async def solve(self, problem: P_contra, observer: Observer | None = None) -> Trace:
        """A trace with its answer and grade; with neither where ``error`` is set.

        Raises:
            ContextError: the problem's prompt leaves no room to sample.
        """
        ...


def graded(trace: Trace, name: str, task: Task[P], problem: P) -> Trace:
    """``trace`` as the run of method ``name`` on ``problem``: with its answer and grade."""
    trace = replace(trace, problem=task.to_json(problem), method=name)
    if trace.error is not None:
        return trace
    answer = claim(task, trace.root)
    return replace(trace, answer=answer, grade=task.grade(problem, answer))


def claim(task: Task[P], root: Thread) -> str | None:
    """The answer that a run with this root claims; None where it claims nothing."""
    return task.answer(root.join) if root.end is End.JOINED else None


async def run_graded(
    runtime: Runtime, name: str, task: Task[P], problem: P, observer: Observer | None
) -> Trace:
    """Run one tree of threads from the task's prompt, and grade it."""
    return graded(await runtime.run(task.prompt(problem), observer), name, task, problem)
