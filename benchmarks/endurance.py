"""Whether memory stays bounded: a long queue run to its end, and a soak."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from apr.api import Inference, Model, pose
from apr.countdown.problem import Problem, Split
from apr.engine import EmbeddedEngine
from apr.interfaces import Engine
from apr.runtime import Observer, Path
from apr.types import Sampling
from benchmarks.machine import resident_mib
from benchmarks.work import random_ids

_PERIOD = 30.0
"""Least seconds between two looks at memory, each with nothing in flight."""
_WAVE = 64
"""Traces at the same time."""
_LIVES = 400
"""Most tokens after which a trace that is to be cancelled is cancelled."""
_ALLOWED = 0.03
"""Share by which memory may grow from the second quarter of a soak to its last."""


class Queue(NamedTuple):
    """Requests asked for all at once."""

    num_tokens: int
    seconds: float
    before_mib: float
    peak_mib: float


def queue(engine: Engine, vocabulary: int, num_requests: int, new: int = 16) -> Queue:
    """Ask for ``num_requests`` at once and wait for all; memory is looked at as each ends."""
    prompts = random_ids(num_requests, 64, vocabulary, seed=0)
    before = peak = resident_mib()

    async def one(prompt: list[int]) -> int:
        nonlocal peak
        completion = await engine.generate(prompt, Sampling(new))
        peak = max(peak, resident_mib())
        return len(completion.ids)

    async def run() -> int:
        return sum(await asyncio.gather(*map(one, prompts)))

    start = time.perf_counter()
    num_tokens = asyncio.run(run())
    return Queue(num_tokens, time.perf_counter() - start, before, peak)


class Look(NamedTuple):
    """How things stand while nothing is in flight."""

    minutes: float
    resident_mib: float
    free_pages: int
    cached_pages: int
    num_preempted: int
    num_ended: int  # traces
    num_cancelled: int

    def __str__(self) -> str:
        return (
            f"{self.minutes:6.1f} min {self.resident_mib:8.1f} MiB; pages: {self.free_pages} free, "
            f"{self.cached_pages} cached; {self.num_preempted} preemptions; traces: "
            f"{self.num_ended} ended, {self.num_cancelled} cancelled"
        )


def soak(model: Model, minutes: float, report: Callable[[Look], None]) -> list[Look]:
    """Keep traces, cancellations and evictions going; memory should be too small for them all.

    Raises:
        AssertionError: a page is held by nobody, or by one who does not know of it.
    """
    start = time.perf_counter()
    problems = pose(model.recipe, Split.TEST, 500)
    looks: list[Look] = []
    num_ended = num_waves = 0
    while not looks or looks[-1].minutes < minutes:
        until = time.perf_counter() + min(_PERIOD, 60 * minutes)
        while time.perf_counter() < until:
            num_ended += asyncio.run(_wave(model, problems, seed=num_waves))
            num_waves += 1
        elapsed = (time.perf_counter() - start) / 60
        looks.append(_look(model.engine, elapsed, num_ended, num_waves * _WAVE - num_ended))
        report(looks[-1])
    return looks


def growth(looks: list[Look]) -> float:
    """Share by which memory grew from the second quarter of ``looks`` to the last."""
    count = len(looks)
    early, late = looks[count // 4 : count // 2] or looks[:1], looks[-max(1, count // 4) :]
    means = [sum(look.resident_mib for look in part) / len(part) for part in (early, late)]
    return means[1] / means[0] - 1


def grew(looks: list[Look]) -> bool:
    return growth(looks) > _ALLOWED


@dataclass
class _Fate(Observer):
    """Cancels the task that runs a trace once the trace has sampled so many tokens."""

    task: asyncio.Task[object]
    tokens: int

    def on_tokens(self, path: Path, ids: Sequence[int]) -> None:
        left = self.tokens - len(ids)
        if left <= 0 < self.tokens:
            self.task.cancel()
        self.tokens = left


async def _wave(model: Model, problems: list[Problem], seed: int) -> int:
    """Traces at the same time, half of which are to be cancelled; returns how many ended."""
    draw = random.Random(seed)
    method = model.method(Inference(temperature=1.0, seed=seed))

    async def one(problem: Problem, tokens: int) -> bool:
        task = asyncio.current_task()
        assert task is not None
        with suppress(asyncio.CancelledError):
            await method.solve(problem, _Fate(task, tokens))
            return True
        return False

    lives = [draw.randint(1, _LIVES) if draw.random() < 0.5 else 0 for _ in range(_WAVE)]
    chosen = draw.choices(problems, k=_WAVE)
    return sum(await asyncio.gather(*map(one, chosen, lives)))


def _look(engine: Engine, minutes: float, num_ended: int, num_cancelled: int) -> Look:
    assert isinstance(engine, EmbeddedEngine)
    scheduler = engine.scheduler
    scheduler.check()
    assert not scheduler.running
    assert not scheduler.waiting
    num_cached = sum(1 for _ in scheduler.cache.nodes())
    assert scheduler.pool.num_free + num_cached == scheduler.pool.num_pages
    return Look(
        minutes,
        resident_mib(),
        scheduler.pool.num_free,
        num_cached,
        scheduler.num_preempted,
        num_ended,
        num_cancelled,
    )
