"""Symbolic search: a problem in, structured events out. Knows nothing of text.

Two strategies after the paper's algorithms 1 and 2 (Pan et al., 2504.15466, section 3): a hybrid of
breadth- and depth-first search (SoS+), and the same with threads spawned where a state is promising
(APR). Both are one search with other settings, so that one search can be told in several ways.

What the official release gets wrong and this does not: its loop index is shadowed, which corrupts
moves, and one of its tests looks at the last node generated instead of the one at hand.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import combinations, islice
from typing import NamedTuple

from apr.config import check_least
from apr.countdown.balance import Balance, balances
from apr.countdown.problem import Numbers, Path, Problem, Step, divisible
from apr.errors import ConfigError


class Node(NamedTuple):
    """A state of the search."""

    numbers: Numbers  # what is left to combine, largest first
    path: Path  # the steps from the problem to here

    def after(self, step: Step) -> Node:
        """The state that ``step`` leads to."""
        numbers = list(self.numbers)
        numbers.remove(step.a)
        numbers.remove(step.b)
        numbers.append(step.value)
        return Node(tuple(sorted(numbers, reverse=True)), (*self.path, step))


class Bounds(NamedTuple):
    """How far a search looks."""

    max_value: int = 0
    """At results up to this; 0 is no limit."""
    balances: bool = False
    """And, where it starts, at products on both sides, whatever they come to."""


UNBOUNDED = Bounds()


class Mode(StrEnum):
    """What is done with the successors of a visited state."""

    LIST = "list"
    """They are listed and wait in the queue (breadth first); leaves are judged on the spot."""
    DIVE = "dive"
    """Each is searched to its end before the next is looked at (depth first)."""
    SPAWN = "spawn"
    """Each is searched by a thread of its own."""
    BALANCE = "balance"
    """In place of successors, products on both sides are compared, by threads of their own."""


class Order(StrEnum):
    """In which order the successors that are kept stand."""

    FIXED = "fixed"
    """As enumerated: pairs from the largest numbers down, + - * / for each. Learns best."""
    HEURISTIC = "heuristic"
    """Where a beam chooses, the best by the heuristic first; as enumerated at full width."""
    SHUFFLED = "shuffled"
    """At random, as in the official release."""


class Heuristic(StrEnum):
    """What makes one state better than another."""

    MULTIPLY = "multiply"
    """Numbers near to factors of the target (paper, section 3.2)."""
    SUM = "sum"
    """Small numbers. Of many, what they come to is soon beyond every target."""


class Visit(NamedTuple):
    """One state taken up, and what came of it."""

    node: Node
    mode: Mode
    successors: tuple[Node, ...]  # those kept, in order; of leaves, up to a hit
    searches: tuple[Search, ...]  # of the successors in turn; DIVE ends at a goal, LIST has none
    balances: tuple[Balance, ...] = ()  # of BALANCE alone
    chosen: bool = False  # by a beam, so that they need be neither all nor as enumerated


class Search(NamedTuple):
    """Everything one line of search did, from ``start`` on."""

    start: Node
    visits: tuple[Visit, ...]  # what children of any but the last found goes unheard
    goal: Node | None  # the solved state, or None


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Settings of the solver. Ranges are inclusive; ``(0, 0)`` is full width."""

    beam: tuple[int, int] = (0, 0)
    """Successors kept per state by the root thread, drawn per problem (paper: APR 1..10)."""
    child_beam: tuple[int, int] = (0, 0)
    """Successors kept per state by spawned threads, drawn per thread (paper: up to 15)."""
    full_width: int = 0
    """States of at most this many numbers keep all their successors, whatever the beam: narrow
    where there is much to choose from, and nothing is missed near the end."""
    rounds: int = 1
    """Most spawns of the root thread from one state: where no child found anything, it spawns once
    more, for the next best successors, a beam of them; 0 is until none are left."""
    heuristic: Heuristic = Heuristic.MULTIPLY
    """Which successors a beam keeps."""
    promising: float = 1.0
    """Chance that a state is searched under at once rather than listed (paper: .1 or .9)."""
    spawn_depth: int = 0
    """Levels of threads that may spawn: 0 is SoS+, 1 the paper's APR, more nests."""
    spawn_size: int = 3
    """Fewest numbers a state must have to be worth a spawn."""
    max_children: int = 0
    """Most threads of one spawn; 0 is no limit."""
    max_value: int = 0
    """Results above this are not explored; 0 is no limit."""
    max_final: int = 0
    """Complete expressions whose result is above this are left out, as none of them can hit where
    no target is; 0 is ``max_value``."""
    balances: bool = False
    """Whether a problem of three or four numbers whose children found nothing has its large
    products compared, by children of another kind (see ``balance``)."""
    order: Order = Order.FIXED

    def __post_init__(self) -> None:
        for name in ("beam", "child_beam"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ConfigError(f"{name} must be a range like [1, 10], not [{low}, {high}]")
        if not 0 <= self.promising <= 1:
            raise ConfigError(f"promising is a chance between 0 and 1, not {self.promising}")
        if self.balances and not self.spawn_depth:
            raise ConfigError("balances are threads: let a search spawn with spawn_depth = 1")
        if self.rounds != 1 and not (self.spawn_depth and self.beam[0]):
            raise ConfigError(
                "rounds are of children, a beam at a time: set spawn_depth and a beam of 1 or more"
            )
        check_least(
            0,
            spawn_depth=self.spawn_depth,
            full_width=self.full_width,
            rounds=self.rounds,
            max_children=self.max_children,
            max_value=self.max_value,
            max_final=self.max_final,
        )
        check_least(2, spawn_size=self.spawn_size)
        if self.max_final > self.max_value > 0:
            raise ConfigError(
                f"max_final is {self.max_final}: complete expressions whose result is above "
                f"max_value, which is {self.max_value}, are never looked at"
            )

    @property
    def bounds(self) -> Bounds:
        """How far a search looks."""
        return Bounds(self.max_value, self.balances)

    @property
    def is_certain(self) -> bool:
        """Whether nothing is left to chance, so that a problem has one search."""
        low, high = zip(self.beam, self.child_beam, strict=True)
        return low == high and self.promising in (0, 1) and self.order is not Order.SHUFFLED


def search(
    problem: Problem, config: SearchConfig, rng: random.Random, unheard: bool = False
) -> Search:
    """Search ``problem``; every choice left to chance is drawn from ``rng``.

    Args:
        unheard: it goes on as if none of the root's children had found anything.
    """
    searcher = _Searcher(problem.target, config, rng, unheard)
    found = searcher.run(start_of(problem), _draw(config.beam, rng), 0)
    return _balance(problem, found) if config.balances and found.goal is None else found


def start_of(problem: Problem) -> Node:
    """The state that every search of ``problem`` starts from."""
    return Node(tuple(sorted(problem.numbers, reverse=True)), ())


class _Searcher:
    def __init__(
        self, target: int, config: SearchConfig, rng: random.Random, unheard: bool
    ) -> None:
        self.target = target
        self.config = config
        self.rng = rng
        self.unheard = unheard

    def run(self, start: Node, beam: int, level: int) -> Search:
        """Algorithms 1 and 2: take the best state waiting, expand it, dive, spawn or queue."""
        if len(start.numbers) <= 2:
            visit, goal = self.leaves(start, beam)
            return Search(start, (visit,), goal)
        visits: list[Visit] = []
        queue = [(0, 0, start)]
        while queue:
            node = heapq.heappop(queue)[2]
            for visit, goal in self.visit(node, beam, level):
                visits.append(visit)
                if goal is not None and not self.goes_unheard(visit, level):
                    return Search(start, tuple(visits), goal)
            if visit.mode is Mode.LIST and len(node.numbers) > 2:
                for n, child in enumerate(visit.successors):
                    rank = self.rank(child.numbers) if beam else 0
                    heapq.heappush(queue, (rank, len(visits) * 1000 + n, child))
        return Search(start, tuple(visits), None)

    def goes_unheard(self, visit: Visit, level: int) -> bool:
        return self.unheard and level == 0 and visit.mode is Mode.SPAWN

    def visit(self, node: Node, beam: int, level: int) -> Iterator[tuple[Visit, Node | None]]:
        """One visit, or of a root that spawns one for each round, as long as more are asked for."""
        if len(node.numbers) <= 2:
            yield self.leaves(node, beam)
            return
        rounds = self.rounds(node, beam)
        children = next(rounds)
        if not self.promising():
            yield Visit(node, Mode.LIST, tuple(children), ()), None
        elif level < self.config.spawn_depth and len(node.numbers) >= self.config.spawn_size:
            yield self.spawn(node, children, beam, level)
            most = self.config.rounds if level == 0 else 1
            for more in islice(rounds, most - 1 if most else None):
                yield self.spawn(node, more, beam, level)
        else:
            yield self.dive(node, children, beam, level)

    def leaves(self, node: Node, beam: int) -> tuple[Visit, Node | None]:
        """Judge the complete expressions of a state of two numbers, up to the first hit."""
        target = (self.target,)
        if node.numbers == target and not node.path:
            return Visit(node, Mode.LIST, (), ()), node
        children = self.expand(node, beam)
        for n, child in enumerate(children, 1):
            if child.numbers == target:
                return Visit(node, Mode.LIST, tuple(children[:n]), ()), child
        return Visit(node, Mode.LIST, tuple(children), ()), None

    def dive(
        self, node: Node, children: list[Node], beam: int, level: int
    ) -> tuple[Visit, Node | None]:
        searches: list[Search] = []
        for child in children:
            searches.append(self.run(child, beam, level))
            if searches[-1].goal is not None:
                break
        goal = searches[-1].goal if searches else None
        chosen = self.chooses(node, beam)
        return Visit(node, Mode.DIVE, tuple(children), tuple(searches), chosen=chosen), goal

    def spawn(
        self, node: Node, children: list[Node], beam: int, level: int
    ) -> tuple[Visit, Node | None]:
        children = children[: self.config.max_children or None]
        widths = [_draw(self.config.child_beam, self.rng) for _ in children]
        searches = tuple(
            self.run(c, width, level + 1) for c, width in zip(children, widths, strict=True)
        )
        goal = next((s.goal for s in searches if s.goal is not None), None)
        chosen = self.chooses(node, beam)
        return Visit(node, Mode.SPAWN, tuple(children), searches, chosen=chosen), goal

    def expand(self, node: Node, beam: int) -> list[Node]:
        """State expansion: the successors kept, in order (paper, section 3.2)."""
        return next(self.rounds(node, beam))

    def rounds(self, node: Node, beam: int) -> Iterator[list[Node]]:
        """The successors, a beam at a time, the best first; at full width all at once."""
        final = self.config.max_final if len(node.numbers) == 2 else 0
        found = successors(node.numbers, final or self.config.max_value)
        ranked = list(range(len(found)))
        order = self.config.order
        if not self.chooses(node, beam):
            beam = len(found)
        elif order is Order.HEURISTIC or beam < len(found):
            # A stable sort: states of equal rank stay as enumerated.
            gains = [self.gain(step) for step, _ in found]
            ranked.sort(key=gains.__getitem__)
        for at in range(0, len(found) or 1, beam or 1):
            kept = ranked[at : at + beam]
            if order is not Order.HEURISTIC:
                kept.sort()
            if order is Order.SHUFFLED:
                kept = self.rng.sample(kept, len(kept))
            yield [Node(found[i][1], (*node.path, found[i][0])) for i in kept]

    def chooses(self, node: Node, beam: int) -> bool:
        """Whether a beam says which successors of ``node`` are kept, or in which order."""
        return beam > 0 and len(node.numbers) > self.config.full_width

    def rank(self, numbers: Numbers) -> int:
        """What the heuristic makes of a state: the less, the better."""
        if self.config.heuristic is Heuristic.SUM:
            return sum(numbers)
        return multiply_heuristic(numbers, self.target)

    def gain(self, step: Step) -> int:
        """What ``step`` adds to ``rank``: of one state, it orders the successors."""
        a, _, b, value = step
        if self.config.heuristic is Heuristic.SUM:
            return value - a - b
        target = self.target
        return _distance(value, target) - _distance(a, target) - _distance(b, target)

    def promising(self) -> bool:
        # No draw at the ends of the range, so that a certain coin costs no randomness.
        p = self.config.promising
        return p >= 1 or (p > 0 and self.rng.random() < p)


def _balance(problem: Problem, found: Search) -> Search:
    """``found``, and what comes of its balances, if its numbers have any."""
    made = balances(found.start.numbers, problem.target)
    if not made:
        return found
    path = next((b.path for b in made if b.path is not None), None)
    goal = None if path is None else Node((problem.target,), path)
    visit = Visit(found.start, Mode.BALANCE, (), (), made)
    return Search(found.start, (*found.visits, visit), goal)


def _draw(bounds: tuple[int, int], rng: random.Random) -> int:
    low, high = bounds
    return low if low == high else rng.randint(low, high)


# Caches hold what a few problems need: larger ones cost the garbage collector more than they save.
@lru_cache(maxsize=1 << 10)
def successors(numbers: Numbers, max_value: int = 0) -> tuple[tuple[Step, Numbers], ...]:
    """Every state one step away, with the step: fixed order, equal pairs once.

    Args:
        numbers: largest first.
        max_value: results above it are left out; 0 for no limit.
    """
    out: list[tuple[Step, Numbers]] = []
    seen: set[tuple[int, int]] = set()
    for i, j in combinations(range(len(numbers)), 2):
        pair = a, b = numbers[i], numbers[j]
        if pair in seen:
            continue
        seen.add(pair)
        rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
        for step in combine(a, b):
            if not max_value or step.value <= max_value:
                out.append((step, _insert(step.value, rest)))
    return tuple(out)


@lru_cache(maxsize=1 << 12)
def combine(a: int, b: int) -> tuple[Step, ...]:
    """The steps that two numbers allow, ``a`` not below ``b``: no negative, no fraction."""
    steps = (Step(a, "+", b, a + b), Step(a, "-", b, a - b), Step(a, "*", b, a * b))
    return (*steps, Step(a, "/", b, a // b)) if divisible(a, b) else steps


def _insert(value: int, numbers: Numbers) -> Numbers:
    """``numbers``, largest first, with ``value`` in its place."""
    if not numbers:
        return (value,)
    if len(numbers) == 1:
        return (value, *numbers) if value > numbers[0] else (*numbers, value)
    return tuple(sorted((*numbers, value), reverse=True))


@lru_cache(maxsize=1024)
def _factors(target: int) -> tuple[int, ...]:
    return tuple(f for f in range(2, target + 1) if target % f == 0)


@lru_cache(maxsize=1 << 14)
def _distance(number: int, target: int) -> int:
    if number >= target:
        return number - target
    return min((abs(number - f) for f in _factors(target)), default=abs(number - target))


def multiply_heuristic(numbers: Numbers, target: int) -> int:
    """Sum over ``numbers`` of the distance to the nearest factor (>= 2) of the target."""
    return sum(_distance(n, target) for n in numbers)
