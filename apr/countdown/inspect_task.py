"""Countdown as a task of ``inspect_ai``: any model that it reaches, our problems, our grader.

Needs the extra ``inspect``; nothing else imports it::

    pip install 'apr[inspect]'
    inspect eval apr/countdown --model openai/gpt-5 -T count=200 -T high=20

The model is asked in plain words, reasons as it likes, and ends with its answer in one line.
"""

from __future__ import annotations

import re

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

from apr.countdown.grade import grade
from apr.countdown.problem import Problem, ProblemSpec, Split, problem, read_problems

_PROMPT = """\
Make {target} of the numbers {numbers}. Use every number exactly once, and only +, -, *, / and \
brackets. Every intermediate result must be a whole number from 0 up.
End with one line: Answer: EXPRESSION, for instance Answer: (3 + 5) * 8"""
_ANSWER = re.compile(r"answer\W*:(.*)", re.IGNORECASE)


@task
def countdown(
    count: int = 100,
    num_numbers: int = 4,
    high: int = 99,
    target_high: int = 100,
    seed: int = 0,
    problems: str | None = None,
) -> Task:
    """Problems of the test split.

    Args:
        high: largest number; ``target_high``: largest target.
        problems: a file of problems in place of those, as ``apr eval --problems`` takes it.
    """
    spec = ProblemSpec((num_numbers, num_numbers), high=high, target_high=target_high)
    posed = (
        [problem(spec, seed, index, Split.TEST) for index in range(count)]
        if problems is None
        else read_problems(problems)[:count]
    )
    return Task(MemoryDataset(list(map(_sample, posed))), solver=generate(), scorer=exact())


@scorer(metrics=[accuracy(), stderr()])
def exact() -> Scorer:
    """The verdict of ``apr.countdown.grade``, with its reason."""

    async def score(state: TaskState, target: Target) -> Score:
        posed = Problem(tuple(state.metadata["numbers"]), state.metadata["target"])
        answer = answer_of(state.output.completion)
        verdict = grade(posed, answer)
        return Score(value=verdict.correct, answer=answer, explanation=verdict.reason)

    return score


def answer_of(completion: str) -> str | None:
    """What stands behind the last ``Answer:``, without marks of emphasis or code."""
    found = _ANSWER.findall(completion)
    return found[-1].strip(" \t`*$.") if found else None


def _sample(posed: Problem) -> Sample:
    numbers, target = list(posed.numbers), posed.target
    asked = _PROMPT.format(target=target, numbers=", ".join(map(str, numbers)))
    return Sample(input=asked, target=str(target), metadata={"numbers": numbers, "target": target})
