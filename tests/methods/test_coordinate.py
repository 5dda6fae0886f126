from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from apr.dialects.tags import threads
from apr.errors import ConfigError, ContextError, EngineError
from apr.methods.apr import APR
from apr.methods.best_of_n import BestOfN
from apr.methods.serial import Serial
from apr.runtime import Limits
from apr.testing import Reply
from apr.trace import End
from tests.clock import finish
from tests.methods.doubling import Doubling
from tests.methods.scripted import CODEC, Diary, engine_of, runtime_of

SPAWN = f"<spawn>{threads(['a', 'b'])}</spawn>"
JOINED = f"<joined>{threads(['8', ''])}</joined>"
NESTED = {
    "4?": ["<join>7</join>", SPAWN, "<join>6</join>"],
    threads(["a"]): "so <join>8</join>",
    threads(["b"]): "<join></join>",
    f"4?{SPAWN}{JOINED}": "<join>8</join>",
}


def num(*texts: str) -> int:
    return sum(len(CODEC.encode(text)) for text in texts)


def test_samples_are_the_children_of_a_root_that_samples_nothing() -> None:
    diary = Diary()
    method = BestOfN(runtime_of(NESTED), Doubling(), APR, 3)
    trace = asyncio.run(method.solve(4, diary))
    assert (trace.method, trace.problem, trace.root.calls) == ("best_of_n", {"number": 4}, ())
    assert [t.parent for t in trace.threads] == [None, 0, 0, 2, 2, 0]
    assert [t.spawns for t in trace.threads] == [((1, 2, 5),), (), ((3, 4),), (), (), ()]
    assert [t.join for t in trace.threads] == ["7", "7", "8", "8", "", "6"]
    assert [t.index for t in trace.threads] == list(range(6))
    assert diary.agrees_with(trace)


def test_all_tokens_count_in_total_and_those_of_the_longest_sample_in_sequence() -> None:
    trace = asyncio.run(BestOfN(runtime_of(NESTED), Doubling(), APR, 3).solve(4))
    joins = ("<join>7</join>", "<join>6</join>")
    a, b, end = "so <join>8</join>", "<join></join>", "<join>8</join>"
    assert trace.total_tokens == num(*joins, SPAWN, a, b, end)
    assert trace.sequential_tokens == num(SPAWN, a, end)
    # The children of one sample beside the two other samples.
    assert trace.peak_width == 4


def test_samples_differ_by_their_seeds_and_by_nothing_else() -> None:
    def seeds(seed: int | None) -> list[int | None]:
        runtime = runtime_of({"4?": ["<join>8</join>"] * 4}, seed)
        asyncio.run(BestOfN(runtime, Doubling(), Serial, 4).solve(4))
        return engine_of(runtime).seeds

    assert len({*seeds(1), *seeds(2)}) == 8
    assert seeds(1) == seeds(1)
    assert seeds(None) == [None] * 4


def test_samples_run_at_the_same_time() -> None:
    runtime = runtime_of({"4?": [Reply("<join>8</join>", delay=0.001)] * 5})
    most = 0

    class Count(Diary):
        def on_tokens(self, path: tuple[int, ...], ids: Sequence[int]) -> None:
            nonlocal most
            most = max(most, engine_of(runtime).num_active)

    asyncio.run(BestOfN(runtime, Doubling(), Serial, 5).solve(4, Count()))
    assert most == 5


def test_a_sample_that_the_world_failed_leaves_no_answer_and_no_grade() -> None:
    """Not a wrong answer, though one sample had claimed the right one."""
    slow, diary = Reply("<join>8</join>", delay=0.5), Diary()
    down = Reply("<join>", delay=0.01, error=EngineError("down"))
    runtime = runtime_of({"4?": ["<join>8</join>", down, slow]})
    trace = finish(BestOfN(runtime, Doubling(), Serial, 3).solve(4, diary))
    assert trace.error == "EngineError: down"
    assert (trace.answer, trace.grade) == (None, None)
    assert [t.end for t in trace.threads] == [End.FAILED, End.JOINED, End.FAILED, End.FAILED]
    assert (engine_of(runtime).num_active, engine_of(runtime).num_cancelled) == (0, 1)
    assert diary.ends.keys() == diary.messages.keys()


def test_a_prompt_without_room_is_raised_itself() -> None:
    runtime = runtime_of({}, limits=Limits(context=2))
    with pytest.raises(ContextError):
        asyncio.run(BestOfN(runtime, Doubling(), Serial, 3).solve(4))


def test_a_defect_is_raised_itself_even_where_the_world_failed_too() -> None:
    runtime = runtime_of({"4?": [Reply("", error=EngineError("down"))]})
    with pytest.raises(LookupError):
        asyncio.run(BestOfN(runtime, Doubling(), Serial, 2).solve(4))


def test_cancelling_cancels_every_sample() -> None:
    diary, runtime = Diary(), runtime_of({"4?": [Reply("<join>8</join>", delay=1.0)] * 3})

    async def cut_short() -> None:
        async with asyncio.timeout(0.05):
            await BestOfN(runtime, Doubling(), Serial, 3).solve(4, diary)

    with pytest.raises(TimeoutError):
        finish(cut_short())
    assert (engine_of(runtime).num_active, engine_of(runtime).num_cancelled) == (0, 3)
    assert {end for end, _ in diary.ends.values()} == {End.CANCELLED}
    assert len(diary.ends) == 4


def test_methods_made_of_samples_can_be_sampled() -> None:
    def inner(runtime, task):  # type: ignore[no-untyped-def]
        return BestOfN(runtime, task, Serial, 2)

    diary, runtime = Diary(), runtime_of({"4?": [f"<join>{n}</join>" for n in range(4)]}, seed=1)
    trace = asyncio.run(BestOfN(runtime, Doubling(), inner, 2).solve(4, diary))
    assert [t.parent for t in trace.threads] == [None, 0, 1, 1, 0, 4, 4]
    assert len(set(engine_of(runtime).seeds)) == 4
    assert diary.agrees_with(trace)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="n is 0"):
        BestOfN(runtime_of({}), Doubling(), Serial, 0)
