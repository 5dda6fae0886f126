from __future__ import annotations

import asyncio
import random

from apr.countdown.narrate import Telling, narrate
from apr.countdown.problem import Problem
from apr.countdown.solver import SearchConfig, search
from apr.countdown.task import Countdown, Text, dialect_of, special_words
from apr.methods.apr import APR
from apr.methods.pasta import Pasta
from apr.runtime import Runtime
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import Trace
from apr.types import Sampling

PROBLEM = Problem((26, 9, 2, 3), 73)


def solve(kind: type[APR[Problem]], telling: Telling) -> Trace:
    """One search, as a model would write it that was trained on this telling."""
    found = search(PROBLEM, SearchConfig(spawn_depth=1), random.Random(0))
    script: dict[str, str] = {}
    for sequence in narrate(PROBLEM, found, telling).sequences:
        text = ""
        for segment in sequence:
            if segment.demonstrated:
                script[text] = "".join(segment.pieces)
            text += "".join(segment.pieces)
    codec = ByteCodec(special_words(Text.COMPACT))
    engine = ScriptedEngine(script, codec, 100_000)
    runtime = Runtime(engine, codec, dialect_of(Text.COMPACT, telling), Sampling(100_000))
    return asyncio.run(kind(runtime, Countdown(Text.COMPACT, telling)).solve(PROBLEM))


def test_it_costs_the_context_that_join_messages_save() -> None:
    pasta, threads = solve(Pasta, Telling.PASTA), solve(APR, Telling.THREADS)
    assert (pasta.method, threads.method) == ("pasta", "apr")
    assert pasta.grade is not None
    assert pasta.grade == threads.grade
    assert pasta.grade.correct
    assert pasta.answer == threads.answer
    assert pasta.total_tokens == threads.total_tokens
    assert pasta.sequential_tokens == threads.sequential_tokens
    assert pasta.longest_context > threads.longest_context
    # The parent holds all that its children wrote.
    written = sum(len(c.ids) for t in pasta.threads[1:] for c in t.calls)
    assert len(pasta.root.calls[-1].prompt_ids) > written
