"""Workers that see each other's tokens as they are written (Hogwild! inference, Rodionov et al.,
2504.06261), over an engine with one cache for all of them.

All workers begin from the same prompt. Before its own text each finds what the others have written
so far. The paper asks large models, in words, to share the work among themselves. Here nobody is
asked: a model that was trained on single threads of search has never met a text that breaks off in
mid-line and begins anew, and it was not trained to read others, let alone to divide the work. So
this measures what such a model makes of such a context, and no more; it is a baseline, and says
nothing about models that were trained, or can be told, to collaborate. Read it beside
``best_of_n``, as many samples which do not see each other, but mind the context: there each sample
has the whole of it, here n workers share it, and each has some nth part.

Workers differ by what was sampled alone: at temperature 0 they all write the same. They share the
context, which holds the prompt and all that they write; the runtime's other limits each has to
itself. None may spawn: a spawn ends its worker.

Cost: in total, the tokens of all workers; in sequence, those of the longest. Where the runtime is
set to end at the first success, the first claim stops the others, and the longest is who made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Generic

from apr.config import check_least
from apr.errors import ConfigError, EngineError
from apr.interfaces import Join, Malformed, SharedEngine, Spawn, Task
from apr.methods import P, claim, graded
from apr.methods.coordinate import Coordinator, coordinate
from apr.methods.self_consistency import vote
from apr.runtime import Observer, Runtime
from apr.trace import Call, End, Thread, Trace
from apr.types import Completion, FinishReason


class Taken(StrEnum):
    """Which worker answers, of those that claim an answer."""

    FIRST = "first"
    """The one that joined first; of several in one step, the one with the lowest number."""
    VOTE = "vote"
    """The first, by number, whose claim most others share."""


@dataclass(frozen=True)
class Hogwild(Generic[P]):
    """``n`` workers on one problem.

    Raises:
        ConfigError: the engine cannot do that, or a vote is asked for which the first claim ends.
    """

    runtime: Runtime
    task: Task[P]
    n: int
    taken: Taken = Taken.FIRST
    name: str = "hogwild"

    def __post_init__(self) -> None:
        check_least(1, n=self.n)
        shared_engine(self.runtime)
        if self.runtime.first_success and self.taken is Taken.VOTE:
            raise ConfigError("where the first success ends the run nobody votes: choose one")

    async def solve(self, problem: P, observer: Observer | None = None) -> Trace:
        async def plan(coordinator: Coordinator) -> Thread | None:
            workers = _Workers(self, coordinator.observer, self.task.prompt(problem))
            await workers.run()
            traces = [graded(trace, self.name, self.task, problem) for trace in workers.traces()]
            coordinator.record(traces)
            if self.taken is Taken.VOTE:
                return vote(self.task, traces)
            return workers.claims[0] if workers.claims else None

        return await coordinate(self.runtime, self.name, self.task, problem, observer, plan)


def shared_engine(runtime: Runtime) -> SharedEngine:
    """The engine of ``runtime``. Raises ConfigError where its workers cannot see each other."""
    if not isinstance(runtime.engine, SharedEngine):
        raise ConfigError(
            "hogwild needs workers that share one cache, which the embedded engine alone has: "
            "load the model into it, or use best_of_n here"
        )
    return runtime.engine


class _Workers:
    """The state of one run: what its workers have written, and how they ended."""

    def __init__(self, method: Hogwild[P], observer: Observer, message: str) -> None:
        self.runtime = method.runtime
        self.claim = partial(claim, method.task)
        self.observer = observer
        self.message = message
        self.prompt_ids = method.runtime.root_ids(message)
        self.clock = asyncio.get_running_loop().time
        self.start = self.clock()
        self.ids: list[list[int]] = [[] for _ in range(method.n)]
        self.threads: dict[int, Thread] = {}
        """Those of the workers that have ended."""
        self.claims: list[Thread] = []
        """Threads that claim an answer, in the order in which they ended."""
        self.error: str | None = None
        """What failed in the world, if anything did."""

    async def run(self) -> None:
        """Let all workers write until each has ended; however that comes, all are on record."""
        seconds = self.runtime.limits.seconds
        end, reason = End.CANCELLED, ""
        for i in range(len(self.ids)):
            self.observer.on_thread((i,), self.message)
        try:
            async with asyncio.timeout(seconds) as timer:
                await self.generate()
        except TimeoutError:
            if not timer.expired():
                raise
            end, reason = End.EXHAUSTED, f"The run's {seconds} seconds are over."
        except EngineError as e:
            end, self.error = End.FAILED, f"{type(e).__name__}: {e}"
        finally:
            for i in range(len(self.ids)):
                if i not in self.threads:
                    self.close(i, None, end, reason)

    async def generate(self) -> None:
        runtime, prompt_ids = self.runtime, self.prompt_ids
        max_tokens, _ = self.allowance()
        await shared_engine(runtime).generate_together(
            prompt_ids,
            [()] * len(self.ids),
            [
                runtime.reseeded(i).sampling_of((), 0, prompt_ids, max_tokens)
                for i in range(len(self.ids))
            ],
            runtime.context,
            self.on_tokens,
            self.on_end,
        )

    def allowance(self) -> tuple[int, str]:
        """Most tokens that a worker may sample, and what sets that bound."""
        sampling, limits = self.runtime.sampling, self.runtime.limits
        bounds = [
            (self.runtime.context - len(self.prompt_ids), self.full),
            (sampling.max_tokens, f"The call has sampled its {sampling.max_tokens} tokens."),
        ]
        if limits.total_tokens is not None:
            spent = f"The worker has sampled its {limits.total_tokens} tokens."
            bounds.append((limits.total_tokens, spent))
        return min(bounds, key=lambda bound: bound[0])

    @property
    def full(self) -> str:
        return f"The context of {self.runtime.context} tokens, which all workers share, is full."

    def on_tokens(self, worker: int, ids: Sequence[int]) -> None:
        self.ids[worker] += ids
        self.observer.on_tokens((worker,), ids)

    def on_end(self, worker: int, completion: Completion) -> bool:
        """Put a worker that has ended on record; returns whether the others go on."""
        if completion.finish_reason is FinishReason.LENGTH:
            max_tokens, reason = self.allowance()
            reason = reason if len(completion.ids) == max_tokens else self.full
            self.close(worker, completion, End.EXHAUSTED, reason)
            return True
        operation = self.runtime.dialect.read(*self.runtime.texts(self.call(worker, completion)))
        match operation:
            case Join():
                thread = self.close(worker, completion, End.JOINED, join=operation)
                if self.claim(thread) is not None:
                    self.claims.append(thread)
            case Malformed(reason):
                self.close(worker, completion, End.MALFORMED, reason)
            case Spawn(messages):
                num = len(messages)
                reason = f"Refused {num} of {num} children: a worker may not spawn."
                self.close(worker, completion, End.MALFORMED, reason)
        return not (self.runtime.first_success and self.claims)

    def close(
        self,
        worker: int,
        completion: Completion | None,
        end: End,
        reason: str = "",
        join: Join | None = None,
    ) -> Thread:
        thread = self.threads[worker] = Thread(
            index=0,
            parent=None,
            message=self.message,
            calls=(self.call(worker, completion),),
            spawns=(),
            end=end,
            join=join.message if join else "",
            success=join is not None and join.success,
            notes=(reason,) if reason else (),
        )
        self.observer.on_end((worker,), end, join)
        return thread

    def call(self, worker: int, completion: Completion | None) -> Call:
        """What the engine gave a worker; without a completion, what was heard of it."""
        ids, logprobs, finish_reason = completion or (tuple(self.ids[worker]), (), None)
        others = [len(other) for i, other in enumerate(self.ids) if i != worker]
        # Of the others it saw what they had written before its last token was drawn.
        beside = sum(min(num, max(len(ids) - 1, 0)) for num in others)
        now = self.clock() - self.start
        return Call(self.prompt_ids, ids, logprobs, finish_reason, 0.0, now, beside)

    def traces(self) -> list[Trace]:
        """One for each worker, in order."""
        threads = [self.threads[i] for i in range(len(self.ids))]
        return [
            Trace({}, "", (t,), error=self.error if t.end is End.FAILED else None) for t in threads
        ]
