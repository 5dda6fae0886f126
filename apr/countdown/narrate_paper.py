"""From events to the `paper` text: one search told serially (SoS+) or with threads (APR).

When a thread resumes, its dialect writes its whole prompt anew. Each call is therefore a training
sequence of its own, which demonstrates what that call samples and holds all before it as prompt, so
that every sampled token is learnt once.
"""

from __future__ import annotations

from apr.countdown import paper
from apr.countdown.narrate import Telling
from apr.countdown.paper import Asked, Name
from apr.countdown.problem import Path, Problem
from apr.countdown.solver import Mode, Node, Search, Visit
from apr.types import Demonstration, Segment


def narrate(
    problem: Problem,
    found: Search,
    telling: Telling,
    children: int | None = None,
    window: int | None = None,
) -> Demonstration:
    """Tell ``found`` in the paper text; there is no PASTA telling of it.

    Args:
        children, window: budgets to condition on, see ``paper.budget``.
    """
    assert telling != Telling.PASTA
    serial = telling == Telling.SERIAL
    teller = _Teller(problem.target, serial, paper.budget(window=window))
    root = teller.tell(found, paper.prompt(problem, serial, children, window))
    return Demonstration(
        sequences=[s for t in teller.threads for s in t.sequences],
        succeeded=[t.succeeded for t in teller.threads for _ in t.sequences],
        depths=[t.depth for t in teller.threads for _ in t.sequences],
        solved=found.goal is not None,
        num_children=len(teller.threads) - 1,
        total_tokens=sum(t.num_told for t in teller.threads),
        sequential_tokens=root.num_told + root.waited,
    )


class _Thread:
    """The text of one thread while it is written."""

    def __init__(self, start: Node, prompt: list[str], depth: int, succeeded: bool) -> None:
        self.start = start
        self.depth = depth
        self.succeeded = succeeded
        # The first line of what is told ends the last line of the prompt.
        self.sequences = [[Segment(prompt, False), Segment(["\n"], True)]]
        self.waited = 0

    @property
    def told(self) -> list[str]:
        """Where the next pieces go."""
        return self.sequences[-1][1].pieces

    @property
    def num_told(self) -> int:
        return sum(len(told.pieces) for _, told in self.sequences)

    def resume(self, cut: int, results: list[str]) -> None:
        """Go on in a new sequence, with ``results`` in place of what was told from ``cut`` on."""
        prompt, told = self.sequences[-1]
        whole = prompt.pieces + told.pieces[:cut] + results
        self.sequences.append([Segment(whole, False), Segment([], True)])


class _Teller:
    def __init__(self, target: int, serial: bool, budget: list[str]) -> None:
        self.target = target
        self.serial = serial
        self.budget = budget
        self.threads: list[_Thread] = []
        self.names: dict[Path, Name] = {(): paper.ROOT}
        """Ids of the nodes told of so far; a node is known by its path."""

    def tell(self, found: Search, prompt: list[str], level: int = 0, depth: int = 0) -> _Thread:
        """Write the thread that did ``found``, and before it returns, those it spawned."""
        thread = _Thread(found.start, prompt, depth, found.goal is not None)
        self.threads.append(thread)
        self.search(thread, found, level)
        thread.told.append(paper.END)
        return thread

    def search(self, thread: _Thread, found: Search, level: int) -> None:
        for n, visit in enumerate(found.visits):
            if n:
                thread.told.extend(self.arrival(visit.node))
                thread.told.append("\n")
            self.visit(thread, visit, level)
        if found.goal is None:
            thread.told.extend(["No solution found.", "\n"])

    def visit(self, thread: _Thread, visit: Visit, level: int) -> None:
        self.successors(thread, visit)
        if visit.mode is Mode.SPAWN and not self.serial:
            self.spawn(thread, visit, level + 1)
        else:
            self.dive(thread, visit, level + 1)

    def successors(self, thread: _Thread, visit: Visit) -> None:
        """Tell of the successors; of a hit, with the path to it."""
        name = self.names[visit.node.path]
        for position, node in enumerate(visit.successors):
            thread.told.extend(paper.explored(node))
            if len(node.numbers) > 1:
                self.names[node.path] = child = paper.child(name, position)
                thread.told.extend(paper.generated(child, self.target, node))
            elif node.numbers[0] == self.target:
                self.reach(thread, node)
            else:
                thread.told.extend(paper.verdict(node.numbers[0], self.target))
        if len(visit.node.numbers) == 1 and visit.node.numbers[0] == self.target:
            self.reach(thread, visit.node)

    def dive(self, thread: _Thread, visit: Visit, level: int) -> None:
        for node, found in zip(visit.successors, visit.searches, strict=False):
            thread.told.extend(["Start Sub Search at level ", str(level), ": "])
            thread.told.extend([*self.arrival(node), "\n"])
            self.search(thread, found, level)
            thread.told.extend(["Exit Sub Search at level ", str(level), "\n"])
            if found.goal is not None:
                return
            thread.told.extend(["No solution found in sub search", "\n"])

    def spawn(self, thread: _Thread, visit: Visit, level: int) -> None:
        calls = [Asked(str(level), self.names[node.path]) for node in visit.successors]
        cut = len(thread.told)
        thread.told.extend(paper.spawn(calls))
        children = [
            self.tell(found, self.budget + self.arrival(found.start), level, thread.depth + 1)
            for found in visit.searches
        ]
        thread.waited += max((c.num_told + c.waited for c in children), default=0)
        paths = [self.path(found.start, found.goal) for found in visit.searches]
        thread.resume(cut, paper.results(calls, paths))
        goal = next((found.goal for found in visit.searches if found.goal is not None), None)
        if goal is not None:
            self.reach(thread, goal)

    def reach(self, thread: _Thread, goal: Node) -> None:
        thread.told.extend(paper.verdict(self.target, self.target))
        thread.told.extend(self.path(thread.start, goal))

    def path(self, start: Node, goal: Node | None) -> list[str]:
        """The way from ``start`` to ``goal`` and nothing else; empty where there is no goal."""
        if goal is None:
            return []
        out = [*self.arrival(start), "\n"]
        node = start
        for step in goal.path[len(start.path) :]:
            node = node.after(step)
            out += paper.explored(node)
            if len(node.numbers) > 1:
                out += paper.generated(self.names[node.path], self.target, node)
                out += [*self.arrival(node), "\n"]
        return out + paper.verdict(self.target, self.target)

    def arrival(self, node: Node) -> list[str]:
        return paper.arrival(self.names[node.path], self.target, node)
