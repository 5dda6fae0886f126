"""Countdown as a task: prompts and answers of each text, and what reads each text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from apr.countdown import compact, paper
from apr.countdown.answer import canonical
from apr.countdown.compact import Compact, CompactNumbered, CompactPasta, CompactWeighed
from apr.countdown.grade import grade
from apr.countdown.narrate import Telling, Text, check_telling
from apr.countdown.paper import Paper
from apr.countdown.problem import Problem
from apr.countdown.solver import start_of
from apr.errors import ConfigError
from apr.interfaces import Dialect
from apr.types import Grade


@dataclass(frozen=True, slots=True)
class Countdown:
    """Poses problems to a model that was trained on one text and telling."""

    text: Text = Text.COMPACT
    telling: Telling = Telling.THREADS
    children: int | None = None
    """Child threads to condition on, for a model trained so."""
    window: int | None = None
    """Context bin to condition on, in tokens, for a model trained so."""

    def __post_init__(self) -> None:
        check_telling(self.text, self.telling)

    def prompt(self, problem: Problem) -> str:
        if self.text != Text.PAPER:
            return "".join(compact.prompt(problem, self.children, self.window))
        serial = self.telling == Telling.SERIAL
        return "".join(paper.prompt(problem, serial, self.children, self.window))

    def answer(self, message: str) -> str | None:
        """The path that the root returned; None where it returned nothing."""
        return message if message.strip() else None

    def canonical(self, answer: str) -> str:
        return canonical(answer)

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        return grade(problem, answer)

    def to_json(self, problem: Problem) -> dict[str, Any]:
        return {"numbers": list(problem.numbers), "target": problem.target}

    def delegate(self, problem: Problem, num_children: int) -> str:
        """A spawn that gives the whole problem to each of its children, as a root writes it.

        Raises:
            ConfigError: a model that was trained on one thread hears no children.
        """
        if self.telling == Telling.SERIAL:
            raise ConfigError("this model was trained on single threads: take one that spawns")
        if self.text != Text.PAPER:
            message = compact.message(problem.target, start_of(problem))
            return "".join(compact.spawn([message] * num_children))
        return "\n" + "".join(paper.spawn([paper.Asked("1", paper.ROOT)] * num_children))


class Vocabulary(NamedTuple):
    """Ordinary tokens of a tokenizer made for a text."""

    words: list[str]
    pattern: str  # regular expression that cuts text into words


def dialect_of(text: Text, telling: Telling) -> Dialect:
    """What reads and resumes the threads of a model trained on ``text``, told so.

    Raises:
        ConfigError: the text cannot be told so.
    """
    check_telling(text, telling)
    if text == Text.PAPER:
        return Paper()
    dialects = {
        Telling.PASTA: CompactPasta,
        Telling.WEIGHED: CompactWeighed,
        Telling.NUMBERED: CompactNumbered,
    }
    return dialects.get(telling, Compact)()


def vocabulary(text: Text, largest: int, pairs: bool = False) -> Vocabulary:
    """Tokens for ``text``, one for each number up to ``largest``.

    Args:
        pairs: larger numbers are spelled in pairs of digits, not in single ones.

    Raises:
        ConfigError: pairs in the paper's text.
    """
    if pairs and text == Text.PAPER:
        raise ConfigError("the paper text spells no numbers in pairs: leave pairs out")
    if text == Text.PAPER:
        return Vocabulary(paper.words(largest), paper.PATTERN)
    if pairs:
        return Vocabulary(compact.words(largest) + compact.pairs(), compact.pairs_pattern(largest))
    return Vocabulary(compact.words(largest), compact.PATTERN)


def number_words(text: Text, largest: int, pairs: bool = False) -> dict[str, int]:
    """Words that stand for a number, or two digits of one, and which."""
    lead = "" if text == Text.PAPER else " "
    numbers = {f"{lead}{n}": n for n in range(max(9, largest) + 1)}
    return numbers | {word: int(word) for word in compact.pairs()} if pairs else numbers


def special_words(text: Text) -> tuple[str, ...]:
    """Special tokens for ``text``: one for each operation, the end, and padding."""
    return paper.SPECIALS if text == Text.PAPER else compact.SPECIALS


def step_ends(text: Text) -> tuple[str, ...]:
    """Where a step of a search ends, for tree of thoughts."""
    if text == Text.PAPER:
        return ("\n",)
    return (compact.ENTER, compact.LATER, compact.MISS, compact.HIT)


def mark_words(text: Text) -> tuple[str, str, str]:
    """The words that end a spawn, behind which stands what a thread joins with, and that end what
    it hears.
    """
    if text == Text.PAPER:
        return paper.CALLED, " equal: Goal Reached", paper.RESULTED
    return "</spawn>", "<join>", "</joined>"


def decisive_words(text: Text) -> dict[str, list[str]]:
    """Classes of words that decide whether a problem is solved. Operators do where they say which
    step is next: what is left out nobody finds.
    """
    if text == Text.PAPER:
        verdicts = [" equal: Goal Reached", " unequal: No Solution"]
        operations = [paper.CALL, "No solution found."]
        return {"verdicts": verdicts, "operations": operations, "operators": list("+-*/")}
    return {
        "verdicts": [compact.HIT, compact.MISS],
        "operations": ["<spawn>", "<join>"],
        "operators": [" +", " -", " *", " /"],
    }
