from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from apr.countdown.paper import Paper
from apr.countdown.problem import Problem
from apr.countdown.task import Countdown
from apr.dialects.tags import threads
from apr.errors import EngineError
from apr.methods.apr import APR
from apr.methods.multi_agent import MultiAgent
from apr.methods.serial import Serial
from apr.runtime import Runtime
from apr.testing import Reply
from apr.trace import End, Trace
from apr.types import Grade, Sampling
from tests.methods.doubling import Doubling
from tests.methods.scripted import CODEC, Diary, engine_of, runtime_of


def delegate(problem: int, n: int) -> str:
    return f"<spawn>{threads([f'{problem}?'] * n)}</spawn>"


def merging(*joined: str) -> str:
    return f"4?{delegate(4, len(joined))}<joined>{threads(joined)}</joined>"


def solve(replies: dict[str, list[str | Reply]], diary: Diary | None = None) -> Trace:
    runtime = runtime_of(replies)
    n = len(replies["4?"])
    return asyncio.run(MultiAgent(runtime, Doubling(), Serial, n, delegate).solve(4, diary))


def test_the_model_goes_on_from_what_the_agents_answered() -> None:
    diary = Diary()
    agents = ["so <join>6</join>", "<join>8</join>", "<join>"]
    trace = solve({"4?": list(agents), merging("6", "8", ""): ["<join>8</join>"]}, diary)
    assert (trace.answer, trace.grade) == ("8", Grade(True, "correct"))
    assert trace.root.spawns == ((1, 2, 3), (4,))
    assert [t.join for t in trace.threads] == ["8", "6", "8", "", "8"]
    assert trace.threads[3].end is End.MALFORMED
    assert diary.agrees_with(trace)
    # The spawn that was written for it and what it heard are prompt, and cost nothing.
    num = [len(CODEC.encode(text)) for text in agents]
    assert trace.total_tokens == sum(num) + 1 + 3
    assert trace.sequential_tokens == max(num) + 3
    merged = trace.training_sequences()[-1]
    assert CODEC.decode(merged.ids_T[:-3]) == merging("6", "8", "")
    assert merged.mask_T == (0,) * (len(merged.ids_T) - 3) + (1,) * 3


def test_what_the_merge_makes_of_it_is_the_answer() -> None:
    trace = solve({"4?": ["<join>8</join>"], merging("8"): ["<join>7</join>"]})
    assert (trace.answer, trace.grade) == ("7", Grade(False, "wrong"))


@pytest.mark.parametrize(("text", "end"), [("<join>", End.MALFORMED), ("x" * 200, End.EXHAUSTED)])
def test_a_merge_that_breaks_off_answers_nothing(text: str, end: End) -> None:
    trace = solve({"4?": ["<join>8</join>"], merging("8"): [text]})
    assert (trace.root.end, trace.answer) == (end, None)
    assert trace.grade == Grade(False, "no answer")


def test_no_merge_where_the_world_failed_an_agent() -> None:
    trace = solve({"4?": ["<join>8</join>", Reply("", error=EngineError("down"))]})
    assert (trace.error, trace.grade) == ("EngineError: down", None)
    assert trace.root.spawns == ((1, 2),)


def test_the_paper_text_can_be_merged_too() -> None:
    task, problem = Countdown("paper"), Problem((5, 3), 8)  # type: ignore[arg-type]
    prompt = task.prompt(problem)
    path = f"{prompt}\nExploring Operation: 5+3=8, Resulting Numbers: [8]\n8,8 equal: Goal Reached"
    found = f"\n8,8 equal: Goal Reached\n{path}\n"
    results = (
        "\n<Sub Searches>\n<No Solution in Sub Search 0 at level 1 at Node #0>\n"
        f"<Goal Reached in Sub Search 1 at level 1 at Node #0>\n{path}\n<End Sub Searches>\n"
    )
    replies = {prompt: ["\nNo solution found.\n", found], prompt + results: [found]}
    runtime = replace(runtime_of(replies), dialect=Paper(), sampling=Sampling(max_tokens=1000))
    trace = asyncio.run(MultiAgent(runtime, task, Serial, 2, task.delegate).solve(problem))
    assert len(engine_of(runtime).requests) == 3
    assert (trace.answer, trace.grade) == (path, Grade(True, "correct"))


def test_over_the_packaged_model(demo: tuple[Runtime, Countdown]) -> None:
    runtime, task = demo
    runtime = replace(runtime, sampling=replace(runtime.sampling, temperature=0.0))
    problem, diary = Problem((95, 31, 4), 60), Diary()
    trace = asyncio.run(MultiAgent(runtime, task, APR, 2, task.delegate).solve(problem, diary))
    assert diary.agrees_with(trace)
    agents, (merge,) = trace.root.spawns
    assert trace.error is None
    answers = [trace.threads[i].join for i in agents if trace.threads[i].join.strip()]
    assert trace.threads[merge].join == trace.answer == answers[0], "it passes on what it heard"
