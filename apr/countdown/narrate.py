"""From events to text: one search told serially, with threads, or as PASTA would merge it.

The narrator writes what a model is to learn, in the pieces its dialect is made of. What is injected
at run time (prompts, joined messages) is written here as the dialect writes it, and marked as such.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import StrEnum
from itertools import combinations

from apr.countdown import compact
from apr.countdown.balance import Balance
from apr.countdown.mistakes import false_path, false_proof
from apr.countdown.problem import Problem, Step, divisible
from apr.countdown.solver import Mode, Node, Search, Visit
from apr.errors import ConfigError
from apr.types import Demonstration, Segment

Message = Callable[[int, Node], list[str]]
"""Writes what a thread is spawned with, from the target and the state that it is to search."""


class Text(StrEnum):
    """The text in which a search is told."""

    COMPACT = "compact"
    WHOLE = "whole"
    """As compact, but a child is told the whole state its step is to be taken from."""
    PAPER = "paper"
    """The official release's (see ``narrate_paper``)."""


class Telling(StrEnum):
    """How a search is told."""

    SERIAL = "serial"
    """One thread does everything (SoS+); where the search spawned, it goes one by one."""
    THREADS = "threads"
    """Children return the path they found, or nothing (APR); the parent hears the first path."""
    WEIGHED = "weighed"
    """The same, but the parent hears every path, some of them wrong, and passes a right one on."""
    NUMBERED = "numbered"
    """As weighed, but what is heard is numbered, and the parent returns the number."""
    PASTA = "pasta"
    """Children return their whole text."""

    @property
    def weighs(self) -> bool:
        """Whether a parent hears all that its children claim, some of it wrong."""
        return self in (Telling.WEIGHED, Telling.NUMBERED)


def check_telling(text: Text, telling: Telling) -> None:
    """Raises ConfigError where ``text`` cannot be told so."""
    if text == Text.PAPER and (telling == Telling.PASTA or Telling(telling).weighs):
        raise ConfigError(f"the paper text has no {telling} telling: tell it in the compact text")


def narrate(
    problem: Problem,
    found: Search,
    telling: Telling,
    children: int | None = None,
    window: int | None = None,
    false_claims: float = 0.0,
    seed: str = "",
    rests: bool = False,
    message: Message = compact.message,
) -> Demonstration:
    """Tell ``found`` in the compact text, or with ``message`` in the whole one.

    Args:
        children, window: budgets to condition on, see ``compact.prompt``.
        false_claims: chance that a child that found nothing is heard claiming a path all the same,
            drawn from ``seed``; of the weighed and the numbered telling.
        rests: where a search goes on from a state, tell of divisions that leave a rest, too; where
            it spawns, or a beam chose, of all divisions beforehand.
    """
    rng = random.Random(seed)
    teller = _Teller(problem.target, telling, false_claims, rng, rests, message)
    root = teller.tell(found, compact.prompt(problem, children, window))
    return Demonstration(
        sequences=[t.segments for t in teller.threads],
        succeeded=[t.succeeded for t in teller.threads],
        depths=[t.depth for t in teller.threads],
        solved=found.goal is not None,
        num_children=len(teller.threads) - 1,
        total_tokens=sum(t.num_told for t in teller.threads),
        sequential_tokens=root.num_told + root.waited,
    )


class _Thread:
    """The text of one thread while it is written."""

    def __init__(self, prompt: list[str], depth: int, succeeded: bool) -> None:
        self.segments = [Segment(prompt, False), Segment([], True)]
        self.depth = depth
        self.succeeded = succeeded
        self.waited = 0
        self.returned: list[str] | None = None
        """What it says in place of the path it returns."""

    @property
    def told(self) -> list[str]:
        """Where the next pieces go."""
        return self.segments[-1].pieces

    @property
    def num_told(self) -> int:
        return sum(len(s.pieces) for s in self.segments if s.demonstrated)

    def hear(self, pieces: list[str]) -> None:
        self.segments += [Segment(pieces, False), Segment([], True)]


class _Teller:
    def __init__(
        self,
        target: int,
        telling: Telling,
        false_claims: float,
        rng: random.Random,
        rests: bool,
        message: Message,
    ) -> None:
        self.target = target
        self.telling = telling
        self.false_claims = false_claims
        self.rng = rng
        self.rests = rests
        self.message = message
        self.threads: list[_Thread] = []

    def tell(self, found: Search, prompt: list[str], depth: int = 0) -> _Thread:
        """Write the thread that did ``found``, and before it returns, those it spawned."""
        thread = _Thread(prompt, depth, found.goal is not None)
        self.threads.append(thread)
        if found.start.path:
            result = compact.number(found.start.path[-1].value)
            thread.told.extend([compact.EQUALS, result, *self.enter(found.start)])
        self.search(thread, found)
        thread.told.extend(compact.join(thread.returned or self.path(found)))
        return thread

    def search(self, thread: _Thread, found: Search) -> None:
        node = found.start
        for n, visit in enumerate(found.visits):
            if visit.node != node and visit.mode is not Mode.BALANCE:
                # Taken from the queue: the way there from this search's start is said again.
                steps = visit.node.path[len(found.start.path) :]
                thread.told.extend(compact.path_pieces(steps) + self.enter(visit.node))
            if self.divides_beforehand(visit) and (n == 0 or visit.node != node):
                for a, b in dict.fromkeys(combinations(visit.node.numbers, 2)):
                    thread.told.extend(compact.division_pieces(a, b))
            # Whatever children found, a thread that goes on after them heard nothing.
            self.visit(thread, visit, unheard=visit is not found.visits[-1])
            node = visit.node

    def spawns(self, visit: Visit) -> bool:
        """Whether the successors are told of by threads of their own."""
        return visit.mode is Mode.SPAWN and self.telling != Telling.SERIAL

    def divides_beforehand(self, visit: Visit) -> bool:
        """Whether all divisions are told before any successor: those that leave a rest have no
        place among successors that others tell of, or that a beam chose.
        """
        return self.rests and (visit.chosen or self.spawns(visit))

    def visit(self, thread: _Thread, visit: Visit, unheard: bool) -> None:
        if visit.mode is Mode.BALANCE and self.telling == Telling.SERIAL:
            return self.compare(thread, visit)
        if visit.mode is Mode.BALANCE:
            return self.spawn_balances(thread, visit)
        if self.spawns(visit):
            return self.spawn(thread, visit, unheard)
        if visit.mode is Mode.LIST:
            for child in visit.successors:
                thread.told.extend(compact.step_pieces(child.path[-1]))
                thread.told.append(self.verdict(child))
            return None
        return self.dive(thread, visit)

    def dive(self, thread: _Thread, visit: Visit) -> None:
        steps = [child.path[-1] for child in visit.successors]
        for n, (child, found) in enumerate(zip(visit.successors, visit.searches, strict=False)):
            thread.told.extend(compact.step_pieces(steps[n]))
            thread.told.extend(self.enter(child))
            self.search(thread, found)
            if found.goal is not None:
                return
            if self.rests and not visit.chosen and _leaves_rest(*steps[n : n + 2]):
                thread.told.extend(compact.division_pieces(steps[n].a, steps[n].b))

    def spawn(self, thread: _Thread, visit: Visit, unheard: bool) -> None:
        messages = [self.message(self.target, child) for child in visit.successors]
        thread.told.extend(compact.spawn(messages))
        children = [
            self.tell(found, compact.thread(message), thread.depth + 1)
            for found, message in zip(visit.searches, messages, strict=True)
        ]
        self.wait(thread, children)
        # Nothing heard, not even what is false, is what a parent goes on after.
        silent = unheard and self.telling != Telling.PASTA
        searches = () if silent else visit.searches
        claims = [self.claim(found) for found in searches]
        self.hear(thread, children, claims, [self.path(found) for found in searches])

    def compare(self, thread: _Thread, visit: Visit) -> None:
        """Products on both sides, one part after the other."""
        for balance in visit.balances:
            thread.told.extend([compact.EQUALS, *compact.state(balance.first)])
            thread.told.extend(compact.balance_pieces(balance))
            if balance.path is not None:
                return

    def spawn_balances(self, thread: _Thread, visit: Visit) -> None:
        """Products on both sides, each part by a child of its own."""
        messages, children, claims, paths = [], [], [], []
        for balance in visit.balances:
            messages.append(compact.balance_message(self.target, visit.node, balance.first))
            paths.append(compact.path_pieces(balance.path or ()))
            prompt = compact.thread(messages[-1])
            child = _Thread(prompt, thread.depth + 1, balance.path is not None)
            child.told.extend(compact.balance_pieces(balance) + compact.join(paths[-1]))
            children.append(child)
            claims.append(paths[-1] or self.false_proof(balance))
        thread.told.extend(compact.spawn(messages))
        self.threads += children
        self.wait(thread, children)
        self.hear(thread, children, claims, paths)

    def wait(self, thread: _Thread, children: list[_Thread]) -> None:
        thread.waited += max((c.num_told + c.waited for c in children), default=0)

    def hear(
        self,
        thread: _Thread,
        children: list[_Thread],
        claims: list[list[str]],
        paths: list[list[str]],
    ) -> None:
        """What ``thread`` hears of ``children``, who claim ``claims`` and found ``paths``."""
        found = [path for path in paths if path]
        heard = [claim for claim in claims if claim]
        if self.telling == Telling.PASTA:
            heard = [_whole(child) for child in children]
        elif self.telling.weighs:
            # As many as the dialect passes on, or as it takes to hear one that is true.
            first = heard.index(found[0]) + 1 if found else 0
            heard = heard[: max(compact.MAX_HEARD, first)]
        else:
            heard = heard[:1]
        if self.telling == Telling.NUMBERED:
            thread.returned = compact.label(heard.index(found[0]) + 1) if found else None
            heard = compact.numbered(heard)
        thread.hear(compact.joined(heard))

    def claim(self, found: Search) -> list[str]:
        """What a child is heard to have found: not always the truth."""
        if found.goal is not None or not self.lies():
            return self.path(found)
        return compact.path_pieces(false_path(self.target, found, self.rng) or ())

    def false_proof(self, balance: Balance) -> list[str]:
        """What a child is heard to claim that found no products that meet."""
        return compact.path_pieces(false_proof(balance, self.rng)) if self.lies() else []

    def lies(self) -> bool:
        return self.telling.weighs and self.rng.random() < self.false_claims

    def enter(self, node: Node) -> list[str]:
        return [compact.ENTER, *compact.state(node.numbers)]

    def verdict(self, node: Node) -> str:
        if len(node.numbers) > 1:
            return compact.LATER
        return compact.HIT if node.numbers[0] == self.target else compact.MISS

    def path(self, found: Search) -> list[str]:
        """The path found; of a problem that needs no step, its number."""
        if found.goal is None:
            return []
        return compact.path_pieces(found.goal.path) or compact.state(found.goal.numbers)


def _leaves_rest(step: Step, next: Step | None = None) -> bool:
    """Whether after ``step``, and before ``next``, a division of the same two would stand that
    leaves a rest: they come last of all that two numbers allow.
    """
    over = next is None or (next.a, next.b) != (step.a, step.b)
    return over and not divisible(step.a, step.b)


def _whole(child: _Thread) -> list[str]:
    """A child's text as its parent hears it: all of it, with the join spelled as a plain line."""
    text = [p for s in child.segments[1:] for p in s.pieces]
    cut = text.index("<join>")
    return [*text[:cut], compact.LATER, *text[cut + 1 : -1]]
