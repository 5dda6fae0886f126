from __future__ import annotations

from typing import Any

import pytest

from apr.countdown.compact import Compact, CompactPasta
from apr.countdown.narrate import Telling, Text
from apr.countdown.paper import Paper
from apr.countdown.problem import Problem
from apr.countdown.task import (
    Countdown,
    decisive_words,
    dialect_of,
    mark_words,
    number_words,
    special_words,
    step_ends,
    vocabulary,
)
from apr.data.tokenizer import EOS, PAD, HFCodec, build_tokenizer
from apr.errors import ConfigError
from apr.interfaces import Dialect, Spawn, Task

POSED = Problem((3, 9, 5), 24)
STATE = "Current State: 24:[9, 5, 3], Operations: []"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "<thread> 24 : 9 5 3</thread>"),
        ({"children": 4}, "<children> 4<thread> 24 : 9 5 3</thread>"),
        ({"telling": Telling.SERIAL, "window": 512}, "<window> 512<thread> 24 : 9 5 3</thread>"),
        ({"text": Text.PAPER}, f"Moving to Node #0\n{STATE}"),
        ({"text": Text.PAPER, "children": 4}, f"Sub Call Budget: 4 Moving to Node #0\n{STATE}"),
        ({"text": Text.PAPER, "telling": Telling.SERIAL}, STATE),
        (
            {"text": Text.PAPER, "telling": Telling.SERIAL, "window": 512},
            f"Token Budget: 512 {STATE}",
        ),
    ],
)
def test_prompts(settings: dict[str, Any], expected: str) -> None:
    assert Countdown(**settings).prompt(POSED) == expected


def test_a_text_can_be_named_plainly() -> None:
    assert Countdown("paper", "serial").prompt(POSED) == STATE  # type: ignore[arg-type]
    assert isinstance(dialect_of("paper", "threads"), Paper)  # type: ignore[arg-type]


def test_an_answer_is_the_message_or_nothing() -> None:
    task: Task[Problem] = Countdown()
    assert task.answer(" 5 + 3 = 8 , 9 * 8 = 72") == " 5 + 3 = 8 , 9 * 8 = 72"
    assert task.answer("") is None
    assert task.answer(" \n") is None


def test_grades_and_records() -> None:
    task: Task[Problem] = Countdown()
    assert task.grade(POSED, "(9 - 3 / 5)").correct is False
    assert task.grade(Problem((3, 9, 5), 72), "(5 + 3) * 9").correct
    assert task.grade(POSED, None).correct is False
    assert task.to_json(POSED) == {"numbers": [3, 9, 5], "target": 24}


def test_equal_claims_are_one() -> None:
    task: Task[Problem] = Countdown()
    assert task.canonical(" 5 + 3 = 8 , 9 * 8 = 72") == task.canonical("9 * (3 + 5)")
    assert task.canonical("9 * 3 + 5") != task.canonical("9 * (3 + 5)")


@pytest.mark.parametrize("text", Text)
def test_a_problem_can_be_delegated_whole(text: Text) -> None:
    task, dialect = Countdown(text), dialect_of(text, Telling.THREADS)
    asked = dialect.read(task.prompt(POSED), task.delegate(POSED, 3))
    assert isinstance(asked, Spawn)
    assert [dialect.child_prompt(m) for m in asked.messages] == [task.prompt(POSED)] * 3


@pytest.mark.parametrize("text", Text)
def test_a_model_of_single_threads_delegates_nothing(text: Text) -> None:
    with pytest.raises(ConfigError, match="take one that spawns"):
        Countdown(text, Telling.SERIAL).delegate(POSED, 3)


@pytest.mark.parametrize(
    ("text", "telling", "kind"),
    [
        (Text.COMPACT, Telling.SERIAL, Compact),
        (Text.COMPACT, Telling.THREADS, Compact),
        (Text.COMPACT, Telling.PASTA, CompactPasta),
        (Text.PAPER, Telling.SERIAL, Paper),
        (Text.PAPER, Telling.THREADS, Paper),
    ],
)
def test_each_telling_has_its_dialect(text: Text, telling: Telling, kind: type[Dialect]) -> None:
    assert type(dialect_of(text, telling)) is kind


def test_a_telling_the_text_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="no pasta telling"):
        dialect_of(Text.PAPER, Telling.PASTA)
    with pytest.raises(ConfigError, match="no pasta telling"):
        Countdown(Text.PAPER, Telling.PASTA)


def test_pairs_of_digits_stand_for_numbers_too() -> None:
    words, _ = vocabulary(Text.WHOLE, 100, pairs=True)
    numbers = number_words(Text.WHOLE, 100, pairs=True)
    assert set(numbers) <= set(words)
    assert (numbers[" 7"], numbers["07"], numbers[" 70"], numbers["70"]) == (7, 7, 70, 70)
    with pytest.raises(ConfigError, match="leave pairs out"):
        vocabulary(Text.PAPER, 100, pairs=True)


@pytest.mark.parametrize("text", Text)
def test_each_text_has_a_tokenizer(text: Text) -> None:
    words, pattern = vocabulary(text, 100)
    codec = HFCodec(build_tokenizer(words, special_words(text), pattern))
    assert codec.eos_id == codec.token_id(EOS)
    assert codec.pad_id == codec.token_id(PAD)
    for stop in dialect_of(text, Telling.THREADS).stops:
        assert codec.token_id(stop) is not None
    assert all(end in codec.vocabulary for end in step_ends(text))
    for members in decisive_words(text).values():
        assert all(word in codec.vocabulary for word in members)
    assert all(word in codec.vocabulary for word in mark_words(text))
