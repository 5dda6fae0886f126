from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from apr.countdown.problem import Problem
from apr.countdown.task import Countdown
from apr.engine import EmbeddedEngine
from apr.errors import ConfigError, ContextError, EngineError
from apr.hogwild import HogwildEngine
from apr.interfaces import Join, SharedEngine
from apr.methods.best_of_n import BestOfN
from apr.methods.hogwild import Hogwild, Taken
from apr.methods.serial import Serial
from apr.runtime import Limits, Runtime
from apr.testing import ScriptedEngine
from apr.trace import End, Trace
from apr.types import Completion, FinishReason, Grade, Sampling
from tests.clock import finish
from tests.methods.doubling import Doubling
from tests.methods.scripted import CODEC, Diary, runtime_of


class Table(ScriptedEngine):
    """Workers with scripted texts, a token of each at a time."""

    def __init__(self, *texts: str, fails_after: int = 1 << 20, delay: float = 0.0) -> None:
        super().__init__({}, CODEC)
        self.texts = texts
        self.fails_after = fails_after
        self.delay = delay
        self.samplings: Sequence[Sampling] = ()
        self.asked_context: int | None = None
        self.num_steps = 0

    async def generate_together(
        self,
        prompt_ids: Sequence[int],
        openings: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        context: int | None = None,
        on_tokens: Callable[[int, Sequence[int]], None] | None = None,
        on_end: Callable[[int, Completion], bool] | None = None,
    ) -> list[Completion | None]:
        assert on_tokens is not None
        assert on_end is not None
        assert CODEC.decode(prompt_ids) == "4?"
        assert list(openings) == [()] * len(self.texts)
        self.samplings, self.asked_context = samplings, context
        given = [[*CODEC.encode(text), CODEC.eos_id] for text in self.texts]
        ids: list[list[int]] = [[] for _ in given]
        done: list[Completion | None] = [None] * len(given)
        while None in done:
            await asyncio.sleep(self.delay)
            self.num_steps += 1
            live = [w for w, completion in enumerate(done) if completion is None]
            for w in live:
                ids[w].append(given[w][len(ids[w])])
                on_tokens(w, ids[w][-1:])
            if self.num_steps > self.fails_after:
                raise EngineError("down")
            goes_on = True
            for w in live:
                reason = self.reason(ids[w], samplings[w], context, len(prompt_ids))
                if reason is not None:
                    logprobs = tuple(map(self.logprob, ids[w]))
                    done[w] = completion = Completion(tuple(ids[w]), logprobs, reason)
                    goes_on &= on_end(w, completion)
            if not goes_on:
                break
        return done

    def reason(
        self, ids: list[int], sampling: Sampling, context: int | None, num_prompt: int
    ) -> FinishReason | None:
        if ids[-1] in sampling.stop_ids:
            return FinishReason.STOP
        full = context is not None and num_prompt + (len(ids) + 1) * len(self.texts) > context
        return FinishReason.LENGTH if full or len(ids) == sampling.max_tokens else None


def method_of(table: Table, taken: Taken = Taken.FIRST, **options: Any) -> Hogwild[int]:
    runtime = replace(runtime_of({}, seed=3), engine=table, **options)
    return Hogwild(runtime, Doubling(), len(table.texts), taken)


def solve(table: Table, taken: Taken = Taken.FIRST, diary: Diary | None = None, **o: Any) -> Trace:
    diary = diary or Diary()
    trace = finish(method_of(table, taken, **o).solve(4, diary))
    assert diary.agrees_with(trace)
    return trace


def num(*texts: str) -> int:
    return sum(len(CODEC.encode(text)) for text in texts)


SLOW, EIGHT, SEVEN, NOTHING = "so it is <join>8</join>", "<join>8</join>", "<join>7</join>", "a"


def test_workers_are_the_children_of_a_root_that_samples_nothing() -> None:
    trace = solve(Table(SLOW, "a" + SEVEN, SEVEN))
    assert (trace.method, trace.problem, trace.root.calls) == ("hogwild", {"number": 4}, ())
    assert trace.root.spawns == ((1, 2, 3),)
    assert [t.parent for t in trace.threads] == [None, 0, 0, 0]
    assert [t.message for t in trace.threads] == ["4?"] * 4
    assert [t.join for t in trace.threads] == ["7", "8", "7", "7"]
    assert [len(t.calls) for t in trace.threads] == [0, 1, 1, 1]
    assert CODEC.decode(trace.threads[1].calls[0].prompt_ids) == "4?"
    assert CODEC.decode(trace.threads[1].calls[0].ids) == SLOW
    assert trace.peak_width == 3


def test_all_tokens_count_in_total_and_those_of_the_longest_in_sequence() -> None:
    trace = solve(Table(SLOW, "a" + SEVEN, SEVEN))
    assert trace.total_tokens == num(SLOW, "a" + SEVEN, SEVEN)
    assert trace.sequential_tokens == num(SLOW)
    # What the slowest saw at its last token: all that the others wrote, and the prompt.
    assert trace.longest_context == 2 + trace.total_tokens
    assert [t.calls[0].beside for t in trace.threads[1:]] == [
        num("a" + SEVEN, SEVEN),
        num("aa") + 1 + num(SEVEN),
        2 * (num(SEVEN) - 1),
    ]


def test_the_first_to_join_with_a_claim_answers() -> None:
    trace = solve(Table(SLOW, "<join></join>", "ab" + SEVEN, "ab" + EIGHT))
    assert (trace.answer, trace.grade) == ("7", Grade(False, "wrong"))
    # In one step the one with the lower number.
    assert solve(Table("ab" + EIGHT, "ab" + SEVEN)).answer == "8"
    assert solve(Table("<join></join>", "<join>")).answer is None


def test_the_first_claim_stops_all_where_the_first_success_ends_a_run() -> None:
    table = Table(SLOW, "<join></join>", "ab" + EIGHT, "b" + "c" * 50)
    trace = solve(table, first_success=True)
    steps = num("ab" + EIGHT)
    assert table.num_steps == steps
    assert (trace.answer, trace.grade) == ("8", Grade(True, "correct"))
    ends = [t.end for t in trace.threads]
    assert ends == [End.JOINED, End.CANCELLED, End.JOINED, End.JOINED, End.CANCELLED]
    assert trace.total_tokens == 3 * steps + num("<join></join>")
    assert trace.sequential_tokens == steps
    cut = trace.threads[1].calls[0]
    assert (cut.ids, cut.logprobs, cut.finish_reason) == (CODEC.encode(SLOW)[:steps], (), None)


def test_workers_can_vote() -> None:
    texts = (SEVEN, "ab" + EIGHT, SLOW, "<join></join>", "<join></join>")
    assert solve(Table(*texts)).answer == "7"
    assert solve(Table(*texts), Taken.VOTE).answer == "8"
    assert solve(Table("<join></join>"), Taken.VOTE).answer is None
    with pytest.raises(ConfigError, match="nobody votes"):
        method_of(Table(*texts), Taken.VOTE, first_success=True)


def test_a_spawn_ends_its_worker_and_is_noted() -> None:
    spawn = "<spawn><thread>a</thread><thread>b</thread></spawn>"
    trace = solve(Table(spawn, SLOW, "<join>", "<join><thread></join>"))
    refused = trace.threads[1]
    assert refused.end is End.MALFORMED
    assert refused.notes == ("Refused 2 of 2 children: a worker may not spawn.",)
    assert refused.spawns == ()
    assert [t.end for t in trace.threads[2:]] == [End.JOINED, End.MALFORMED, End.MALFORMED]
    assert "<thread>" in trace.threads[4].notes[0]
    assert trace.answer == "8"


def test_a_full_context_is_noted_as_everybodys_and_a_spent_allowance_as_ones_own() -> None:
    full = "The context of 20 tokens, which all workers share, is full."
    trace = solve(Table("a" * 50, "b" * 50), limits=Limits(context=20))
    assert {(t.end, t.notes) for t in trace.threads[1:]} == {(End.EXHAUSTED, (full,))}
    assert trace.total_tokens == 18
    assert trace.longest_context == 20 - 1, "the last tokens do not see each other"
    assert solve(Table("a" * 50), limits=Limits(context=20)).threads[1].notes == (full,)

    trace = solve(Table("a" * 50, SLOW), limits=Limits(total_tokens=12))
    assert trace.threads[1].notes == ("The worker has sampled its 12 tokens.",)
    trace = solve(Table("a" * 50, EIGHT), sampling=Sampling(max_tokens=7))
    assert trace.threads[1].notes == ("The call has sampled its 7 tokens.",)
    assert trace.answer == "8"


def test_out_of_time_all_that_was_written_is_kept() -> None:
    table = Table(EIGHT, "a" * 5000, delay=0.002)
    trace = solve(table, limits=Limits(seconds=0.1))
    assert trace.threads[2].end is End.EXHAUSTED
    assert trace.threads[2].notes == ("The run's 0.1 seconds are over.",)
    assert 3 < trace.total_tokens < 5000
    assert (trace.error, trace.answer) == (None, "8")


def test_where_the_world_fails_there_is_no_answer_and_no_grade() -> None:
    trace = solve(Table(EIGHT, "ab" + SEVEN, fails_after=3))
    assert trace.error == "EngineError: down"
    assert (trace.answer, trace.grade) == (None, None)
    assert [t.end for t in trace.threads] == [End.FAILED, End.JOINED, End.FAILED]
    assert CODEC.decode(trace.threads[2].calls[0].ids) == "ab<join>7"


def test_cancelling_ends_every_worker() -> None:
    diary = Diary()

    async def cut_short() -> None:
        async with asyncio.timeout(0.05):
            await method_of(Table("a" * 5000, EIGHT, delay=0.002)).solve(4, diary)

    with pytest.raises(TimeoutError):
        finish(cut_short())
    assert diary.ends == {
        (): (End.CANCELLED, None),
        (0,): (End.CANCELLED, None),
        (1,): (End.JOINED, Join("8", True)),
    }


def test_workers_differ_by_their_seeds_and_share_the_context() -> None:
    table = Table(EIGHT, SEVEN, SLOW)
    solve(table, limits=Limits(context=60))
    assert len({s.seed for s in table.samplings}) == 3
    assert {s.max_tokens for s in table.samplings} == {60 - 2}
    assert table.asked_context == 60
    assert all(CODEC.token_id("</join>") in s.stop_ids for s in table.samplings)


def test_an_engine_without_a_shared_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs workers that share one cache"):
        Hogwild(runtime_of({}), Doubling(), 2)
    assert isinstance(Table(), SharedEngine)
    with pytest.raises(ConfigError, match="n is 0"):
        method_of(Table())


def test_what_saw_others_is_not_trained_on() -> None:
    """Its ids alone are not what it was sampled from."""
    assert solve(Table(EIGHT, SLOW)).training_sequences() == []
    (alone,) = solve(Table(SLOW)).training_sequences()
    assert CODEC.decode(alone.ids_T) == "4?" + SLOW


def sharing(demo: tuple[Runtime, Countdown], **options: Any) -> tuple[Runtime, Countdown]:
    runtime, task = demo
    assert isinstance(runtime.engine, EmbeddedEngine)
    return replace(runtime, engine=HogwildEngine(runtime.engine), **options), task


PROBLEM = Problem((12, 5, 3), 21)


def test_one_worker_is_a_sample_like_any_other(demo: tuple[Runtime, Countdown]) -> None:
    runtime, task = sharing(demo)
    alone = asyncio.run(Hogwild(runtime, task, 1).solve(PROBLEM))
    sample = asyncio.run(BestOfN(runtime, task, Serial, 1).solve(PROBLEM))
    assert alone.threads[1].calls[0].ids == sample.threads[1].calls[0].ids


def test_over_the_packaged_model(demo: tuple[Runtime, Countdown]) -> None:
    sampling = replace(demo[0].sampling, temperature=2.0)  # At 1 the model is nearly sure.
    runtime, task = sharing(demo, limits=Limits(context=200), sampling=sampling)
    method, diary = Hogwild(runtime, task, 3), Diary()
    trace = asyncio.run(method.solve(PROBLEM, diary))
    assert diary.agrees_with(trace)
    assert trace.error is None
    assert trace.longest_context <= 200
    workers = [t.calls[0] for t in trace.threads[1:]]
    assert len({call.ids for call in workers}) == 3
    assert all(len(call.ids) == len(call.logprobs) for call in workers)
    assert trace.total_tokens == sum(len(call.ids) for call in workers)
    assert trace.sequential_tokens == max(len(call.ids) for call in workers)
    assert Trace.from_json(trace.to_json()) == trace

    async def crowd() -> list[Trace]:
        return await asyncio.gather(*(method.solve(PROBLEM) for _ in range(5)))

    for again in asyncio.run(crowd()):
        assert [t.calls[0].ids for t in again.threads[1:]] == [call.ids for call in workers]
    other = replace(runtime, sampling=replace(runtime.sampling, seed=2))
    reseeded = asyncio.run(Hogwild(other, task, 3).solve(PROBLEM))
    assert [t.calls[0].ids for t in reseeded.threads[1:]] != [call.ids for call in workers]


def test_a_prompt_that_leaves_no_room_is_raised_itself(demo: tuple[Runtime, Countdown]) -> None:
    runtime, task = sharing(demo, limits=Limits(context=10))
    diary = Diary()
    with pytest.raises(ContextError, match="leave no room for one of each of 5 workers"):
        asyncio.run(Hogwild(runtime, task, 5).solve(PROBLEM, diary))
    assert diary.ends.keys() == diary.messages.keys()
