"""One request while the engine works on it."""

from __future__ import annotations

import random
from array import array
from asyncio import CancelledError, Future, get_running_loop
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from operator import index
from typing import Any

from apr.types import Completion, FinishReason, Sampling


@dataclass(eq=False, slots=True)
class Sequence:
    """Ids so far, where their keys and values are, and who waits for the rest."""

    ids: list[int]
    """The prompt, then what was sampled."""
    num_prompt: int
    sampling: Sampling
    future: Future[Completion]
    on_tokens: Callable[[Ids[int]], None] | None
    rng: random.Random
    """Its stream depends on the seed alone: number n of ``uniforms`` is for the nth id sampled."""
    uniforms: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pages: array[int] = field(default_factory=lambda: array("i"))
    num_computed: int = 0
    """Ids, from the first on, whose keys and values are in ``pages``."""

    @property
    def sampled(self) -> list[int]:
        return self.ids[self.num_prompt :]

    @property
    def num_sampled(self) -> int:
        return len(self.ids) - self.num_prompt

    def next_uniforms(self, count: int) -> list[float]:
        """Random numbers for the next ids, the same ones until those are there."""
        start = self.num_sampled
        while len(self.uniforms) < start + count:
            self.uniforms.append(self.rng.random())
        return self.uniforms[start : start + count]

    def extend(
        self, ids: list[int], logprobs: list[float], decode: Callable[[Ids[int]], str] | None
    ) -> None:
        """Take sampled ids, of which the last at most ends it; resolves ``future`` if one does.

        Whoever was cancelled since the step began no longer waits, and hears nothing more.
        """
        if self.future.done():
            return
        self.ids += ids
        self.logprobs += logprobs
        try:
            if self.on_tokens is not None:
                self.on_tokens(ids)
            if self.sampling.stops(self.ids, decode, self.num_prompt):
                self.finish(FinishReason.STOP)
            elif self.num_sampled == self.sampling.max_tokens:
                self.finish(FinishReason.LENGTH)
        except (Exception, CancelledError) as e:
            fail(self.future, e)  # The listener's fault: its own request fails, nobody else's.

    def finish(self, reason: FinishReason) -> None:
        """Resolve ``future`` with what has been sampled, unless its listener has cancelled it."""
        if not self.future.done():
            self.future.set_result(Completion(tuple(self.sampled), tuple(self.logprobs), reason))


def fail(future: Future[Any], error: BaseException) -> None:
    """End ``future`` with ``error``, if somebody still waits for it."""
    if not future.done():
        future.set_exception(error)


def sequence_of(
    ids: Ids[int], sampling: Sampling, on_tokens: Callable[[Ids[int]], None] | None
) -> Sequence:
    """A request that goes on from ``ids``, on the event loop that runs now."""
    return Sequence(
        ids=list(map(index, ids)),  # Whatever integers they are: C reads those of one kind.
        num_prompt=len(ids),
        sampling=sampling,
        future=get_running_loop().create_future(),
        on_tokens=on_tokens,
        rng=random.Random(sampling.seed),
    )
