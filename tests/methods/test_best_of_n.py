from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from apr.countdown.problem import Problem
from apr.countdown.task import Countdown
from apr.errors import ConfigError
from apr.eval.samples import samples_of
from apr.methods.apr import APR
from apr.methods.best_of_n import BestOfN, Chooser, choose, mean_logprob
from apr.methods.serial import Serial
from apr.runtime import Runtime
from apr.trace import Trace
from apr.types import Grade
from tests.methods.doubling import Doubling
from tests.methods.scripted import Diary, runtime_of

NOTHING, SIX, EIGHT = "<join></join>", "<join>6</join>", "<join>8</join>"


def solve(chooser: Chooser, *texts: str) -> Trace:
    method = BestOfN(runtime_of({"4?": texts}), Doubling(), Serial, len(texts), chooser)
    return asyncio.run(method.solve(4))


@pytest.mark.parametrize(
    ("chooser", "texts", "answer"),
    [
        (Chooser.FIRST, [NOTHING, SIX, EIGHT], "6"),
        (Chooser.FIRST, [EIGHT, SIX], "8"),
        (Chooser.ORACLE, [NOTHING, SIX, EIGHT], "8"),
        (Chooser.ORACLE, [NOTHING, SIX, "<join>7</join>"], "6"),
        # The scripted logprob falls with the byte, so that spaces are the likeliest.
        (Chooser.LOGPROB, ["zzz" + SIX, "   " + EIGHT], "8"),
        (Chooser.LOGPROB, ["   " + SIX, "zzz" + EIGHT], "6"),
        (Chooser.LOGPROB, ["   " + NOTHING, "zzz" + SIX], "6"),
        (Chooser.LOGPROB, [SIX.replace("6", "ab"), SIX.replace("6", "ba")], "ab"),
    ],
)
def test_choosers(chooser: Chooser, texts: list[str], answer: str) -> None:
    trace = solve(chooser, *texts)
    assert (trace.answer, trace.root.join, trace.root.success) == (answer, answer, True)
    assert trace.grade is not None
    assert trace.grade.correct == (answer == "8")


@pytest.mark.parametrize("chooser", Chooser)
def test_where_no_sample_claims_an_answer_there_is_none(chooser: Chooser) -> None:
    trace = solve(chooser, NOTHING, "<join>", NOTHING)
    assert (trace.answer, trace.root.success) == (None, False)
    assert trace.grade == Grade(False, "no answer")


def test_the_likeliest_cannot_be_taken_where_nothing_has_a_logprob() -> None:
    whole = solve(Chooser.FIRST, SIX, EIGHT)
    untold = [
        replace(t, calls=tuple(replace(c, logprobs=()) for c in t.calls)) for t in whole.threads
    ]
    samples = [replace(whole, threads=(t,)) for t in untold[1:]]
    assert choose(Chooser.FIRST, samples) is untold[1]
    with pytest.raises(ConfigError, match="no logprobs"):
        choose(Chooser.LOGPROB, samples)
    told = replace(whole, threads=whole.threads[2:])
    assert choose(Chooser.LOGPROB, [*samples, told]) is whole.threads[2], "it has some"


def test_mean_logprob_is_over_all_threads() -> None:
    trace = solve(Chooser.FIRST, "a" + SIX, EIGHT)
    logprobs = [p for t in trace.threads for c in t.calls for p in c.logprobs]
    assert mean_logprob(trace) == pytest.approx(sum(logprobs) / len(logprobs))
    assert len(logprobs) == trace.total_tokens
    assert mean_logprob(Trace({}, "", (trace.root,))) == -math.inf


def sampled(trace: Trace, index: int) -> str:
    """All ids of a thread and of those below it."""
    thread = trace.threads[index]
    below = [sampled(trace, child) for spawn in thread.spawns for child in spawn]
    return repr(([c.ids for c in thread.calls], below))


def test_over_the_packaged_model(demo: tuple[Runtime, Countdown]) -> None:
    runtime, task = demo
    problem, diary = Problem((46, 43, 41, 37), 61), Diary()
    trace = asyncio.run(BestOfN(runtime, task, APR, 4, Chooser.ORACLE).solve(problem, diary))
    assert diary.agrees_with(trace)
    assert trace.error is None
    (samples,) = trace.root.spawns
    assert len(samples) == 4
    drawn = samples_of(trace, task, problem, 0)
    assert trace.grade is not None
    assert trace.grade.correct == any(sample.correct for sample in drawn)
    assert trace.sequential_tokens < trace.total_tokens
    assert len({sampled(trace, i) for i in samples}) > 1, "samples at temperature 1 differ"
    again = asyncio.run(BestOfN(runtime, task, APR, 4, Chooser.ORACLE).solve(problem))
    assert [t.join for t in again.threads] == [t.join for t in trace.threads]
