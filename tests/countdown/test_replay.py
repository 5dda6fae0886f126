"""A demonstration is exactly what a model that says it would do: each narrated search, replayed
through the runtime and its dialect, gives the same threads, calls, tokens and answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from apr.countdown import narrate, narrate_paper
from apr.countdown.narrate import Telling, Text
from apr.countdown.problem import Problem, ProblemSpec, problem
from apr.countdown.solver import Mode, Order, Search, SearchConfig, search
from apr.countdown.task import Countdown, dialect_of, special_words, vocabulary
from apr.data.shards import encode
from apr.data.tokenizer import HFCodec, build_tokenizer
from apr.runtime import Runtime
from apr.testing import ByteCodec, Request, ScriptedEngine
from apr.trace import End, Trace
from apr.types import Demonstration, Sampling

CONTEXT = 200_000
MAX_VALUE = 300
TOLD = [
    (Text.COMPACT, Telling.SERIAL),
    (Text.COMPACT, Telling.THREADS),
    (Text.COMPACT, Telling.PASTA),
    (Text.PAPER, Telling.SERIAL),
    (Text.PAPER, Telling.THREADS),
]
SEARCHES = {
    "full": SearchConfig(spawn_depth=1),
    "paper": SearchConfig((1, 10), (1, 15), promising=0.9, spawn_depth=1, order=Order.SHUFFLED),
    "coin": SearchConfig((1, 6), (1, 6), promising=0.5, spawn_depth=1, order=Order.HEURISTIC),
    "queue": SearchConfig((2, 4), (2, 4), promising=0.1, spawn_depth=1),
    "nested": SearchConfig((2, 4), (2, 4), promising=0.8, spawn_depth=2, max_children=3),
    "serial": SearchConfig((1, 5), promising=0.5),
    "balanced": SearchConfig(spawn_depth=1, max_value=30, balances=True),
    "rounds": SearchConfig((2, 3), (2, 2), spawn_depth=2, full_width=2, rounds=3, max_value=30),
}
PROBLEMS = {
    "three": ProblemSpec(num_numbers=(3, 3), high=20, target_high=50, solvable=None),
    "four": ProblemSpec(high=30, target_high=60, solvable=None),
    "few": ProblemSpec(num_numbers=(1, 3), high=12, target_low=1, target_high=20),
}
SIZES = {"three": 8, "four": 6, "few": 4}
# A full search of four numbers is a long text that shows nothing new.
RUNS = [(k, c) for k in PROBLEMS for c in SEARCHES if (k, c) != ("four", "full")]
# What the paper's text has no words for.
COMPACT_ALONE = ("balanced", "rounds")
CASES = [(*t, *r) for t in TOLD for r in RUNS if t[0] != Text.PAPER or r[1] not in COMPACT_ALONE]


def codec_of(text: Text) -> HFCodec:
    words, pattern = vocabulary(text, MAX_VALUE)
    return HFCodec(build_tokenizer(words, special_words(text), pattern))


CODECS = {text: codec_of(text) for text in Text}


class Case(NamedTuple):
    problem: Problem
    found: Search
    told: Demonstration


def cases(text: Text, telling: Telling, kind: str, config: SearchConfig) -> Iterator[Case]:
    tell = narrate.narrate if text is Text.COMPACT else narrate_paper.narrate
    for index in range(SIZES[kind]):
        posed = problem(PROBLEMS[kind], 5, index)
        found = search(posed, config, random.Random(index))
        yield Case(posed, found, tell(posed, found, telling))


def script(told: Demonstration) -> dict[str, str]:
    """What the model of a demonstration answers to each prompt."""
    replies: dict[str, str] = {}
    for sequence in told.sequences:
        text = ""
        for segment in sequence:
            piece = "".join(segment.pieces)
            if segment.demonstrated:
                assert text not in replies
                replies[text] = piece
            text += piece
    return replies


def replay(case: Case, text: Text, telling: Telling, codec: Any) -> tuple[Trace, list[Request]]:
    engine = ScriptedEngine(script(case.told), codec, CONTEXT)
    runtime = Runtime(engine, codec, dialect_of(text, telling), Sampling(CONTEXT))
    trace = asyncio.run(runtime.run(Countdown(text, telling).prompt(case.problem)))
    return trace, engine.requests


Tree = list[Any]


def tree_of_search(found: Search) -> Tree:
    """Its spawns in order, each as a list of what its children did."""
    spawns: Tree = []
    for visit in found.visits:
        below = [tree_of_search(s) for s in visit.searches]
        if visit.mode is Mode.SPAWN:
            spawns.append(below)
        elif visit.mode is Mode.BALANCE:
            spawns.append([[] for _ in visit.balances])
        else:
            spawns += [spawn for tree in below for spawn in tree]
    return spawns


def tree_of_trace(trace: Trace, index: int = 0) -> Tree:
    return [[tree_of_trace(trace, c) for c in group] for group in trace.threads[index].spawns]


@pytest.mark.parametrize(("text", "telling", "kind", "config"), CASES)
def test_replay_gives_the_same_tree_tokens_and_answer(
    text: Text, telling: Telling, kind: str, config: str
) -> None:
    codec, task = CODECS[text], Countdown(text, telling)
    for case in cases(text, telling, kind, SEARCHES[config]):
        trace, requests = replay(case, text, telling, codec)

        expected = [] if telling is Telling.SERIAL else tree_of_search(case.found)
        assert tree_of_trace(trace) == expected
        assert trace.num_children == case.told.num_children
        assert all(t.end is End.JOINED and not t.notes for t in trace.threads)
        assert len(requests) == len(script(case.told))

        demonstrated = [(ids, list(map(int, loss))) for ids, loss in encode(case.told, codec)]
        sampled = [(list(s.ids_T), list(s.mask_T)) for s in trace.training_sequences()]
        assert sampled == demonstrated

        answer = task.answer(trace.root.join)
        solved = case.found.goal is not None
        assert case.told.solved == trace.root.success == (answer is not None) == solved
        assert task.grade(case.problem, answer).correct == solved


@pytest.mark.parametrize(("text", "telling"), TOLD)
def test_tokens_are_counted_as_a_trace_counts_them(text: Text, telling: Telling) -> None:
    config = SearchConfig((2, 4), (2, 4), 0.7, spawn_depth=2, max_value=MAX_VALUE)
    for case in cases(text, telling, "four", config):
        trace, _ = replay(case, text, telling, CODECS[text])
        assert trace.total_tokens == case.told.total_tokens
        assert trace.sequential_tokens == case.told.sequential_tokens


@pytest.mark.parametrize(("text", "telling"), TOLD)
def test_replay_does_not_depend_on_the_tokenizer(text: Text, telling: Telling) -> None:
    codec = ByteCodec(special_words(text))
    for case in cases(text, telling, "three", SEARCHES["paper"]):
        trace, _ = replay(case, text, telling, codec)
        assert trace.num_children == case.told.num_children
        answer = Countdown(text, telling).answer(trace.root.join)
        assert Countdown(text, telling).grade(case.problem, answer).correct == case.told.solved


def test_children_return_their_paths_or_nothing() -> None:
    config = SEARCHES["paper"]
    for text, telling in TOLD[1::3]:
        for case in cases(text, telling, "four", config):
            trace, _ = replay(case, text, telling, CODECS[text])
            found = [s for v in case.found.visits if v.mode is Mode.SPAWN for s in v.searches]
            for child, did in zip(trace.threads[1:], found, strict=True):
                assert child.success == bool(child.join.strip()) == (did.goal is not None)
