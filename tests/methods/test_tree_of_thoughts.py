from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from apr.countdown.problem import Problem
from apr.countdown.task import Countdown, Text, step_ends
from apr.dialects.tags import threads
from apr.errors import ConfigError, ContextError, EngineError
from apr.methods.tree_of_thoughts import TreeConfig, TreeOfThoughts, Value
from apr.runtime import Limits, Runtime
from apr.testing import Reply
from apr.trace import End, Trace
from apr.types import Completion, Grade
from tests.methods.doubling import Doubling
from tests.methods.scripted import CODEC, Diary, Replies, engine_of, runtime_of

ROLLOUTS = TreeConfig(depth=2, beam=1, proposals=2, value=Value.ROLLOUTS, rollouts=2)


def solve(
    replies: Replies, tree: TreeConfig, diary: Diary | None = None, steps: tuple[str, ...] = (".",)
) -> Trace:
    """The engine must have given every reply there is."""
    runtime = runtime_of(replies)
    trace = asyncio.run(TreeOfThoughts(runtime, Doubling(), steps, tree).solve(4, diary))
    asked = [request.prompt for request in engine_of(runtime).requests]
    if trace.error is None:
        assert sorted(asked) == sorted(
            prompt for prompt, r in replies.items() for _ in ([r] if isinstance(r, str) else r)
        )
    return trace


def joins(trace: Trace, spawn: int) -> list[str]:
    return [trace.threads[i].join for i in trace.root.spawns[spawn]]


# Two levels of two thoughts. The scripted logprob falls with the byte: of each level "a" is best.
LEVELS: dict[str, Sequence[str]] = {
    "4?": ["zz.", "aa."],
    "4?aa.": ["aaaa.", "zzzz."],
    "4?zz.": ["zzz.", "zz."],
    "4?aa.aaaa.": ["<join>8</join>"],
}


def test_the_best_of_each_level_is_gone_on_from_and_the_best_of_all_is_finished() -> None:
    diary = Diary()
    trace = solve(LEVELS, TreeConfig(depth=2, beam=2, proposals=2), diary)
    assert (trace.answer, trace.grade) == ("8", Grade(True, "correct"))
    assert [len(spawn) for spawn in trace.root.spawns] == [2, 4, 1]
    assert joins(trace, 0) == ["zz.", "aa."]
    assert joins(trace, 1) == ["aaaa.", "zzzz.", "zzz.", "zz."]
    assert diary.agrees_with(trace)


def test_thoughts_are_not_valued_by_logprobs_that_nobody_gives() -> None:
    runtime = runtime_of(LEVELS)
    engine = engine_of(runtime)
    generate = engine.generate

    async def without(*args: Any) -> Completion:
        return (await generate(*args))._replace(logprobs=())

    engine.generate = without  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="take rollouts"):
        asyncio.run(TreeOfThoughts(runtime, Doubling(), (".",), TreeConfig(2, 2, 2)).solve(4))


def test_every_thought_is_paid_for_and_the_longest_of_each_level_is_waited_for() -> None:
    trace = solve(LEVELS, TreeConfig(depth=2, beam=2, proposals=2))
    assert trace.total_tokens == (3 + 3) + (5 + 5 + 4 + 3) + 3
    assert trace.sequential_tokens == 3 + 5 + 3
    assert trace.peak_width == 4
    assert trace.longest_context == len("4?aa.aaaa.") + 3


def test_states_go_on_by_their_ids_and_are_trained_on_as_sampled() -> None:
    trace = solve(LEVELS, TreeConfig(depth=2, beam=2, proposals=2))
    rest = trace.threads[trace.root.spawns[2][0]]
    assert rest.message == "4?aa.aaaa."
    assert rest.calls[0].prompt_ids == CODEC.encode("4?aa.aaaa.")


def test_rollouts_value_a_state_by_what_they_claim_not_by_what_is_right() -> None:
    """The right answer is reached from the state that claims less often, which is dropped."""
    replies = {
        "4?": ["b.", "c."],
        "4?b.": ["<join></join>", "<join>8</join>"],
        "4?c.": ["<join>6</join>", "<join>7</join>"],
    }
    trace = solve(replies, replace(ROLLOUTS, depth=1))
    assert (trace.answer, trace.grade) == ("6", Grade(False, "wrong"))
    # Nothing is written after the rollout that gave the answer.
    assert [len(spawn) for spawn in trace.root.spawns] == [2, 4]
    assert trace.total_tokens == 2 + 2 + 2 + 3 + 3 + 3
    assert trace.sequential_tokens == 2 + 3


def test_where_no_rollout_claims_the_best_state_is_still_written_to_its_end() -> None:
    replies = {
        "4?": ["b."],
        "4?b.": ["<join></join>", "more<join>", "c.", "<join>8</join>"],
    }
    # The third reply to the state is the thought of the second level.
    replies["4?b.c."] = ["<join></join>", "<join></join>", "<join>8</join>"]
    replies["4?b."] = replies["4?b."][:3]
    trace = solve(replies, replace(ROLLOUTS, proposals=1))
    assert trace.answer == "8"
    assert [len(spawn) for spawn in trace.root.spawns] == [1, 2, 1, 2, 1]


def test_a_state_that_has_answered_is_kept_and_ends_the_search_where_it_is_best() -> None:
    replies = {"4?": ["zz.", " " * 20 + "<join>8</join>"]}
    trace = solve(replies, TreeConfig(depth=3, beam=2, proposals=2))
    assert trace.answer == "8"
    assert len(trace.root.spawns) == 1

    rolled = {"4?": ["b.", "<join>8</join>"], "4?b.": ["<join>6</join>", "<join></join>"]}
    trace = solve(rolled, ROLLOUTS)
    assert (trace.answer, len(trace.root.spawns)) == ("8", 2)


def test_an_answer_that_is_not_the_best_waits_in_the_beam() -> None:
    replies = {
        "4?": ["a.", "zzzzzz<join>8</join>"],
        "4?a.": ["ÿÿÿÿÿÿÿÿ.", "ÿÿÿÿÿÿÿÿÿÿ."],
    }
    trace = solve(replies, TreeConfig(depth=2, beam=2, proposals=2))
    assert (trace.answer, len(trace.root.spawns)) == ("8", 2)


def test_a_line_that_gives_up_or_breaks_off_is_dropped() -> None:
    spawn = f"<spawn>{threads(['x'])}</spawn>"
    broken = ["<join></join>", "</spawn>", "y" * 200, spawn]
    replies = {"4?": [*broken, "zz."], "4?zz.": ["<join>8</join>"]}
    trace = solve(replies, TreeConfig(depth=1, beam=5, proposals=5))
    assert trace.answer == "8"
    ends = [trace.threads[i].end for i in trace.root.spawns[0]]
    assert ends == [End.JOINED, End.MALFORMED, End.EXHAUSTED, End.EXHAUSTED, End.JOINED]
    assert trace.total_tokens == 2 + 1 + 100 + 5 + 3 + 3

    trace = solve({"4?": broken}, TreeConfig(depth=1, beam=4, proposals=4))
    assert (trace.answer, trace.grade) == (None, Grade(False, "no answer"))


def test_equal_thoughts_are_one_state() -> None:
    replies = {"4?": ["a.", "a.", "b."], "4?a.": ["<join>8</join>"] * 2, "4?b.": ["<join>"] * 2}
    trace = solve(replies, replace(ROLLOUTS, depth=1, proposals=3))
    assert (trace.answer, [len(s) for s in trace.root.spawns]) == ("8", [3, 4])


def test_a_join_may_stretch_over_thoughts() -> None:
    """What it opened in one thought is closed in a later one, and read as one."""
    replies = {"4?": ["<join> 1."], "4?<join> 1.": [" 2."], "4?<join> 1. 2.": [" 3</join>"]}
    trace = solve(replies, TreeConfig(depth=2, beam=1, proposals=1))
    assert trace.answer == "1. 2. 3"
    assert all(t.end is End.JOINED for t in trace.threads)


def test_a_text_without_operations_ends_with_its_last_thought() -> None:
    replies = {"4?": ["8\n"], "4?8\n": [""]}
    trace = solve(replies, TreeConfig(depth=3, beam=1, proposals=1), steps=("\n",))
    assert (trace.answer, len(trace.root.spawns)) == ("8", 2)
    assert trace.total_tokens == 2 + 1


def test_a_full_context_is_data_and_a_prompt_without_room_is_not() -> None:
    def run(context: int) -> Trace:
        runtime = runtime_of({"4?": ["aa."], "4?aa.": ["b"]}, limits=Limits(context=context))
        tree = TreeConfig(depth=1, beam=1, proposals=1)
        return asyncio.run(TreeOfThoughts(runtime, Doubling(), (".",), tree).solve(4))

    trace = run(5)
    assert (trace.threads[-1].end, trace.threads[-1].calls) == (End.EXHAUSTED, ())
    assert (trace.root.end, trace.answer) == (End.EXHAUSTED, None)
    with pytest.raises(ContextError):
        run(2)


def test_a_failure_of_the_world_ends_the_search() -> None:
    replies = {"4?": ["a."], "4?a.": [Reply("x", error=EngineError("down"))]}
    trace = solve(replies, TreeConfig(depth=2, beam=1, proposals=1))
    assert (trace.error, trace.grade) == ("EngineError: down", None)
    assert len(trace.root.spawns) == 2


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="beam is 0"):
        TreeConfig(beam=0)


@pytest.mark.parametrize("value", Value)
def test_over_the_packaged_model(demo: tuple[Runtime, Countdown], value: Value) -> None:
    runtime, task = demo
    # This model names its children first; where it ends a name, a thought ends, too.
    steps, diary = ("</thread>", *step_ends(Text.COMPACT)), Diary()
    method = TreeOfThoughts(runtime, task, steps, TreeConfig(2, 2, 2, value, 1))
    trace = asyncio.run(method.solve(Problem((12, 5, 3), 21), diary))
    assert diary.agrees_with(trace)
    assert trace.error is None
    assert trace.grade is not None
    assert len(trace.root.spawns[0]) == 2
