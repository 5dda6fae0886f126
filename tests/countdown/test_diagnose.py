"""Diagnoses of traces that a scripted model writes: the demonstration, with one thing changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from apr.countdown.demonstrate import NARRATORS
from apr.countdown.diagnose import Cause, Diagnosis, Tally, by_kind, diagnose
from apr.countdown.narrate import Telling, Text
from apr.countdown.problem import Problem
from apr.countdown.solver import Heuristic, SearchConfig, search
from apr.countdown.task import Countdown, dialect_of, special_words
from apr.errors import DataError
from apr.runtime import Runtime
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import Trace
from apr.types import Sampling

POSED = Problem((3, 9, 5), 72)
WITHIN = SearchConfig(max_value=80)
THREADS, SERIAL = SearchConfig(spawn_depth=1, max_value=80), SearchConfig(max_value=80)
HIT_PROMPT = "72 : 9 , 5 + 3</thread>"
HIT_TEXT = " 9 * 8 = 72 !<join> 5 + 3 = 8 , 9 * 8 = 72</join>"

Change = Callable[[str, str], str]


def kept(before: str, told: str) -> str:
    return told


def run(
    change: Change = kept,
    config: SearchConfig = THREADS,
    text: Text = Text.COMPACT,
    posed: Problem = POSED,
    telling: Telling = Telling.THREADS,
) -> Trace:
    """The trace of a model that says what the demonstration says, as ``change`` alters it.

    Args:
        change: from what stands before and what is told, what is sampled instead.
    """
    found = search(posed, config, random.Random(0))
    script: dict[str, str] = {}
    for sequence in NARRATORS[text](posed, found, telling).sequences:
        before = ""
        for segment in sequence:
            piece = "".join(segment.pieces)
            if segment.demonstrated:
                script[before] = change(before, piece)
            before += piece

    def reply(prompt: str) -> str:
        # What a changed model is told then is in no demonstration: it returns nothing.
        return script.get(prompt, "<join></join>")

    codec = ByteCodec(special_words(text))
    engine = ScriptedEngine(reply, codec, 100_000)
    runtime = Runtime(engine, codec, dialect_of(text, telling), Sampling(100_000))
    task = Countdown(text)
    trace = asyncio.run(runtime.run(task.prompt(posed)))
    answer = task.answer(trace.root.join)
    return replace(
        trace, problem=task.to_json(posed), answer=answer, grade=task.grade(posed, answer)
    )


def diagnosed(
    *traces: Trace, text: Text = Text.COMPACT, solver: SearchConfig = WITHIN
) -> Diagnosis:
    return diagnose(traces, text, ByteCodec(special_words(text)).decode, solver)


@pytest.mark.parametrize("config", [THREADS, SERIAL])
@pytest.mark.parametrize("text", Text)
def test_a_demonstration_has_no_fault(text: Text, config: SearchConfig) -> None:
    found = diagnosed(run(config=config, text=text), text=text)
    assert found.problems == Tally(1, 0)
    assert not found.causes
    steps = [found.steps[op] for op in "+-*/"]
    assert min(t.num for t in steps[:3]) > 0
    assert found.verdicts.num > 5
    assert not any(t.num_wrong for t in (*steps, found.verdicts, found.asked))


def test_each_step_is_counted_once() -> None:
    """9 5 3 has children 9+5, 9-5, 9*5, 9+3, 9-3, 9*3, 9/3, 5+3, 5-3, 5*3, and theirs."""
    found = diagnosed(run(config=SearchConfig(spawn_depth=1)), solver=SearchConfig())
    assert found.asked == Tally(10, 0)
    assert sum(t.num for t in found.steps.values()) == 10 + found.verdicts.num


def in_hit(old: str, new: str) -> Change:
    """A change to the child that finds the solution."""

    def change(before: str, told: str) -> str:
        if not before.endswith(HIT_PROMPT):
            return told
        assert old in told
        return told.replace(old, new)

    return change


def test_a_wrong_result_is_counted_by_its_operation() -> None:
    found = diagnosed(run(in_hit(" = 8 : 9 8", " = 7 : 9 7")))
    assert {op: t.num_wrong for op, t in found.steps.items()} == {"+": 1, "-": 0, "*": 0, "/": 0}
    assert found.problems == Tally(1, 0), "the path it returns is right all the same"


def test_a_rest_where_there_is_none_is_a_wrong_division() -> None:
    def change(before: str, told: str) -> str:
        return told.replace(" 4 + 3 = 7", " 8 / 4 , 4 / 3 , 4 / 0 , 4 + 3 = 7", 1)

    before, found = diagnosed(run()), diagnosed(run(change))
    assert found.steps["/"].num_wrong == 1
    # Each stands wherever 4 + 3 is tried.
    assert (found.steps["/"].num - before.steps["/"].num) % 3 == 0


def test_a_wrong_verdict() -> None:
    found = diagnosed(run(in_hit(HIT_TEXT, " 9 * 8 = 72 x<join></join>")))
    assert found.verdicts.num_wrong == 1
    assert not any(t.num_wrong for t in found.steps.values())
    assert found.causes == {Cause.MISSED: 1}


def test_a_solution_that_the_root_does_not_pass_on() -> None:
    def silent(before: str, told: str) -> str:
        return "<join></join>" if before.endswith("</joined>") else told

    assert diagnosed(run(silent)).causes == {Cause.UNHEARD: 1}


def test_a_root_that_ends_without_a_join() -> None:
    def lost(before: str, told: str) -> str:
        return "<spawn> 5" if before.endswith("</joined>") else told

    assert diagnosed(run(lost)).causes == {Cause.UNREAD: 1}


def test_a_child_that_was_not_asked_for() -> None:
    def other(before: str, told: str) -> str:
        return told.replace("<thread> 72 : 9 , 5 + 3</thread>", "<thread> 72 : 3 , 5 + 3</thread>")

    found = diagnosed(run(other))
    assert found.asked.num_wrong == 1
    assert found.causes == {Cause.UNASKED: 1}


def test_what_lies_beyond_the_search() -> None:
    below = replace(THREADS, max_value=71)
    assert diagnosed(run(config=below), solver=below).causes == {Cause.BEYOND: 1}


def test_what_a_narrow_search_does_not_look_at() -> None:
    """Of small numbers it makes 9 - 5 and 9 / 3 first, and 5 + 3 if it may go on."""
    narrow = replace(THREADS, beam=(2, 2), heuristic=Heuristic.SUM)
    assert diagnosed(run(config=narrow), solver=narrow).causes == {Cause.NARROW: 1}
    again = replace(narrow, rounds=0)
    assert not diagnosed(run(config=again), solver=again).causes
    assert diagnosed(run(config=narrow), solver=again).causes == {Cause.UNASKED: 1}


BEYOND = Problem((75, 55, 32, 5), 10)
BALANCED = SearchConfig(spawn_depth=1, max_value=300, balances=True)


def test_products_on_both_sides() -> None:
    """10 * 32 + 55 = 75 * 5, which the last child finds."""
    trace = run(config=BALANCED, posed=BEYOND)
    found = diagnosed(trace, solver=BALANCED)
    assert found.problems == Tally(1, 0)
    wrong = [t.num_wrong for t in (*found.steps.values(), found.verdicts, found.asked)]
    assert not any(wrong)
    first = diagnosed(run(config=replace(BALANCED, balances=False), posed=BEYOND))
    assert first.causes == {Cause.BEYOND: 1}
    # Fifteen parts have six verdicts each; one is a hit, the fourth of its six.
    assert found.verdicts.num - first.verdicts.num == 15 * 6 - 2


@pytest.mark.parametrize("text", [Text.COMPACT, Text.WHOLE])
@pytest.mark.parametrize("posed", [BEYOND, Problem((93, 62, 52, 32), 56)])
def test_products_that_one_thread_compares(text: Text, posed: Problem) -> None:
    def told(change: Change = kept) -> Diagnosis:
        trace = run(change, BALANCED, text, posed, Telling.SERIAL)
        return diagnosed(trace, text=text, solver=BALANCED)

    threads = diagnosed(run(kept, BALANCED, text, posed), text=text, solver=BALANCED)
    assert not told().verdicts.num_wrong
    # Threads compare all, where one stops at the first hit.
    assert threads.verdicts.num >= told().verdicts.num > 10
    if posed == BEYOND:
        wrong = told(lambda _, text: text.replace(" 320 + 55 = 375 !", " 320 + 55 = 375 x"))
        assert wrong.verdicts.num_wrong == 1


def test_samples_put_together_are_not_explained() -> None:
    sample = run()
    root = replace(sample.root, calls=(), spawns=((1,),))
    child = replace(sample.root, index=1, parent=0)
    with pytest.raises(DataError, match="'best_of_n' puts samples together"):
        diagnosed(replace(sample, method="best_of_n", threads=(root, child)))


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        (" 320 + 55 = 375 !", " 320 + 55 = 375 x", 1),
        (" 55 + 50 = 105 x", " 55 + 50 = 105 !", 1),
        (" 320 + 55 = 375 !", " 320 + 55 = 374 x", 0),
    ],
)
def test_a_wrong_verdict_on_a_difference(old: str, new: str, wrong: int) -> None:
    def change(before: str, told: str) -> str:
        return told.replace(old, new) if before.endswith(" 10 : 75 55 32 5 = 55</thread>") else told

    found = diagnosed(run(change, config=BALANCED, posed=BEYOND), solver=BALANCED)
    assert found.verdicts.num_wrong == wrong
    assert found.steps["+"].num_wrong == (new.endswith(" 374 x"))


def test_a_wrong_verdict_on_a_product_and_a_child_that_missed() -> None:
    posed = Problem((93, 62, 52, 32), 56)

    def change(before: str, told: str) -> str:
        if not before.endswith(" 56 : 93 62 52 32 = 52 32</thread>"):
            return told
        return told.partition(" !")[0] + " x<join></join>"

    found = diagnosed(run(change, config=BALANCED, posed=posed), solver=BALANCED)
    assert found.verdicts.num_wrong == 1
    assert found.causes == {Cause.MISSED: 1}


def test_a_wrong_verdict_on_a_product_that_was_taken_apart() -> None:
    posed = Problem((93, 62, 52, 32), 56)

    def change(before: str, told: str) -> str:
        if not before.endswith(" 56 : 93 62 52 32 = 62 52</thread>"):
            return told
        assert " 56 * 14 = 784 , 5600 + 784 = 6384 x" in told
        return told.replace(" 6384 x", " 6384 !")

    found = diagnosed(run(change, config=BALANCED, posed=posed), solver=BALANCED)
    assert found.verdicts.num_wrong == 1


def test_a_problem_without_a_solution() -> None:
    for solver in (SearchConfig(), WITHIN):
        found = diagnosed(run(posed=Problem((1, 1, 1), 40)), solver=solver)
        assert found.causes == {Cause.UNSOLVABLE: 1}
    assert Cause.UNSOLVABLE.meaning == "no solution exists"


def test_traces_of_another_task_are_refused() -> None:
    other = replace(run(), problem={"products": [[3, 4], [5, 6]]})
    with pytest.raises(DataError, match="no Countdown problem"):
        by_kind([run(), other])
    with pytest.raises(DataError, match="no Countdown problem"):
        diagnosed(run(), other)


def test_a_single_thread_claims_falsely_or_nothing_or_never_ends() -> None:
    def says(end: str) -> Change:
        return lambda before, told: told.partition("<join>")[0] + end

    for end, cause in (
        ("<join></join>", Cause.EMPTY),
        ("<join> 9 * 5 = 72</join>", Cause.FALSE),
        ("<spawn> 5", Cause.UNREAD),
    ):
        assert diagnosed(run(says(end), SERIAL)).causes == {cause: 1}


def test_without_a_grade_nothing_is_counted() -> None:
    assert diagnosed(replace(run(), grade=None)) == Diagnosis()


def test_kinds_of_problems_in_order() -> None:
    traces = [run(posed=posed) for posed in (Problem((30, 2), 60), POSED, Problem((25, 2, 1), 24))]
    kinds = by_kind(traces)
    assert {name: len(some) for name, some in kinds.items()} == {
        "all": 3,
        "2 numbers": 1,
        "2 numbers, largest 26 to 50": 1,
        "3 numbers": 2,
        "3 numbers, largest 1 to 25": 2,
    }
    assert next(iter(kinds)) == "all"


def test_shares_for_a_table_and_plain_values() -> None:
    found = diagnosed(run(), run(in_hit(HIT_TEXT, " 9 * 8 = 72 x<join></join>")))
    shares = found.shares()
    assert shares["n"] == "2"
    assert shares["solved"] == "50.0%"
    assert shares["wrong verdicts"] == f"{1 / found.verdicts.num:.2%}"
    assert found.to_json()["causes"] == {"missed": 1}
    nothing = Diagnosis().shares()
    assert (nothing["wrong +"], nothing["solved"]) == ("", ""), "nothing was done"
