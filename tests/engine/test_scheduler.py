"""The scheduler without a network: whatever is asked, pages add up and everybody ends."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.engine.pages import PagePool
from apr.engine.scheduler import Scheduler
from apr.engine.sequence import Sequence
from apr.types import FinishReason, Sampling

REQUEST = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))


def sequence(loop: asyncio.AbstractEventLoop, num_prompt: int, max_tokens: int, first: int = 0):
    ids = [first + i % 2 for i in range(num_prompt)]
    return Sequence(
        ids, num_prompt, Sampling(max_tokens), loop.create_future(), None, random.Random(0)
    )


def step(scheduler: Scheduler) -> None:
    """What the engine does, but for the network: every sequence that may sample samples a 7 or,
    in a burst, two."""
    chunks = scheduler.schedule()
    assert chunks, "somebody waits and nobody may run"
    assert sum(c.end - c.start for c in chunks) <= scheduler.max_batch_tokens
    assert len({id(c.sequence) for c in chunks}) == len(chunks) <= scheduler.max_batch
    for chunk in chunks:
        assert chunk.start == chunk.sequence.num_computed
        assert len(chunk.sequence.pages) * scheduler.page_size >= chunk.end
    # Nobody writes to a page that somebody else reads.
    written = [
        c.sequence.pages[p // scheduler.page_size]
        for c in chunks
        for p in {p // scheduler.page_size * scheduler.page_size for p in range(c.start, c.end)}
    ]
    assert len(written) == len(set(written))
    burst = scheduler.stretch(chunks, 2) if all(c.samples for c in chunks) else 1
    assert all(len(c.sequence.pages) * scheduler.page_size >= c.end for c in chunks)
    scheduler.commit(chunks)
    for chunk in chunks:
        if chunk.samples:
            sequence = chunk.sequence
            count = min(burst, sequence.sampling.max_tokens - sequence.num_sampled)
            sequence.num_computed += count - 1
            assert len(sequence.pages) * scheduler.page_size >= sequence.num_computed
            sequence.extend([7] * count, [-1.0] * count, None)
            if chunk.sequence.future.done():
                scheduler.remove(chunk.sequence)
    scheduler.check()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=10),
    num_pages=st.integers(6, 20),
    max_batch_tokens=st.integers(1, 16),
    prefix_cache=st.booleans(),
    cancelled=st.sets(st.integers(0, 9)),
)
def test_all_requests_end_however_little_memory_there_is(
    requests: list[tuple[int, int, int]],
    num_pages: int,
    max_batch_tokens: int,
    prefix_cache: bool,
    cancelled: set[int],
) -> None:
    loop = asyncio.new_event_loop()
    scheduler = Scheduler(PagePool(num_pages), 4, 5, max_batch_tokens, prefix_cache)
    sequences = [sequence(loop, *request) for request in requests]
    for s in sequences:
        scheduler.add(s)
    for n in range(2000):
        if not (scheduler.running or scheduler.waiting):
            break
        if n == 3:
            for s in (s for i, s in enumerate(sequences) if i in cancelled):
                scheduler.remove(s)
                scheduler.check()
            continue
        step(scheduler)
    loop.close()
    assert not scheduler.running
    assert not scheduler.waiting
    for i, s in enumerate(sequences):
        assert not s.pages
        if i not in cancelled:
            assert s.future.result().finish_reason is FinishReason.LENGTH
            assert s.num_sampled == s.sampling.max_tokens
    scheduler.cache.clear()
    assert scheduler.pool.num_free == num_pages, "a page was lost"


def test_the_youngest_gives_way_and_comes_back() -> None:
    loop = asyncio.new_event_loop()
    scheduler = Scheduler(PagePool(5), 2, 8, 64, prefix_cache=False)
    old, young = sequence(loop, 3, 6), sequence(loop, 3, 6, first=3)
    scheduler.add(old)
    scheduler.add(young)
    order = []
    while scheduler.running or scheduler.waiting:
        step(scheduler)
        order += [s for s in (old, young) if s.future.done() and s not in order]
    loop.close()
    assert scheduler.num_preempted > 0
    assert order == [old, young]


@pytest.mark.parametrize("num_new", [1, 5])
def test_a_prompt_seen_before_is_not_computed_again(num_new: int) -> None:
    loop = asyncio.new_event_loop()
    scheduler = Scheduler(PagePool(32), 2, 8, 64)
    first, second = sequence(loop, 9, num_new), sequence(loop, 9, num_new)
    scheduler.add(first)
    step(scheduler)
    assert (first in scheduler.running) == (num_new > 1), "whether it still runs or has ended"
    scheduler.add(second)
    chunks = scheduler.schedule()
    loop.close()
    assert [(c.start, c.end) for c in chunks if c.sequence is second] == [(8, 9)]
    assert scheduler.num_reused == 8


def test_whoever_does_not_fit_costs_the_cache_nothing() -> None:
    loop = asyncio.new_event_loop()
    scheduler = Scheduler(PagePool(16), 2, 8, 64)
    parent, child = sequence(loop, 12, 1), sequence(loop, 8, 4, first=3)
    newcomer = sequence(loop, 24, 1, first=5)
    scheduler.add(parent)
    step(scheduler)
    scheduler.add(child)
    scheduler.add(newcomer)
    step(scheduler)
    assert list(scheduler.waiting) == [newcomer], "it takes 12 pages of 16, of which 5 are in use"
    scheduler.remove(newcomer)
    goes_on = sequence(loop, 12, 1)
    scheduler.add(goes_on)
    chunks = scheduler.schedule()
    loop.close()
    assert [c.start for c in chunks if c.sequence is goes_on] == [10], "its parent is still there"


@pytest.mark.parametrize("budget", [64, 5])
def test_a_prompt_of_many_is_computed_once(budget: int) -> None:
    """Who shares it waits for whoever computes it, also where that takes several steps; others
    do not wait."""
    loop = asyncio.new_event_loop()
    scheduler = Scheduler(PagePool(64), 4, max_batch=16, max_batch_tokens=budget)
    same = [sequence(loop, 12, 3) for _ in range(4)]
    other = sequence(loop, 3, 3, first=5)
    for each in [*same[:2], other, *same[2:]]:
        scheduler.add(each)
    step(scheduler)
    assert list(scheduler.running) == ([same[0], other] if budget == 64 else [same[0]])
    assert list(scheduler.waiting)[-2:] == same[2:]
    while scheduler.running or scheduler.waiting:
        step(scheduler)
    assert scheduler.num_reused == 3 * 8
    loop.close()
