"""Accounting of the pages that keys and values live in. Knows no tensor.

A page is held by sequences and by the prefix cache alike; it is free when nobody holds it.
"""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Counts who holds which page."""

    def __init__(self, num_pages: int) -> None:
        self.holders = [0] * num_pages
        """Number of holders of each page."""
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_pages(self) -> int:
        return len(self.holders)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` free pages, each with one holder; there must be as many."""
        assert count <= len(self._free), "allocate: the caller makes room first"
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self.holders[page] = 1
        return pages

    def hold(self, pages: Iterable[int]) -> None:
        """Add a holder to pages that somebody holds already."""
        for page in pages:
            assert self.holders[page] > 0, "hold: a free page holds nothing worth sharing"
            self.holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop one holder of each page; pages without holders become free."""
        for page in pages:
            assert self.holders[page] > 0, "release: nobody holds this page"
            self.holders[page] -= 1
            if self.holders[page] == 0:
                self._free.append(page)

    def check(self) -> None:
        """Assert that free pages are exactly those without holders, each listed once."""
        free = {page for page, count in enumerate(self.holders) if count == 0}
        assert len(self._free) == len(free)
        assert set(self._free) == free
