"""Page pool and radix tree under any sequence of operations, checked after each."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apr.engine.pages import PagePool
from apr.engine.radix import RadixCache

SIZE = 2
PAGES = 12
IDS = st.lists(st.integers(0, 2), max_size=12)


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
        if short > 0 and self.cache.evict(short) < short:
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
        evicted = self.cache.evict(count)
        assert self.pool.num_free == free + evicted
        in_use = {page for pages in self.held for page in pages}
        idle = [n for n in self.cache.nodes() if n.page not in in_use and not n.children]
        assert evicted == count or not idle, "evict stops early only when nothing is idle"

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
    assert cache.evict(1) == 1
    assert cache.match([2]) == []
    assert len(cache.match([1])) == 1
    assert len(cache.match([3])) == 1


def test_a_page_in_use_is_never_evicted() -> None:
    pool = PagePool(2)
    cache = RadixCache(pool, 1)
    pages = pool.allocate(2)
    cache.insert([1, 2], pages)
    pool.release(pages[1:])
    assert cache.evict(2) == 1, "only the second is idle"
    assert cache.match([1, 2]) == pages[:1]
