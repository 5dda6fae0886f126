"""The prefix cache: a radix tree over pages of token ids (after RadixAttention, 2312.07104).

Siblings that share a prompt share its pages, and a parent that resumes finds its own prefix again.
A prefix is found once a step has computed it; the scheduler lets those wait that share one which
another is computing.
An edge is one full page of ids, so that nodes never need splitting; a prefix is found up to its
last full page. What no sequence uses stays until room is needed, then the leaf that has been idle
longest goes first, and with it what has been idle as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count, islice

from apr.engine.pages import PagePool

Key = tuple[int, ...]


class Node:
    """One page of a cached prefix."""

    __slots__ = ("children", "key", "page", "parent", "used")

    def __init__(self, key: Key, page: int, parent: Node | None) -> None:
        self.key = key
        self.page = page
        self.parent = parent
        self.children: dict[Key, Node] = {}
        self.used = 0
        """When a prefix last ended here, in ticks of the cache."""


class RadixCache:
    """Maps prefixes of token ids to the pages that hold their keys and values."""

    def __init__(self, pool: PagePool, page_size: int) -> None:
        self.pool = pool
        self.page_size = page_size
        self.root = Node((), -1, None)
        # Leaves, the one idle longest first; a dict keeps the order of insertion.
        self._leaves: dict[Node, None] = {}
        self._ticks = count(1)

    def match(self, ids: Sequence[int]) -> list[int]:
        """Pages of the longest cached prefix of ``ids``; the caller becomes a holder of each."""
        pages = []
        node = self.root
        for key in self._keys(ids):
            child = node.children.get(key)
            if child is None:
                break
            node = child
            pages.append(node.page)
        self._touch(node)
        self.pool.hold(pages)
        return pages

    def missing(self, ids: Sequence[int]) -> tuple[Node, Key] | None:
        """The first full page of ``ids`` that is not cached, and what it would stand below."""
        node = self.root
        for key in self._keys(ids):
            child = node.children.get(key)
            if child is None:
                return node, key
            node = child
        return None

    def insert(self, ids: Sequence[int], pages: Sequence[int]) -> None:
        """Keep the full pages of ``ids``, computed in ``pages``; the cache becomes a holder.

        Where a prefix is cached already, the page cached first stays and the other is not kept.
        """
        node = self.root
        for key, page in zip(self._keys(ids), pages, strict=False):
            child = node.children.get(key)
            if child is None:
                child = Node(key, page, node)
                node.children[key] = child
                self._leaves.pop(node, None)
                self._leaves[child] = None
                self.pool.hold([page])
            node = child
        self._touch(node)

    def evict(self, num_pages: int) -> bool:
        """Give ``num_pages`` that no sequence holds back to the pool; none, if there are fewer."""
        going = list(islice(self._going(), num_pages))
        if len(going) < num_pages:
            return False
        for node in going:
            self._drop(node)
        return True

    def _going(self) -> Iterator[Node]:
        """What no sequence holds, as it is to go: a node after all that are below it.

        One that was met again after its last child was takes its turn when all leaves have had it.
        """
        left: dict[Node, int] = {}  # children of those that have lost some
        again: list[Node] = []
        for leaf in chain(self._leaves, again):
            node = leaf
            while self._is_idle(node) and not left.get(node, len(node.children)):
                if node.used > leaf.used:
                    again.append(node)
                    break
                yield node
                assert node.parent is not None
                node = node.parent
                left[node] = left.get(node, len(node.children)) - 1

    def clear(self) -> None:
        """Forget everything: the weights have changed. Sequences keep the pages they hold."""
        for node in self.nodes():
            self.pool.release([node.page])
        self.root.children.clear()
        self._leaves.clear()

    def nodes(self) -> Iterator[Node]:
        """Every node below the root."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            yield node

    def check(self) -> None:
        """Assert that links, leaves and holders agree with each other."""
        nodes = list(self.nodes())
        assert len({n.page for n in nodes}) == len(nodes), "a page is cached twice"
        assert {n for n in nodes if not n.children} == set(self._leaves)
        for node in nodes:
            assert len(node.key) == self.page_size
            assert node.parent is not None
            assert node.parent.children[node.key] is node
            assert self.pool.holders[node.page] >= 1

    def _keys(self, ids: Sequence[int]) -> Iterator[Key]:
        size = self.page_size
        for start in range(0, len(ids) - size + 1, size):
            yield tuple(ids[start : start + size])

    def _touch(self, node: Node) -> None:
        node.used = next(self._ticks)
        if node in self._leaves:
            del self._leaves[node]
            self._leaves[node] = None

    def _is_idle(self, node: Node) -> bool:
        return node is not self.root and self.pool.holders[node.page] == 1

    def _drop(self, leaf: Node) -> None:
        """Remove ``leaf``; its parent may become one."""
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.key]
        del self._leaves[leaf]
        self.pool.release([leaf.page])
        if parent is not self.root and not parent.children:
            self._leaves[parent] = None
