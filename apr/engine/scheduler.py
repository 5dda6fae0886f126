"""Which sequences go through the network in the next step, and who holds which pages.

Sequences are admitted first come, first served, when there is room for all they hold so far. Where
a running one needs a page and none can be had, the youngest gives way: it goes back to the head of
the queue and is computed again, from the cache as far as that still has it. The oldest therefore
always makes progress.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import NamedTuple

from apr.engine.pages import PagePool
from apr.engine.radix import Key, Node, RadixCache
from apr.engine.sequence import Sequence


class Chunk(NamedTuple):
    """The next ids of one sequence to go through the network."""

    sequence: Sequence
    start: int
    end: int  # exclusive; ids[start:end] are computed, and those before are already

    @property
    def samples(self) -> bool:
        """Whether an id can be sampled after this."""
        return self.end == len(self.sequence.ids)


class Scheduler:
    """Admits, preempts and releases sequences."""

    def __init__(
        self,
        pool: PagePool,
        page_size: int,
        max_batch: int,
        max_batch_tokens: int,
        prefix_cache: bool = True,
    ) -> None:
        self.pool = pool
        self.page_size = page_size
        self.max_batch = max_batch
        self.max_batch_tokens = max_batch_tokens
        self.prefix_cache = prefix_cache
        self.cache = RadixCache(pool, page_size)
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}
        """In the order admitted."""
        self.num_preempted = 0
        self.num_reused = 0
        """Ids whose keys and values were found in the cache."""

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let go of ``sequence``, wherever it is, and of its pages at once."""
        if sequence in self.running:
            del self.running[sequence]
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """What goes through the network now; every chunk has its pages."""
        chunks: list[Chunk] = []
        budget = self.max_batch_tokens
        for sequence in list(self.running):
            start = sequence.num_computed
            end = min(len(sequence.ids), start + budget)
            # One that gave way to an older one is no longer running.
            if start < end and sequence in self.running and self._grow(sequence, end):
                chunks.append(Chunk(sequence, start, end))
                budget -= end - start
        return chunks + self._newcomers(budget) if self.waiting else chunks

    def _newcomers(self, budget: int) -> list[Chunk]:
        """Chunks of at most ``budget`` ids of those admitted now.

        Who shares a page of its prompt with one that is just computing it waits until it is there:
        of many samples of one prompt the first computes it for all (in-batch prefix caching, as
        SGLang names it).
        """
        chunks: list[Chunk] = []
        coming = {self._missing(s) for s in self.running if s.num_computed < s.num_prompt}
        later: list[Sequence] = []
        while budget and self.waiting and len(self.running) < self.max_batch:
            sequence = self.waiting[0]
            missing = self._missing(sequence)
            if missing is not None and missing in coming:
                later.append(self.waiting.popleft())
                continue
            if not self._admit(sequence):
                break
            coming.add(missing)
            start = sequence.num_computed
            end = min(len(sequence.ids), start + budget)
            chunks.append(Chunk(sequence, start, end))
            budget -= end - start
        self.waiting.extendleft(reversed(later))
        return chunks

    def _missing(self, sequence: Sequence) -> tuple[Node, Key] | None:
        """The first page that it must compute; None where all full ones are cached."""
        return self.cache.missing(sequence.ids[:-1]) if self.prefix_cache else None

    def stretch(self, chunks: list[Chunk], count: int) -> int:
        """Give each of ``chunks`` room for up to ``count`` ids more, if there is room for all.

        Returns:
            ``count``, or 1 where there is not: for which nothing more is needed.
        """
        ends = [
            c.end + min(count, c.sequence.sampling.max_tokens - c.sequence.num_sampled) - 1
            for c in chunks
        ]
        missing = [
            max(0, self._pages_for(end) - len(c.sequence.pages))
            for c, end in zip(chunks, ends, strict=True)
        ]
        if not self._make_room(sum(missing)):
            return 1
        for chunk, num_pages in zip(chunks, missing, strict=True):
            if num_pages:
                chunk.sequence.pages.extend(self.pool.allocate(num_pages))
        return count

    def commit(self, chunks: list[Chunk]) -> None:
        """Keys and values of ``chunks`` are in their pages: whoever comes next may share them."""
        for sequence, _, end in chunks:
            sequence.num_computed = end
            if end == sequence.num_prompt:
                self._cache(sequence)

    def _admit(self, sequence: Sequence) -> bool:
        # The last id is always computed: the next is sampled from what the network makes of it.
        cached = self.cache.match(sequence.ids[:-1]) if self.prefix_cache else []
        missing = self._pages_for(len(sequence.ids)) - len(cached)
        # A page for each running sequence stays free, or the newcomer would soon be preempted.
        if not self._make_room(missing + len(self.running)):
            self.pool.release(cached)
            return False
        self.waiting.popleft()
        self.running[sequence] = None
        sequence.pages = array("i", cached + self.pool.allocate(missing))
        sequence.num_computed = len(cached) * self.page_size
        self.num_reused += sequence.num_computed
        return True

    def _grow(self, sequence: Sequence, num_ids: int) -> bool:
        """Give ``sequence`` pages for ``num_ids`` in all; False if it had to give way itself."""
        missing = self._pages_for(num_ids) - len(sequence.pages)
        if missing <= 0:
            return True
        while not self._make_room(missing):
            youngest = next(reversed(self.running))
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.pages.extend(self.pool.allocate(missing))
        return True

    def _make_room(self, count: int) -> bool:
        short = count - self.pool.num_free
        return short <= 0 or self.cache.evict(short)

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preempted += 1
        del self.running[sequence]
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._cache(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = array("i")
        sequence.num_computed = 0

    def _cache(self, sequence: Sequence) -> None:
        if self.prefix_cache:
            self.cache.insert(sequence.ids[: sequence.num_computed], sequence.pages)

    def _pages_for(self, num_ids: int) -> int:
        return -(-num_ids // self.page_size)

    def check(self) -> None:
        """Assert that every page is held by just those who list it."""
        self.pool.check()
        self.cache.check()
        holders = [0] * self.pool.num_pages
        for page in [p for s in self.running for p in s.pages]:
            holders[page] += 1
        for node in self.cache.nodes():
            holders[node.page] += 1
        assert holders == self.pool.holders
        assert all(not s.pages and not s.num_computed for s in self.waiting)
