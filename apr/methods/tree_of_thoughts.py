"""Tree of thoughts (Yao et al., 2305.10601, algorithm 1): breadth-first search over partial texts.

A state is what one thread has written so far. A level goes on from each state of the beam with
several sampled thoughts of one step, values what they come to, and keeps the best. Proposals and
values come from the model that solves the problem, and threads may not spawn. The verifier is
never asked: that a state is worth something is what the model claims or how sure it is.

Cost: in total, at most depth x beam x proposals thoughts, with ``Value.ROLLOUTS`` as many times
``rollouts`` whole continuations, and the rest of the best state's text. In sequence, for each level
its longest thought and its longest rollout, and that rest. Each goes on from a state by its ids, so
a prefix cache has all but the new ones. At temperature 0 all proposals of a state are equal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Generic

from apr.config import check_least
from apr.errors import ConfigError
from apr.interfaces import Append, Dialect, Join, Malformed, Operation, Rewrite, Task
from apr.methods import P, claim
from apr.methods.coordinate import Coordinator, coordinate
from apr.runtime import Observer, Runtime
from apr.trace import End, Thread, Trace
from apr.types import Ids


class Value(StrEnum):
    """What a state is worth."""

    LOGPROB = "logprob"
    """The mean logprob of its tokens; costs nothing."""
    ROLLOUTS = "rollouts"
    """The share of its sampled continuations that claim an answer. Where one of the best state
    does, that is the answer, and nothing is written after it."""


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """Size of the search."""

    depth: int = 3
    """Levels of thoughts before the best state is written to its end."""
    beam: int = 5
    """States kept of a level."""
    proposals: int = 5
    """Thoughts sampled from each state that was kept."""
    value: Value = Value.LOGPROB
    rollouts: int = 3
    """Continuations that a state is valued by, for ``Value.ROLLOUTS``."""

    def __post_init__(self) -> None:
        check_least(
            1, depth=self.depth, beam=self.beam, proposals=self.proposals, rollouts=self.rollouts
        )


@dataclass(frozen=True)
class TreeOfThoughts(Generic[P]):
    """Each thought and each continuation is a run with the runtime's limits to itself."""

    runtime: Runtime
    task: Task[P]
    steps: tuple[str, ...]
    """Strings at which a thought ends; each ends where a token does."""
    tree: TreeConfig = TreeConfig()
    name: str = "tree_of_thoughts"

    async def solve(self, problem: P, observer: Observer | None = None) -> Trace:
        async def plan(coordinator: Coordinator) -> Thread | None:
            return await _Search(self, coordinator, self.task.prompt(problem)).run()

        return await coordinate(self.runtime, self.name, self.task, problem, observer, plan)


@dataclass(frozen=True)
class _State:
    written: Ids = ()
    """What the thread has sampled after the prompt."""
    logprobs: tuple[float, ...] = ()
    is_ended: bool = False
    """Whether it has claimed an answer and cannot be gone on from."""
    claim: Thread | None = None
    """A thread that went through this state and claimed an answer, where one did."""
    value: float = 0.0


class _Search:
    def __init__(self, method: TreeOfThoughts[P], coordinator: Coordinator, prompt: str) -> None:
        self.tree = method.tree
        self.steps = method.steps
        self.claim = partial(claim, method.task)
        self.coordinator = coordinator
        self.prompt = prompt
        self.runtime = replace(method.runtime, limits=replace(method.runtime.limits, depth=0))
        self.prompt_ids = self.runtime.root_ids(prompt)

    async def run(self) -> Thread | None:
        """The thread that answers; None where no line of thought came to an end."""
        beam = [_State()]
        for _ in range(self.tree.depth):
            states = await self.weigh(await self.propose(beam))
            beam = sorted(states, key=lambda s: s.value, reverse=True)[: self.tree.beam]
            if not beam:
                return None
            if beam[0].is_ended:
                break
        if beam[0].claim is not None:
            return beam[0].claim
        (rest,) = await self.coordinator.phase([partial(self.finish, beam[0])])
        return rest.root

    async def propose(self, beam: Sequence[_State]) -> list[_State]:
        """The distinct states that one thought leads to, beside those that have ended."""
        sources = [s for s in beam if not s.is_ended for _ in range(self.tree.proposals)]
        traces = await self.coordinator.phase([partial(self.think, s) for s in sources])
        states = {s.written: s for s in beam if s.is_ended}
        for source, trace in zip(sources, traces, strict=True):
            state = self.reached(source, trace.root)
            if state is not None:
                states.setdefault(state.written, state)
        return list(states.values())

    async def weigh(self, states: Sequence[_State]) -> list[_State]:
        """The same states with their values."""
        if self.tree.value is Value.LOGPROB:
            if not all(s.logprobs for s in states):
                raise ConfigError(
                    "the engine gives no logprobs to value thoughts by: take rollouts (tree.value)"
                )
            return [replace(s, value=fmean(s.logprobs)) for s in states]
        rollouts = self.tree.rollouts
        sources = [s for s in states if not s.is_ended for _ in range(rollouts)]
        traces = iter(await self.coordinator.phase([partial(self.finish, s) for s in sources]))
        return [
            replace(s, value=1.0) if s.is_ended else self.by_rollouts(s, islice(traces, rollouts))
            for s in states
        ]

    def by_rollouts(self, state: _State, rollouts: Iterator[Trace]) -> _State:
        claims = [t.root for t in rollouts if self.claim(t.root) is not None]
        share = len(claims) / self.tree.rollouts
        return replace(state, claim=claims[0] if claims else None, value=share)

    def reached(self, source: _State, thread: Thread) -> _State | None:
        """The state that ``thread`` took ``source`` to; None where it broke off or gave up."""
        if thread.end is not End.JOINED:
            return None
        (call,) = thread.calls
        state = _State(source.written + call.ids, source.logprobs + call.logprobs)
        if self.runtime.texts(call)[1].endswith(self.steps):
            return state
        if self.claim(thread) is None:
            return None
        return replace(state, is_ended=True, claim=thread)

    def think(self, state: _State, runtime: Runtime, observer: Observer) -> Awaitable[Trace]:
        """Go on from ``state`` for one thought."""
        text = self.runtime.codec.decode(state.written)
        thoughts = replace(
            runtime,
            dialect=_Thoughts(runtime.dialect, self.steps, len(text)),
            limits=replace(self.runtime.limits, calls=1),
        )
        return thoughts.go_on(self.prompt_ids, state.written, self.prompt + text, observer)

    def finish(self, state: _State, runtime: Runtime, observer: Observer) -> Awaitable[Trace]:
        """Go on from ``state`` to the end."""
        text = self.prompt + self.runtime.codec.decode(state.written)
        serial = replace(runtime, limits=self.runtime.limits)
        return serial.go_on(self.prompt_ids, state.written, text, observer)


@dataclass(frozen=True)
class _Thoughts:
    """A dialect in which a thought ends a call, too: the thread joins with it, as no success."""

    within: Dialect
    steps: tuple[str, ...]
    num_written: int
    """Characters that stood there before the thought."""

    @property
    def name(self) -> str:
        return self.within.name

    @property
    def stops(self) -> tuple[str, ...]:
        return self.within.stops + self.steps

    def child_prompt(self, message: str) -> str:
        return self.within.child_prompt(message)

    def read(self, prompt: str, sampled: str) -> Operation:
        thought = sampled[self.num_written :]
        if thought.endswith(self.steps):
            return Join(thought, False)
        return self.within.read(prompt, sampled)

    def resume(
        self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]
    ) -> Append | Rewrite:
        return self.within.resume(prompt, sampled, joins)
