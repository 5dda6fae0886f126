"""The `compact` dialect: the operations of `tags` around search lines that waste nothing.

Every piece of text below is one token of the tokenizer that ``words`` describes; all but the
special tokens carry one leading space. A thread's prompt is its target and numbers, then the steps
that led there, the last without its result, which is for the child to work out::

    <thread> 24 : 9 5 3</thread>                 the root of  9 5 3 -> 24
    <thread> 24 : 9 , 5 + 3</thread>             a child of it, which goes on:  = 8 : 9 8

Lines of search::

     5 + 3 = 8 : 9 8            search on from the state 9 8
     5 + 3 = 8 ,                leave it for later
     9 + 8 = 17 x               a complete expression and its verdict: a miss
     9 * 3 = 27 !               a hit
     9 / 8 ,                    leaves a rest, so there is no result to go on from
    <join> 5 + 3 = 8 , 9 * 8 = 72</join>         what the thread returns: a path, or nothing

A child that compares products (see ``balance``) is given all numbers and who joins, or who makes up
a difference. It says what is left, each side before a colon, and what is compared with it before
the verdict; a product of more than 100 it takes apart, and a difference is added to each of the
two, first to its last two digits::

    <thread> 56 : 93 62 52 32 = 52 32</thread>
     52 + 32 = 84 , 52 - 32 = 20 : 93 62 56 93 * 62 = 5766 : 84 * 56 = 4704 x 56 * 20 = 1120 x
    <thread> 56 : 93 62 52 32 = 62 52</thread>
     62 + 52 = 114 , 62 - 52 = 10 : 93 32 56 93 * 32 = 2976 : 56 * 14 = 784 , 5600 + 784 = 6384 x
    <thread> 56 : 93 62 52 32 = 93</thread>
     : 62 52 32 56 62 * 52 = 3224 : 56 * 32 = 1792 ,
     93 + 24 = 117 , 3224 + 93 = 3317 x 93 + 92 = 185 , 1792 + 93 = 1885 x
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from apr.countdown.balance import Balance, Mark
from apr.countdown.problem import Path, Problem, Step, divisible
from apr.countdown.solver import Node, start_of
from apr.dialects.tags import Tags, messages
from apr.interfaces import Append, Join, Malformed, Operation

SPECIALS = (
    "<|pad|>",
    "<|end|>",
    "<thread>",
    "</thread>",
    "<spawn>",
    "</spawn>",
    "<joined>",
    "</joined>",
    "<join>",
    "</join>",
    "<children>",
    "<window>",
)
PATTERN = r" ?[0-9]+| ?[^0-9]"
"""Cuts text into words: numbers and signs."""
MISS, HIT, LATER, ENTER, EQUALS = " x", " !", " ,", " :", " ="
MARKS = {Mark.KEEP: LATER, Mark.SIDE: ENTER, Mark.MISS: MISS, Mark.HIT: HIT}
MAX_HEARD = 6
"""Paths that a parent hears of all that its children found: more would only fill its context."""


class Compact(Tags):
    """Spawn and join as in `tags`; on resume the parent hears the first path found, or nothing.

    A path says whose it is and one is enough: what the other children said would only fill context.
    """

    name = "compact"

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Append:
        return Append("".join(joined(_found(joins)[:1])))


class CompactWeighed(Compact):
    """The parent hears every path found, for it to weigh: what a child claims may be wrong."""

    name = "compact-weighed"

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Append:
        return Append("".join(joined(_found(joins)[:MAX_HEARD])))


class CompactNumbered(Compact):
    """As weighed, but each path stands before a number, and a thread returns one by its number.

    What takes some twenty tokens to say again, any of them wrong, takes two::

        <joined><thread> 5 + 3 = 8 , 9 * 8 = 72 : 1</thread></joined><join> : 1</join>
    """

    name = "compact-numbered"

    def read(self, prompt: str, sampled: str) -> Operation:
        operation = super().read(prompt, sampled)
        if not isinstance(operation, Join) or not operation.message.startswith(ENTER):
            return operation
        _, joined_, heard = prompt.rpartition("<joined>")
        for message in messages(heard) if joined_ else ():
            path, _, number = message.rpartition(ENTER)
            if ENTER + number == operation.message:
                return Join(path, operation.success)
        return Malformed(f"A thread returns{operation.message}, and heard nothing so numbered.")

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Append:
        return Append("".join(joined(numbered(_found(joins)[:MAX_HEARD]))))


class CompactPasta(Compact):
    """As PASTA (2502.11517) merges: the whole text of each child returns to its parent.

    The root still returns its path alone, which is its answer. For fresh child contexts.
    """

    name = "compact-pasta"

    def read(self, prompt: str, sampled: str) -> Operation:
        operation = super().read(prompt, sampled)
        start, _, before = prompt.partition("</thread>")
        if isinstance(operation, Join) and (LATER in start or EQUALS in start):
            # Only a child's start holds a step, or what is to be balanced.
            text = before + sampled.partition("</join>")[0]
            return Join(text.replace("<join>", LATER), operation.success)
        return operation

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Append:
        return Tags.resume(self, prompt, sampled, joins)


def _found(joins: Sequence[Join | Malformed]) -> list[list[str]]:
    """The paths that children return, each as the pieces of a message."""
    return [[j.message] for j in joins if isinstance(j, Join) and j.message]


def numbered(paths: Iterable[list[str]]) -> list[list[str]]:
    """``paths`` as a parent hears them that returns one by its number: `` path : 1``."""
    return [[*path, *label(n)] for n, path in enumerate(paths, 1)]


def label(n: int) -> list[str]:
    """What returns path ``n`` of those heard."""
    return [ENTER, number(n)]


def words(max_number: int) -> list[str]:
    """Ordinary tokens: digits for numbers beyond ``max_number``, the numbers, the signs."""
    digits = [" ", *"0123456789", *(f" {d}" for d in range(10))]
    signs = [f" {s}" for s in "+-*/=:,x!"]
    return digits + signs + [f" {n}" for n in range(10, max_number + 1)]


def pairs() -> list[str]:
    """Tokens that go on with a number: `` 34`` ``31`` is how 3431 is spelled in pairs."""
    return [f"{n:02}" for n in range(100)]


def pairs_pattern(max_number: int) -> str:
    """As PATTERN, but cuts numbers beyond ``max_number`` into pairs of digits, from the right."""
    whole = "|".join(map(str, range(max_number + 1)))
    rest = "(?:[0-9]{2})*(?![0-9])"
    return rf" (?:{whole})(?![0-9])| [0-9]{{1,2}}(?={rest})|[0-9]{{2}}(?={rest})|{PATTERN}"


@lru_cache(maxsize=1 << 16)
def number(n: int) -> str:
    return f" {n}"


@lru_cache(maxsize=1 << 12)
def step_pieces(step: Step) -> tuple[str, ...]:
    """` a + b = c`"""
    return (number(step.a), " " + step.op, number(step.b), EQUALS, number(step.value))


def division_pieces(a: int, b: int) -> list[str]:
    """`` a / b = c ,``, or `` a / b ,`` where that leaves a rest."""
    if divisible(a, b):
        return [*step_pieces(Step(a, "/", b, a // b)), LATER]
    return [number(a), " /", number(b), LATER]


def state(numbers: Iterable[int]) -> list[str]:
    return [number(n) for n in numbers]


def path_pieces(path: Path) -> list[str]:
    """` a + b = c , d * e = f`"""
    out: list[str] = []
    for step in path:
        out += step_pieces(step)
        out.append(LATER)
    return out[:-1]


def message(target: int, node: Node) -> list[str]:
    """What a thread is spawned with: all it needs to know of ``node``."""
    out = [number(target), ENTER]
    if not node.path:
        return out + state(node.numbers)
    rest = list(node.numbers)
    rest.remove(node.path[-1].value)
    return [*out, *state(rest), LATER, *path_pieces(node.path)[:-2]]


def whole_message(target: int, node: Node) -> list[str]:
    """The same in the `whole` text: the state that the last step is taken from, and the steps.

    Two numbers longer, and a parent that lists its children copies each from its neighbour.
    """
    if not node.path:
        return message(target, node)
    last = node.path[-1]
    before = list(node.numbers)
    before.remove(last.value)
    before = sorted((*before, last.a, last.b), reverse=True)
    path = path_pieces(node.path)[:-2]
    return [number(target), ENTER, *state(before), LATER, *path]


def balance_message(target: int, node: Node, first: Iterable[int]) -> list[str]:
    """What a thread is spawned with that compares products."""
    return [number(target), ENTER, *state(node.numbers), EQUALS, *state(first)]


def balance_pieces(balance: Balance) -> list[str]:
    """`` a + b = c , a - b = d : e f g e * f = h : c * g = i x``"""
    out = [*path_pieces(balance.joined), ENTER, *state(balance.rest)]
    for step, mark, _ in balance.lines:
        out += (*step_pieces(step), MARKS[mark])
    return out


def thread(pieces: Iterable[str]) -> list[str]:
    return ["<thread>", *pieces, "</thread>"]


def spawn(messages: Iterable[list[str]]) -> list[str]:
    return ["<spawn>", *(p for m in messages for p in thread(m)), "</spawn>"]


def joined(messages: Iterable[list[str]]) -> list[str]:
    return ["<joined>", *(p for m in messages for p in thread(m)), "</joined>"]


def join(pieces: Iterable[str]) -> list[str]:
    return ["<join>", *pieces, "</join>"]


def prompt(problem: Problem, children: int | None = None, window: int | None = None) -> list[str]:
    """The root thread's prompt.

    Args:
        children: number of child threads to condition on (paper, section 4.1: for APR).
        window: context bin to condition on, in tokens (the same, for SoS+).
    """
    budget = [] if children is None else ["<children>", number(children)]
    budget += [] if window is None else ["<window>", number(window)]
    return budget + thread(message(problem.target, start_of(problem)))
