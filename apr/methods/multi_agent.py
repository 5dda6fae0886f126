"""A fixed number of equal agents, whose answers the model then merges (after the debates of Du et
al., 2305.14325): the structure made by hand that a model which spawns by itself replaces.

The agents are samples of one method on the same prompt. Then the model goes on from that prompt as
though it had spawned them itself: a spawn is written for it (``delegate``) and what the agents
answered follows as its dialect tells joined messages. A debate would go on with rounds in which
every agent reads the others' answers; that takes a model which was trained, or can be told, to
read them, while any model that spawns can merge. What the merge can do is bound by what the
dialect passes on: `compact` passes on the first path found.

Cost: in total, n samples and the text after the merge; in sequence, the longest sample and that
text. At temperature 0 all samples are equal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from apr.config import check_least
from apr.interfaces import Join, Malformed, Task
from apr.methods import P
from apr.methods.coordinate import (
    Coordinator,
    Run,
    Within,
    coordinate,
    draw_samples,
)
from apr.runtime import Observer, Runtime
from apr.trace import Call, End, Thread, Trace
from apr.types import FinishReason


@dataclass(frozen=True)
class MultiAgent(Generic[P]):
    """``n`` agents, each a run of the method ``within`` with the runtime's limits to itself."""

    runtime: Runtime
    task: Task[P]
    within: Within[P]
    n: int
    delegate: Callable[[P, int], str]
    """Text of a spawn that gives the whole problem to each of so many children."""
    name: str = "multi_agent"

    def __post_init__(self) -> None:
        check_least(1, n=self.n)

    async def solve(self, problem: P, observer: Observer | None = None) -> Trace:
        async def plan(coordinator: Coordinator) -> Thread | None:
            agents = await draw_samples(coordinator, self.within, self.task, problem, self.n)
            (merged,) = await coordinator.phase([self.merge(problem, agents)])
            return merged.root

        return await coordinate(self.runtime, self.name, self.task, problem, observer, plan)

    def merge(self, problem: P, agents: Sequence[Trace]) -> Run:
        """The model goes on from the agents' answers."""
        prompt = self.task.prompt(problem)

        def run(runtime: Runtime, observer: Observer) -> Awaitable[Trace]:
            spawn = runtime.codec.encode(self.delegate(problem, self.n))
            # Never requested of an engine: what stands where a spawn of its own would stand.
            asked = Call(runtime.start_ids(prompt), spawn, (), FinishReason.STOP, 0.0, 0.0)
            prompt_ids = runtime.resume_ids(asked, [_told(agent.root) for agent in agents])
            return runtime.go_on(prompt_ids, (), prompt, observer)

        return run


def _told(root: Thread) -> Join | Malformed:
    if root.end is End.JOINED:
        return Join(root.join, root.success)
    return Malformed("; ".join(root.notes))
