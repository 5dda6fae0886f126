"""The `paper` dialect: the text of the official release, node ids and all.

A thread's prompt is the state that it starts from, the line not yet ended::

    Moving to Node #0                                        the root; told serially, the prompt
    Current State: 24:[9, 5, 3], Operations: []              has its second line only
    Moving to Node #0,1                                      a child of it
    Current State: 24:[9, 8], Operations: ['5+3=8']

Lines of search::

    Exploring Operation: 5+3=8, Resulting Numbers: [9, 8]    a step, and then either
    Generated Node #0,1: 24:[9, 8] Operation: 5+3=8          the state that it leads to, or
    17,24 unequal: No Solution                               the verdict on a complete expression
    24,24 equal: Goal Reached                                a hit: the path to it follows, told
                                                             once more from the prompt's state on
    No solution found.                                       the search ended without one

A thread spawns by naming nodes. Its children start from their states, and when they have ended, the
block that named them is replaced by what they returned, a path or nothing::

    <Calling Sub Searches>
    <Start Sub Search 0 at level 1> Moving to Node #0,1
    <Start Sub Search 1 at level 1> Moving to Node #0,2
    <End Calling Sub Searches>

    <Sub Searches>
    <No Solution in Sub Search 0 at level 1 at Node #0,1>
    <Goal Reached in Sub Search 1 at level 1 at Node #0,2>
    Moving to Node #0,2
    ...
    24,24 equal: Goal Reached
    <End Sub Searches>

So each call of a thread is a training sequence of its own. Every piece of text below is one token
of the tokenizer that ``words`` describes: an operation, a fixed phrase, a number or a sign. The
dialect itself works with any tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from apr.countdown.problem import Problem, Step
from apr.countdown.solver import Node, start_of
from apr.interfaces import Join, Malformed, Operation, Rewrite, Spawn

CALL, CALLED = "<Calling Sub Searches>", "<End Calling Sub Searches>"
RESULTS, RESULTED = "<Sub Searches>", "<End Sub Searches>"
END = "<|end|>"
SPECIALS = ("<|pad|>", END, CALL, CALLED, RESULTS, RESULTED)
PHRASES = (
    "Sub Call Budget: ",
    "Token Budget: ",
    "Moving to Node #",
    "Current State: ",
    ":[",
    "], Operations: [",
    "Exploring Operation: ",
    ", Resulting Numbers: [",
    "Generated Node #",
    ": ",
    "] Operation: ",
    " equal: Goal Reached",
    " unequal: No Solution",
    "No solution found.",
    "Start Sub Search at level ",
    "Exit Sub Search at level ",
    "No solution found in sub search",
    "<Start Sub Search ",
    "<Goal Reached in Sub Search ",
    "<No Solution in Sub Search ",
    " at level ",
    " at Node #",
    "> Moving to Node #",
    ", ",
    "', '",
    *"\n ],'=>+-*/",
)
PATTERN = "|".join([*map(re.escape, sorted(PHRASES, key=len, reverse=True)), "[0-9]+", "[^0-9]"])

Name = tuple[str, ...]
"""The id of a node, in pieces: ``("0", ",", "1")`` is the second successor of the root."""
ROOT: Name = ("0",)

_LIST = r"\[([^\]\n]*)\]"
_VISITED = re.compile(
    rf"Moving to Node #([0-9,]+)\nCurrent State: ([0-9]+):{_LIST}, Operations: {_LIST}"
)
_GENERATED = re.compile(rf"Generated Node #([0-9,]+): ([0-9]+):{_LIST} Operation: (\S+)")
_CALL = re.compile(r"<Start Sub Search [0-9]+ at level ([0-9]+)> Moving to Node #([0-9,]+)")
_GOAL = re.compile(r"^[0-9]+,[0-9]+ equal: Goal Reached$", re.MULTILINE)
_BUDGET = re.compile(r"Token Budget: [0-9]+ ")


class Asked(NamedTuple):
    """One line of a spawn: a child that is asked for."""

    level: str
    name: Name


class Paper:
    """Spawn by node id, join with the path found, resume with the spawn's block replaced.

    A node that was never generated gets no child: the parent hears of no solution there.
    """

    name: str = "paper"
    stops: tuple[str, ...] = (CALLED, RESULTS)

    def child_prompt(self, message: str) -> str:
        return message

    def read(self, prompt: str, sampled: str) -> Operation:
        """The first operation that was closed; a thread that simply ended joins.

        The release trains on whole texts, so its models may go on from a state with the results of
        a spawn that they never made. That is read as a spawn of no children, and resumed as a spawn
        just opened, as the release does.
        """
        if _skips_ahead(sampled):
            return Spawn(())
        if CALLED not in sampled:
            return _join(sampled)
        block = _block(prompt, sampled)
        return block if isinstance(block, Malformed) else Spawn(tuple(block.prompts.values()))

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Rewrite:
        if _skips_ahead(sampled):
            return Rewrite(prompt + sampled.partition(RESULTS)[0] + CALL)
        block = _block(prompt, sampled)
        assert isinstance(block, _Block), "only a spawn is resumed"
        told = dict(zip(block.prompts, joins, strict=True))
        paths = [_path(told.get(i)) for i in range(len(block.calls))]
        return Rewrite(block.before + "".join(results(block.calls, paths)))


class _Block(NamedTuple):
    """A spawn, as it stands in a thread's text."""

    before: str  # the text up to it
    calls: list[Asked]
    prompts: dict[int, str]  # what children start from, by position among ``calls``


def _skips_ahead(sampled: str) -> bool:
    """Whether it writes the results of a spawn before it has closed one."""
    return RESULTS in sampled.partition(CALLED)[0]


def _block(prompt: str, sampled: str) -> _Block | Malformed:
    """The spawn that ends ``sampled``; it opens there, or where the prompt ends."""
    own = sampled.partition(CALLED)[0]
    at = own.rfind(CALL)
    if at < 0:
        if not prompt.endswith(CALL):
            return Malformed("A spawn was closed that was not opened.")
        at = -len(CALL)
    text, at = prompt + own, len(prompt) + at
    before, lines = text[:at], text[at + len(CALL) :].strip("\n").split("\n")
    found = [line for line in map(_CALL.fullmatch, lines) if line]
    if len(found) < len(lines):
        return Malformed("A spawn holds a line that names no node.")
    states, budget = _states(before), _BUDGET.match(prompt)
    prompts = {
        i: f"{budget[0] if budget else ''}Moving to Node #{line[2]}\n{states[line[2]]}"
        for i, line in enumerate(found)
        if line[2] in states
    }
    return _Block(before, [Asked(line[1], (line[2],)) for line in found], prompts)


def _states(text: str) -> dict[str, str]:
    """What ``text`` says of each node, by its id, as a line that describes a state."""
    paths: dict[str, list[str]] = {}
    states: dict[str, str] = {}

    def add(node: str, target: str, numbers: str, path: list[str]) -> None:
        paths[node] = path
        states[node] = f"Current State: {target}:[{numbers}], Operations: [{', '.join(path)}]"

    for node, target, numbers, path in _VISITED.findall(text):
        add(node, target, numbers, [path] if path else [])
    for node, target, numbers, step in _GENERATED.findall(text):
        parent = node.rpartition(",")[0]
        if node not in paths and parent in paths:
            add(node, target, numbers, [*paths[parent], f"'{step}'"])
    return states


def _path(told: Join | Malformed | None) -> list[str]:
    """The lines that a child returns; none for any kind of failure."""
    return [told.message, "\n"] if isinstance(told, Join) and told.success else []


def _join(sampled: str) -> Join | Malformed:
    """A thread claims a path by reaching its goal twice, the second time by that path alone."""
    goals = list(_GOAL.finditer(sampled))
    if len(goals) < 2:
        return Join("", False)
    message = sampled[goals[-2].end() : goals[-1].end()].strip("\n")
    if "<" in message:
        return Malformed("A path holds an operation.")
    return Join(message, True)


def words(max_number: int) -> list[str]:
    """Ordinary tokens: the phrases, and digits for numbers beyond ``max_number``."""
    return [*PHRASES, *(str(n) for n in range(max(9, max_number) + 1))]


@lru_cache(maxsize=1 << 12)
def step_pieces(step: Step) -> tuple[str, ...]:
    """``a+b=c``"""
    return (str(step.a), step.op, str(step.b), "=", str(step.value))


@lru_cache(maxsize=1 << 12)
def listed(numbers: tuple[int, ...]) -> tuple[str, ...]:
    """``9, 5, 3``"""
    return tuple(piece for n in numbers for piece in (", ", str(n)))[1:]


def child(parent: Name, position: int) -> Name:
    return (*parent, ",", str(position))


def state(target: int, node: Node) -> list[str]:
    out = ["Current State: ", str(target), ":[", *listed(node.numbers), "], Operations: ["]
    quote = "'"
    for step in node.path:
        out += (quote, *step_pieces(step))
        quote = "', '"
    return [*out, "'", "]"] if node.path else [*out, "]"]


def arrival(name: Name, target: int, node: Node) -> list[str]:
    """How a search comes to ``node``; by itself, the prompt of a child."""
    return ["Moving to Node #", *name, "\n", *state(target, node)]


def explored(node: Node) -> list[str]:
    """The step that led to ``node``."""
    step, numbers = step_pieces(node.path[-1]), listed(node.numbers)
    return ["Exploring Operation: ", *step, ", Resulting Numbers: [", *numbers, "]", "\n"]


def generated(name: Name, target: int, node: Node) -> list[str]:
    numbers, step = listed(node.numbers), step_pieces(node.path[-1])
    return [
        *("Generated Node #", *name, ": ", str(target)),
        *(":[", *numbers, "] Operation: ", *step, "\n"),
    ]


def verdict(number: int, target: int) -> list[str]:
    words = " equal: Goal Reached" if number == target else " unequal: No Solution"
    return [str(number), ",", str(target), words, "\n"]


def spawn(calls: Iterable[Asked]) -> list[str]:
    out = [CALL, "\n"]
    for i, call in enumerate(calls):
        out += ("<Start Sub Search ", str(i), " at level ", call.level)
        out += ("> Moving to Node #", *call.name, "\n")
    return [*out, CALLED]


def results(calls: Iterable[Asked], paths: Iterable[list[str]]) -> list[str]:
    """What stands in place of a spawn when its children have ended.

    Args:
        paths: for each call the lines that its child returned, if any.
    """
    out = [RESULTS, "\n"]
    for i, (call, path) in enumerate(zip(calls, paths, strict=True)):
        out.append("<Goal Reached in Sub Search " if path else "<No Solution in Sub Search ")
        out += (str(i), " at level ", call.level, " at Node #", *call.name, ">", "\n", *path)
    return [*out, RESULTED, "\n"]


def budget(children: int | None = None, window: int | None = None) -> list[str]:
    """What stands before a root's prompt, and the window before every child's too.

    Args:
        children: number of child threads to condition on (paper, section 4.1: for APR).
        window: context bin to condition on, in tokens (the same, for SoS+).
    """
    out = [] if children is None else ["Sub Call Budget: ", str(children), " "]
    return out if window is None else [*out, "Token Budget: ", str(window), " "]


def prompt(
    problem: Problem, serial: bool = False, children: int | None = None, window: int | None = None
) -> list[str]:
    """The root thread's prompt.

    Args:
        serial: for a model of one thread (SoS+), whose first node goes without a name.
        children, window: see ``budget``.
    """
    start = start_of(problem)
    lines = state(problem.target, start) if serial else arrival(ROOT, problem.target, start)
    return budget(children, window) + lines
