from __future__ import annotations

import asyncio

import pytest

from apr.countdown.problem import Problem
from apr.countdown.task import Countdown
from apr.dialects.tags import Tags
from apr.eval.samples import samples_of
from apr.methods.apr import APR
from apr.methods.self_consistency import SelfConsistency
from apr.methods.serial import Serial
from apr.runtime import Runtime
from apr.trace import Trace
from apr.types import Grade
from tests.methods.doubling import Doubling
from tests.methods.scripted import Diary, runtime_of


def solve(*joins: str) -> Trace:
    texts = [f"<join>{join}</join>" for join in joins]
    method = SelfConsistency(runtime_of({"4?": texts}), Doubling(), Serial, len(texts))
    return asyncio.run(method.solve(4))


@pytest.mark.parametrize(
    ("joins", "answer"),
    [
        (["8", "6", "8"], "8"),
        # Those that claim nothing have no vote, however many they are.
        (["", "", "", "8"], "8"),
        # The verifier has none either: the majority is wrong, and so is the answer.
        (["6", "8", "6"], "6"),
        (["8", "6", "7", "6", "8", "6"], "6"),
        # Equal claims are one, whatever they look like; of a tie the earliest wins.
        (["7", "6", "06"], "6"),
        (["7", "06", "6"], "06"),
        (["6", "8", "8", "6"], "6"),
        # What cannot be read is a claim as well.
        (["what", "8", "what"], "what"),
    ],
)
def test_votes(joins: list[str], answer: str) -> None:
    trace = solve(*joins)
    assert trace.answer == answer
    assert trace.grade is not None
    assert trace.grade.correct == (answer == "8")


def test_where_nothing_is_claimed_nothing_is_voted_for() -> None:
    assert solve("", "").answer is None
    assert solve("", "").grade == Grade(False, "no answer")


def test_the_verifier_is_asked_once_after_the_vote() -> None:
    """A vote among verified samples would be pass@n by another name."""

    class Wary(Doubling):
        def grade(self, problem: int, answer: str | None) -> Grade:
            graded.append(answer)
            return super().grade(problem, answer)

    graded: list[str | None] = []
    texts = ["<join>6</join>", "<join>6</join>", "<join>8</join>"]
    trace = asyncio.run(SelfConsistency(runtime_of({"4?": texts}), Wary(), Serial, 3).solve(4))
    # Each sample is graded as a run of its own, then the winner; the right one does not win.
    assert graded == ["6", "6", "8", "6"]
    assert trace.grade == Grade(False, "wrong")


def test_paths_to_one_expression_are_one_claim() -> None:
    joins = [" 9 - 5 = 4 , 4 * 3 = 12", " 5 + 3 = 8 , 8 * 9 = 72", " 3 + 5 = 8 , 9 * 8 = 72"]
    task, problem = Countdown(), Problem((3, 9, 5), 72)
    replies = {task.prompt(problem): [f"<join>{join}</join>" for join in joins]}
    runtime = runtime_of(replies)
    assert isinstance(runtime.dialect, Tags)
    trace = asyncio.run(SelfConsistency(runtime, task, Serial, 3).solve(problem))
    assert trace.answer == joins[1]
    assert trace.grade == Grade(True, "correct")


def test_over_the_packaged_model(demo: tuple[Runtime, Countdown]) -> None:
    runtime, task = demo
    problem, diary = Problem((12, 5, 3), 21), Diary()
    trace = asyncio.run(SelfConsistency(runtime, task, APR, 3).solve(problem, diary))
    assert diary.agrees_with(trace)
    assert (trace.error, len(samples_of(trace, task, problem, 0))) == (None, 3)
    samples = [trace.threads[i] for i in trace.root.spawns[0]]
    assert trace.answer in [s.join for s in samples if s.join.strip()]
