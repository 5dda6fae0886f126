from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.dialects.tags import Tags, threads
from apr.errors import ConfigError, ContextError, EngineError, EngineTimeout
from apr.interfaces import Join, Malformed, Rewrite
from apr.runtime import ChildContext, Limits, Observer, Path, Runtime
from apr.testing import ByteCodec, Reply, Script, ScriptedEngine
from apr.trace import End, Trace
from apr.types import FinishReason, Ids, Sampling
from tests.clock import finish

CODEC = ByteCodec(bos="<|begin|>")
SAMPLING = Sampling(max_tokens=1000)


def make(script: Script, **options: Any) -> tuple[Runtime, ScriptedEngine]:
    engine = ScriptedEngine(script, CODEC, context=options.pop("context", 4096))
    options = {"dialect": Tags(), "sampling": SAMPLING, **options}
    return Runtime(engine, CODEC, **options), engine


def run(script: Script, observer: Observer | None = None, **options: Any) -> Trace:
    runtime, engine = make(script, **options)
    trace = finish(runtime.run("go", observer))
    assert engine.num_active == 0
    return trace


def ids(text: str, first: bool = False) -> Ids:
    return ((CODEC.bos_id,) if first else ()) + CODEC.encode(text)


def spawn(*messages: str) -> str:
    return f"<spawn>{threads(messages)}</spawn>"


def joined(*messages: str) -> str:
    return f"<joined>{threads(messages)}</joined>"


def child(message: str) -> str:
    return threads([message])


def joins(trace: Trace) -> list[str]:
    return [t.join for t in trace.threads]


def ends(trace: Trace) -> list[End]:
    return [t.end for t in trace.threads]


# --- the tree -------------------------------------------------------------------------------------


def test_threads_nest_and_every_parent_goes_on_from_what_its_children_joined_with() -> None:
    one, two, three = spawn("1", "2"), spawn("1.1"), spawn("1.1.1", "1.1.2")
    script = {
        "go": "so " + one,
        child("1"): two,
        child("2"): "<join>b</join>",
        child("1.1"): three,
        child("1.1.1"): "<join>x</join>",
        child("1.1.2"): "<join>y</join>",
        child("1.1") + three + joined("x", "y"): "<join>xy</join>",
        child("1") + two + joined("xy"): "<join>a</join>",
        "goso " + one + joined("a", "b"): "<join>ab</join>",
    }
    trace = run(script)
    assert [t.message for t in trace.threads] == ["go", "1", "1.1", "1.1.1", "1.1.2", "2"]
    assert joins(trace) == ["ab", "a", "xy", "x", "y", "b"]
    assert [t.parent for t in trace.threads] == [None, 0, 1, 2, 2, 0]
    assert [t.spawns for t in trace.threads[:3]] == [((1, 5),), ((2,),), ((3, 4),)]
    assert set(ends(trace)) == {End.JOINED}
    assert trace.depth == 3
    first, second = trace.root.calls
    assert first.prompt_ids == ids("go", first=True)
    assert second.prompt_ids == first.prompt_ids + first.ids + ids(joined("a", "b"))
    assert trace.threads[1].calls[0].prompt_ids == ids(child("1"), first=True)
    assert second.logprobs == tuple(map(ScriptedEngine.logprob, second.ids))


def test_threads_nest_hundreds_of_levels_deep() -> None:
    def reply(prompt: str) -> str:
        if "<joined>" in prompt or child("300") in prompt:
            return "<join>done</join>"
        above = re.search(r"<thread>(\d+)", prompt)
        return spawn(str(1 + int(above[1]) if above else 1))

    trace = run(reply, limits=Limits(depth=400))
    assert trace.depth == 300
    assert set(ends(trace)) == {End.JOINED}


def test_a_forked_child_sees_all_that_its_parent_saw_and_wrote() -> None:
    two = spawn("1.1")
    script = {
        "go": "so " + spawn("1"),
        "goso " + spawn("1") + child("1"): two,
        "goso " + spawn("1") + child("1") + two + child("1.1"): "<join>x</join>",
        "goso " + spawn("1") + child("1") + two + joined("x"): "<join>y</join>",
        "goso " + spawn("1") + joined("y"): "<join>z</join>",
    }
    trace = run(script, child_context=ChildContext.FORK)
    assert joins(trace) == ["z", "y", "x"]
    root, one, deep = (t.calls[0] for t in trace.threads)
    assert one.prompt_ids == root.prompt_ids + root.ids + ids(child("1"))
    assert deep.prompt_ids == one.prompt_ids + one.ids + ids(child("1.1"))


class _Paper(Tags):
    """The paper's way to resume: results take the place of the spawn."""

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Rewrite:
        told = [j.message if isinstance(j, Join) else f"({j.reason})" for j in joins]
        return Rewrite(prompt + sampled.partition("<spawn>")[0] + "|".join(told))


def test_a_rewritten_parent_goes_on_from_the_new_prompt_alone() -> None:
    script = {
        "go": "so " + spawn("1", "2"),
        child("1"): "<join>a</join>",
        child("2"): "<spawn>nothing</spawn>",
        "goso a|(A spawn holds no <thread>.)": "the end",
    }
    trace = run(script, dialect=_Paper())
    assert joins(trace) == ["the end", "a", ""]
    assert trace.root.calls[1].prompt_ids == ids("goso a|(A spawn holds no <thread>.)", first=True)
    assert len([s for s in trace.training_sequences() if s.thread == 0]) == 2


def test_children_with_the_same_prompt_are_two_children() -> None:
    replies = [spawn("same", "same"), "<join>a</join>", "<join>b</join>", "<join>c</join>"]
    runtime, engine = make(replies)
    trace = finish(runtime.run("go"))
    assert joins(trace) == ["c", "a", "b"]
    assert engine.requests[-1].prompt == "go" + spawn("same", "same") + joined("a", "b")


def test_children_run_at_the_same_time_and_the_parent_waits_for_the_last() -> None:
    script = {
        "go": spawn("slow", "quick"),
        child("slow"): Reply("<join>a</join>", delay=2.0),
        child("quick"): Reply("<join>b</join>", delay=1.0),
        "go" + spawn("slow", "quick") + joined("a", "b"): "<join>c</join>",
    }
    root, slow, quick = run(script).threads
    assert [(c.start, c.end) for c in slow.calls + quick.calls] == [(0.0, 6.0), (0.0, 3.0)]
    assert root.calls[1].start == 6.0


def test_one_runtime_runs_many_problems_at_the_same_time() -> None:
    script = {str(i): Reply(f"<join>{i}</join>", delay=i) for i in range(5)}
    runtime, _ = make(script)

    async def all_of_them() -> list[Trace]:
        return await asyncio.gather(*(runtime.run(prompt) for prompt in script))

    assert [t.root.join for t in finish(all_of_them())] == list(script)


# --- what the model does wrong is data ------------------------------------------------------------


def test_malformed_text_ends_a_thread_and_its_parent_goes_on() -> None:
    script = {
        "go": spawn("1", "2"),
        child("1"): "<spawn><thread>x</thread></join>",
        child("2"): "<join>b</join>",
        "go" + spawn("1", "2") + joined("", "b"): "<join>b</join>",
    }
    trace = run(script)
    assert ends(trace) == [End.JOINED, End.MALFORMED, End.JOINED]
    assert trace.threads[1].notes == ("A <spawn> was closed by </join>.",)
    assert trace.error is None


@pytest.mark.parametrize(
    ("limits", "admitted", "note"),
    [
        (Limits(depth=0), 0, "Refused 3 of 3 children: threads may be 0 levels deep."),
        (Limits(children=2), 2, "Refused 1 of 3 children: a spawn may have 2."),
        (
            Limits(threads=3),
            2,
            "Refused 1 of 3 children: its share of the trace's 3 threads ran out.",
        ),
    ],
)
def test_children_beyond_a_limit_are_refused(limits: Limits, admitted: int, note: str) -> None:
    told = [m if i < admitted else "" for i, m in enumerate("abc")]
    script = {
        "go": spawn("a", "b", "c"),
        **{child(m): f"<join>{m}</join>" for m in "abc"},
        "go" + spawn("a", "b", "c") + joined(*told): "<join>done</join>",
    }
    trace = run(script, limits=limits)
    assert joins(trace) == ["done", *told[:admitted]]
    assert trace.root.notes == (note,)
    assert trace.root.spawns == (tuple(range(1, admitted + 1)),)


def test_the_limit_of_depth_binds_where_it_is_reached() -> None:
    def reply(prompt: str) -> str:
        return "<join>up</join>" if "<joined>" in prompt else spawn("down")

    trace = run(reply, limits=Limits(depth=2))
    assert trace.depth == 2
    assert [len(t.notes) for t in trace.threads] == [0, 0, 1]
    assert set(joins(trace)) == {"up"}


def test_threads_are_shared_out_and_what_is_left_over_comes_back() -> None:
    """Of five threads below the root two are children with one and a half to spawn: one each."""

    def reply(prompt: str) -> str:
        if prompt == child("a") or prompt.count("<joined>") == 1:
            return spawn("x", "y") if prompt != "go" else spawn("a", "b")
        return "<join>ok</join>" if prompt != "go" else spawn("a", "b")

    trace = run(reply, limits=Limits(threads=6))
    by_parent = [[trace.threads[c].message for c in g] for t in trace.threads for g in t.spawns]
    assert by_parent == [["a", "b"], ["x", "y"], ["x"], []]
    assert len(trace.threads) == 6


def test_a_thread_that_spawns_in_circles_is_ended() -> None:
    trace = run(lambda prompt: spawn("x") if "go" in prompt else "ok", limits=Limits(calls=3))
    assert ends(trace) == [End.EXHAUSTED] + [End.JOINED] * 3
    assert trace.root.notes == ("The thread has made its 3 calls.",)
    assert len(trace.root.calls) == 3


def test_a_call_that_runs_out_of_tokens_ends_its_thread() -> None:
    trace = run({"go": "too long to end"}, sampling=Sampling(max_tokens=5))
    assert ends(trace) == [End.EXHAUSTED]
    assert trace.root.notes == ("The call has sampled its 5 tokens.",)
    assert trace.root.calls[0].finish_reason is FinishReason.LENGTH
    assert trace.root.join == ""


def test_tokens_of_a_trace_are_shared_out_and_what_is_left_over_comes_back() -> None:
    script = {
        "go": spawn("a", "b"),  # 8 tokens; of the 52 left each of three gets 17, and one is over.
        child("a"): "x" * 100,
        child("b"): "<join>b</join>",
        "go" + spawn("a", "b") + joined("", "b"): "y" * 100,
    }
    trace = run(script, limits=Limits(total_tokens=60))
    assert ends(trace) == [End.EXHAUSTED, End.EXHAUSTED, End.JOINED]
    assert [len(t.calls[-1].ids) for t in trace.threads] == [60 - 8 - 17 - 3, 17, 3]
    note = "Its share of the trace's 60 tokens ran out."
    assert trace.root.notes == trace.threads[1].notes == (note,)
    assert trace.total_tokens == 60


def test_the_clock_cuts_calls_short_and_keeps_what_was_seen() -> None:
    script = {
        "go": spawn("slow", "quick"),
        child("slow"): Reply("abcdef", delay=1.0),
        child("quick"): Reply("<join>b</join>", delay=1.0),
    }
    runtime, engine = make(script, limits=Limits(seconds=3.5))
    trace = finish(runtime.run("go"))
    assert ends(trace) == [End.EXHAUSTED, End.EXHAUSTED, End.JOINED]
    note = "The run's 3.5 seconds are over."
    assert trace.root.notes == trace.threads[1].notes == (note,)
    cut = trace.threads[1].calls[0]
    assert (cut.ids, cut.logprobs, cut.finish_reason) == (ids("abc"), (), None)
    assert (cut.end, trace.wall_clock, trace.error) == (3.5, 3.5, None)
    assert (engine.num_cancelled, engine.num_active) == (1, 0)


def test_a_context_that_is_full_ends_the_thread() -> None:
    # The root's prompt and spawn are 3 + 8 tokens, and 6 more for what its children joined with.
    script = {"go": spawn("a", "b"), child("a"): "it has no end", child("b"): "it has no end"}
    by_engine = run(script, context=16)
    assert ends(by_engine) == [End.EXHAUSTED] * 3
    assert {t.notes for t in by_engine.threads} == {("The context of 16 tokens is full.",)}
    assert [len(t.calls) for t in by_engine.threads] == [1, 1, 1]
    assert by_engine.longest_context == 16
    assert run(script, limits=Limits(context=16)) == by_engine


class _LongPrompt(Tags):
    def child_prompt(self, message: str) -> str:
        return message * 10


def test_a_child_whose_prompt_fills_the_context_makes_no_call() -> None:
    script = {"go": spawn("abc"), "go" + spawn("abc") + joined(""): "ok"}
    trace = run(script, context=20, dialect=_LongPrompt())
    assert (joins(trace), ends(trace)) == (["ok", ""], [End.JOINED, End.EXHAUSTED])
    assert trace.threads[1].calls == ()
    assert trace.threads[1].notes == ("The context of 20 tokens is full.",)


def test_a_problem_that_leaves_no_room_is_an_error() -> None:
    with pytest.raises(ContextError, match="the prompt has 3 tokens"):
        run({"go": "ok"}, limits=Limits(context=3))


@pytest.mark.parametrize(
    "bad", [{"depth": -1}, {"children": 0}, {"threads": 0}, {"calls": 0}, {"total_tokens": 0},
            {"seconds": -1.0}, {"seconds": nan}, {"context": 0}],
)  # fmt: skip
def test_a_limit_that_allows_nothing_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"limit {next(iter(bad))} is"):
        Limits(**bad)


# --- threads that stand half written --------------------------------------------------------------


def test_what_is_written_already_is_read_as_the_threads_own() -> None:
    opened, closed = "a <spawn><thread>1", "</thread></spawn>"
    script = {
        "go" + opened: closed,
        child("1"): "<join>x</join>",
        "go" + opened + closed + joined("x"): "<join>y</join>",
    }
    runtime, _ = make(script)
    trace = finish(runtime.go_on(ids("go", first=True), ids(opened), "half"))
    assert (trace.root.message, trace.root.join, trace.num_children) == ("half", "y", 1)
    assert trace.root.calls[0].prompt_ids == ids("go" + opened, first=True)
    # It was sampled elsewhere, and counts there.
    assert trace.total_tokens == sum(len(ids(text)) for text in script.values())
    (root, _) = trace.training_sequences()
    assert root.mask_T[: len(ids("go" + opened, first=True)) + 1] == (
        *(0 for _ in ids("go" + opened, first=True)),
        1,
    )


def test_forked_children_see_what_was_written_already() -> None:
    opened, closed = "a <spawn><thread>1", "</thread></spawn>"
    script = {
        "go" + opened: closed,
        "go" + opened + closed + child("1"): "<join>x</join>",
        "go" + opened + closed + joined("x"): "<join>y</join>",
    }
    runtime, _ = make(script, child_context=ChildContext.FORK)
    trace = finish(runtime.go_on(ids("go", first=True), ids(opened), "half"))
    assert trace.root.join == "y"


def test_half_a_text_without_room_to_go_on_is_data() -> None:
    runtime, engine = make({}, context=4)
    trace = finish(runtime.go_on(ids("go"), ids("on"), "half"))
    assert (trace.root.end, trace.root.calls) == (End.EXHAUSTED, ())
    assert trace.root.notes == ("The context of 4 tokens is full.",)
    assert (trace.error, engine.requests) == (None, [])


# --- first success, cancellation, failure ---------------------------------------------------------

RACE = {
    "go": spawn("slow", "deep", "quick"),
    child("slow"): Reply("<join>a</join>", delay=5.0),
    child("deep"): spawn("slow"),
    child("deep") + spawn("slow") + joined("a"): "<join>b</join>",
    child("quick"): Reply("<join>c</join>", delay=1.0),
}


def test_the_first_success_cancels_its_siblings_and_all_below_them() -> None:
    script = {**RACE, "go" + spawn("slow", "deep", "quick") + joined("", "", "c"): "<join>c</join>"}
    runtime, engine = make(script, first_success=True)
    trace = finish(runtime.run("go"))
    assert ends(trace) == [
        End.JOINED, End.CANCELLED, End.CANCELLED, End.CANCELLED, End.JOINED
    ]  # fmt: skip
    assert (engine.num_cancelled, engine.num_active) == (2, 0)
    assert trace.wall_clock == 3.0
    assert trace.threads[4].success
    assert trace.error is None


def test_without_the_option_or_without_success_all_children_end_by_themselves() -> None:
    spawned = "go" + spawn("slow", "deep", "quick")
    patient = {**RACE, spawned + joined("a", "b", "c"): "<join>c</join>"}
    assert set(ends(run(patient))) == {End.JOINED}
    failing = {
        **RACE,
        child("quick"): Reply("<join></join>", delay=1.0),
        child("slow"): Reply("<join> </join>", delay=5.0),
        child("deep") + spawn("slow") + joined(" "): "<join></join>",
        spawned + joined(" ", "", ""): "<join></join>",
    }
    assert set(ends(run(failing, first_success=True))) == {End.JOINED}


def test_what_the_cancelled_had_left_is_there_for_those_who_go_on() -> None:
    """Of 1,500 tokens a root that spawned once more has nearly all left, whoever was cancelled."""
    wide = spawn(*["slow"] * 8)
    answer = "z" * 1_300 + "<join>c</join>"
    script = {
        "go": spawn("quick", "deep"),
        child("quick"): Reply("<join>c</join>", delay=1.0),
        child("deep"): wide,
        child("slow"): Reply("<join></join>", delay=5.0),
        "go" + spawn("quick", "deep") + joined("c", ""): answer,
    }
    limits = Limits(total_tokens=1_500)
    trace = run(script, sampling=Sampling(2_000), first_success=True, limits=limits)
    assert trace.root.end is End.JOINED
    assert {t.end for t in trace.threads[2:]} == {End.CANCELLED}
    assert trace.num_children == 10, "so the one that was cancelled had shared what it had"


def test_cancelling_a_run_cancels_its_engine_calls() -> None:
    runtime, engine = make(RACE)
    ended: list[tuple[Path, End]] = []

    class Hear(Observer):
        def on_end(self, path: Path, end: End, join: Join | None) -> None:
            ended.append((path, end))

    async def cancel_after_two_seconds() -> None:
        task = asyncio.create_task(runtime.run("go", Hear()))
        await asyncio.sleep(2.0)
        assert engine.num_active == 3
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    finish(cancel_after_two_seconds())
    assert (engine.num_active, engine.num_cancelled) == (0, 3)
    assert {end for _, end in ended} == {End.CANCELLED}
    assert len({path for path, _ in ended}) == len(ended) == 5


@pytest.mark.parametrize("error", [EngineError("it is down"), EngineTimeout("no answer")])
def test_a_failing_engine_cuts_the_trace_short(error: EngineError) -> None:
    script = {**RACE, child("quick"): Reply("ab", delay=1.0, error=error)}
    runtime, engine = make(script)
    trace = finish(runtime.run("go"))
    assert trace.error == f"{type(error).__name__}: {error}"
    assert ends(trace) == [End.FAILED] * 5
    assert (engine.num_active, engine.num_cancelled) == (0, 2)
    # What was sampled until then stays on record.
    assert trace.threads[4].calls[0].ids == ids("ab")
    assert trace.root.calls[0].finish_reason is FinishReason.STOP


def test_a_defect_is_raised_itself_even_beside_a_failing_engine() -> None:
    script = {
        "go": spawn("a", "b"),
        child("a"): Reply("x", error=EngineError("down")),
        child("b"): Reply("x", error=ZeroDivisionError("a defect")),
    }
    with pytest.raises(ZeroDivisionError, match="a defect"):
        run(script)


def test_an_engines_own_timeout_is_not_the_clock_of_the_run() -> None:
    with pytest.raises(TimeoutError, match="not ours"):
        run({"go": Reply("x", error=TimeoutError("not ours"))}, limits=Limits(seconds=9.0))


# --- sampling -------------------------------------------------------------------------------------


def test_each_call_has_a_seed_of_its_own_whatever_thread_ran_first() -> None:
    spawned = "go" + spawn("1", "2")
    replies = {
        "go": spawn("1", "2"),
        child("1"): spawn("1.1"),
        child("1.1"): "<join>x</join>",
        child("1") + spawn("1.1") + joined("x"): "<join>a</join>",
        child("2"): "<join>b</join>",
        spawned + joined("a", "b"): "<join>c</join>",
    }

    def seeds(seed: int | None, slow: str) -> dict[str, int | None]:
        script = {p: Reply(t, delay=1.0 if p == slow else 0.0) for p, t in replies.items()}
        runtime, engine = make(script, sampling=replace(SAMPLING, seed=seed))
        finish(runtime.run("go"))
        return {r.prompt: r.sampling.seed for r in engine.requests}

    assert seeds(7, slow=child("1")) == seeds(7, slow=child("2"))
    seven, eight = seeds(7, slow=""), seeds(8, slow="")
    assert len({*seven.values(), *eight.values()}) == 2 * len(replies)
    assert set(seeds(None, slow="").values()) == {None}
    # The same on every machine and in every process.
    assert (seven["go"], seven[child("1.1")]) == (1791835377, 748006084)


def test_problems_sampled_with_one_seed_are_independent() -> None:
    """Or the samples of all problems would be drawn alike, and their mean would be no estimate."""
    script = {"one": "<join>x</join>", "other": "<join>x</join>"}
    runtime, engine = make(script, sampling=replace(SAMPLING, seed=7))
    for prompt in script:
        finish(runtime.run(prompt))
    one, other = (r.sampling.seed for r in engine.requests)
    assert one != other


def test_runs_on_one_prompt_can_have_seeds_of_their_own() -> None:
    runtime, engine = make({"go": "<join>x</join>"}, sampling=replace(SAMPLING, seed=7))
    for number in (0, 1, 2, 0):
        finish(runtime.reseeded(number).run("go"))
    *seeds, again = [r.sampling.seed for r in engine.requests]
    assert len(set(seeds)) == 3
    assert again == seeds[0]
    assert make({})[0].reseeded(3).sampling.seed is None


def test_stops_are_ids_where_the_tokenizer_has_them_and_strings_elsewhere() -> None:
    codec = ByteCodec(specials=["</spawn>"], eos="<|end|>")
    engine = ScriptedEngine({"go": "a</join>"}, codec)
    asked = replace(SAMPLING, stop_ids=(3,), stop_strings=("!",), temperature=0.7, top_k=5)
    trace = finish(Runtime(engine, codec, Tags(), asked).run("go"))
    sampling = engine.requests[0].sampling
    assert sampling.stop_ids == (3, codec.eos_id, codec.token_id("</spawn>"))
    assert sampling.stop_strings == ("!", "</join>")
    assert (sampling.temperature, sampling.top_k) == (0.7, 5)
    assert ends(trace) == [End.MALFORMED]


def test_a_dialect_works_alike_with_and_without_special_tokens() -> None:
    script = {
        "go": spawn("a"),
        child("a"): "<join>b</join> and more",
        "go" + spawn("a") + joined("b"): "<join>c</join>",
    }
    for codec in (ByteCodec(), ByteCodec(specials=()), ByteCodec(specials=(), eos=None)):
        engine = ScriptedEngine(script, codec)
        trace = finish(Runtime(engine, codec, Tags(), SAMPLING).run("go"))
        assert joins(trace) == ["c", "b"]


# --- observers ------------------------------------------------------------------------------------


class _Diary(Observer):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.tokens: dict[Path, list[int]] = {}

    def on_thread(self, path: Path, message: str) -> None:
        self.events.append(("thread", path, message))

    def on_tokens(self, path: Path, ids: Sequence[int]) -> None:
        self.tokens.setdefault(path, []).extend(ids)

    def on_end(self, path: Path, end: End, join: Join | None) -> None:
        self.events.append((end, path, join))


class _SilentEngine(ScriptedEngine):
    """Cannot stream."""

    async def generate(self, prompt_ids: Any, sampling: Any, on_tokens: Any = None) -> Any:
        return await super().generate(prompt_ids, sampling)


@pytest.mark.parametrize("engine_class", [ScriptedEngine, _SilentEngine])
def test_an_observer_hears_of_every_thread_and_token(engine_class: type[ScriptedEngine]) -> None:
    script = {
        "go": spawn("slow", "quick", "third"),
        child("slow"): Reply("<join>a</join>", delay=2.0),
        child("quick"): Reply("<join>b</join>", delay=1.0),
        "go" + spawn("slow", "quick", "third") + joined("", "b", ""): "<join>c</join>",
    }
    runtime = Runtime(
        engine_class(script, CODEC), CODEC, Tags(), SAMPLING, Limits(children=2), first_success=True
    )
    trace = finish(runtime.run("go", diary := _Diary()))
    assert diary.events == [
        ("thread", (), "go"),
        ("thread", (0,), "slow"),
        ("thread", (1,), "quick"),
        (End.JOINED, (1,), Join("b", True)),
        (End.CANCELLED, (0,), None),
        (End.JOINED, (), Join("c", True)),
    ]
    heard = {p: tuple(sampled) for p, sampled in diary.tokens.items()}
    root, slow, quick = trace.threads
    assert heard[()] == root.calls[0].ids + root.calls[1].ids
    assert heard[(1,)] == quick.calls[0].ids
    assert heard.get((0,), ()) == slow.calls[0].ids


def test_an_observer_hears_of_the_threads_that_failed_with_the_engine() -> None:
    script = {**RACE, child("quick"): Reply("", error=EngineError("down"))}
    run(script, diary := _Diary())
    assert [e for e in diary.events if e[0] == End.FAILED] == [
        (End.FAILED, path, None) for path in [(), (0,), (1,), (2,)]
    ]


# --- any tree at all ------------------------------------------------------------------------------

LIMITS = st.builds(
    Limits,
    depth=st.integers(1, 4),
    children=st.integers(1, 4),
    threads=st.integers(2, 25),
    calls=st.integers(1, 4),
    total_tokens=st.none() | st.integers(20, 500),
    context=st.none() | st.integers(30, 200),
)


def _wild(seed: int, patience: float) -> Script:
    """A model that does anything; the same to the same prompt, sooner or later."""

    def reply(prompt: str) -> Reply:
        rng = random.Random(f"{seed}/{prompt}")
        messages = [rng.choice("abcdef") * rng.randrange(4) for _ in range(rng.randrange(1, 5))]
        ending = rng.choice(["<join>x</join>", "words", "", "<thread>", "a" * 40])
        spawns = prompt == "go" or rng.random() < 0.6
        return Reply(spawn(*messages) if spawns else ending, delay=patience * rng.random())

    return reply


@given(st.integers(0, 10_000), LIMITS, st.sampled_from(ChildContext), st.integers(20, 60))
def test_no_tree_breaks_a_limit_or_depends_on_which_thread_is_quick(
    seed: int, limits: Limits, child_context: ChildContext, max_tokens: int
) -> None:
    options = {
        "limits": limits,
        "child_context": child_context,
        "sampling": Sampling(max_tokens, seed=seed),
    }
    runtime, engine = make(_wild(seed, patience=0.0), **options)
    trace = finish(runtime.run("go"))

    assert trace.total_tokens <= (limits.total_tokens or trace.total_tokens)
    assert trace.depth <= limits.depth
    assert len(trace.threads) <= limits.threads
    for thread in trace.threads:
        assert len(thread.calls) <= limits.calls
        assert len(thread.spawns) <= len(thread.calls)
        assert all(len(children) <= limits.children for children in thread.spawns)
        assert thread.end is End.JOINED or thread.notes
    for request in engine.requests:
        assert 1 <= request.sampling.max_tokens <= max_tokens
        assert len(request.prompt_ids) + request.sampling.max_tokens <= runtime.context
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace

    slower = run(_wild(seed, patience=1.0), **options)
    assert _timeless(slower) == _timeless(trace)


def _timeless(trace: Trace) -> Trace:
    return replace(
        trace,
        threads=tuple(
            replace(t, calls=tuple(replace(c, start=0.0, end=0.0) for c in t.calls))
            for t in trace.threads
        ),
    )
