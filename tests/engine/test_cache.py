"""Page pool and radix tree under any sequence of operations, checked after each."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apr.engine.pages import PagePool
from apr.engine.radix import Node, RadixCache

SIZE = 2
PAGES = 12
IDS = st.lists(st.integers(0, 2), max_size=12)


def under(node: Node) -> Iterator[Node]:
    for child in node.children.values():
        yield child
        yield from under(child)


class CacheMachine(RuleBasedStateMachine):
    """Holders come and go as the scheduler's sequences do; a plain dict says what is cached."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.cache = RadixCache(self.pool, SIZE)
        self.held: list[list[int]] = []
        self.content: dict[int, tuple[int, ...]] = {}
        """What each page was computed for: the whole prefix up to its end."""

    @rule(ids=IDS)
    def run_a_sequence(self, ids: list[int]) -> None:
        cached = self.cache.match(ids)
        assert len(cached) <= len(ids) // SIZE
        for n, page in enumerate(cached, 1):
            assert self.content[page] == tuple(ids[: n * SIZE]), "a match is another prefix"
        missing = -(-len(ids) // SIZE) - len(cached)
        short = missing - self.pool.num_free
        if short > 0 and not self.cache.evict(short):
            self.pool.release(cached)
            return
        fresh = self.pool.allocate(missing)
        for n, page in enumerate(fresh, len(cached) + 1):
            self.content[page] = tuple(ids[: n * SIZE])
        pages = cached + fresh
        self.cache.insert(ids, pages)
        self.held.append(pages)
        again = self.cache.match(ids)
        assert len(again) == len(ids) // SIZE, "what was inserted is found"
        self.pool.release(again)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end_a_sequence(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(count=st.integers(0, PAGES))
    def evict(self, count: int) -> None:
        free = self.pool.num_free
        in_use = {page for pages in self.held for page in pages}

        def idle(node: Node) -> int:
            """Nodes that can go of ``node`` and all below it: it, if all of them can."""
            below, there = sum(map(idle, node.children.values())), sum(1 for _ in under(node))
            return below + (below == there and node.page not in in_use)

        enough = count <= sum(map(idle, self.cache.root.children.values()))
        assert self.cache.evict(count) == enough
        assert self.pool.num_free == free + count * enough

    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @invariant()
    def everything_adds_up(self) -> None:
        self.pool.check()
        self.cache.check()
        holders = [0] * PAGES
        for page in [p for pages in self.held for p in pages]:
            holders[page] += 1
        for node in self.cache.nodes():
            holders[node.page] += 1
        assert holders == self.pool.holders


CacheMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
TestCache = CacheMachine.TestCase


def test_the_leaf_idle_longest_goes_first() -> None:
    pool = PagePool(4)
    cache = RadixCache(pool, 1)
    for ids in ([1], [2], [3]):
        pages = pool.allocate(1)
        cache.insert(ids, pages)
        pool.release(pages)
    pool.release(cache.match([1]))
    assert cache.evict(1)
    assert cache.match([2]) == []
    assert len(cache.match([1])) == 1
    assert len(cache.match([3])) == 1


def test_a_page_in_use_is_never_evicted() -> None:
    pool = PagePool(2)
    cache = RadixCache(pool, 1)
    pages = pool.allocate(2)
    cache.insert([1, 2], pages)
    pool.release(pages[1:])
    assert not cache.evict(2), "only the second is idle"
    assert pool.num_free == 0, "so that for two none is thrown away"
    assert cache.evict(1)
    assert cache.match([1, 2]) == pages[:1]


def test_a_prefix_met_again_outlives_what_is_idle_longer() -> None:
    pool = PagePool(3)
    cache = RadixCache(pool, 1)
    for ids in ([1, 2], [9]):
        pages = cache.match(ids) + pool.allocate(len(ids))
        cache.insert(ids, pages)
        pool.release(pages)
    pool.release(cache.match([1]))
    assert cache.evict(2), "the leaf behind it, and the one that nobody met again"
    assert cache.match([9]) == []
    assert len(cache.match([1, 2])) == 1
