from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr.dialects.tags import Tags
from apr.errors import DataError, EngineError, StorageError
from apr.runtime import Runtime
from apr.testing import ByteCodec, Reply, ScriptedEngine
from apr.trace import (
    Call,
    End,
    Thread,
    Trace,
    TrainingSequence,
    coordinated,
    read_traces,
    write_traces,
)
from apr.types import FinishReason, Grade, Sampling
from tests.conftest import DiskLimit


def call(prompt: tuple[int, ...], ids: tuple[int, ...], start: float, end: float) -> Call:
    logprobs = tuple(-float(i) for i in ids)
    return Call(prompt, ids, logprobs, FinishReason.STOP, start, end)


def thread(index: int, parent: int | None, *calls: Call, **rest: object) -> Thread:
    plain = Thread(index, parent, f"message {index}", calls, (), End.JOINED, f"join {index}")
    return replace(plain, **rest)


# The root spawns twice. Of its first two children one spawns again and the other is cut short;
# its third goes on from a prompt written anew.
CUT_SHORT = Call((7,), (70, 71, 72, 73, 74, 75, 76, 77, 78), (), None, 1.0, 2.5)
TREE = Trace(
    problem={"numbers": [1, 2]},
    method="apr",
    threads=(
        thread(
            0,
            None,
            call((1, 2), (10, 11), 0.0, 1.0),
            call((1, 2, 10, 11, 3), (12,), 6.0, 7.0),
            call((1, 2, 10, 11, 3, 12, 4, 5), (13, 14), 8.0, 9.5),
            spawns=((1, 4), (5,)),
        ),
        thread(
            1, 0, call((6,), (20, 21, 22), 1.0, 3.0), call((8,), (23,), 4.0, 5.0), spawns=((2, 3),)
        ),
        thread(2, 1, call((6,), (30,), 3.0, 4.0)),
        thread(3, 1, call((6,), (40, 41), 3.0, 4.0), end=End.EXHAUSTED, join="", notes=("Why.",)),
        thread(4, 0, CUT_SHORT, end=End.CANCELLED, join=""),
        thread(5, 0, call((9, 9), (50, 51, 52, 53), 7.0, 8.0), success=True),
    ),
    answer="join 0",
    grade=Grade(False, "it is wrong"),
    meta={"model": "none", "budget": 3},
)


def test_costs_are_read_off_the_tree() -> None:
    assert TREE.num_children == 5
    assert TREE.total_tokens == (2 + 1 + 2) + (3 + 1) + 1 + 2 + 9 + 4
    # The root's own, the first child's with the longer of its children, the last child's.
    assert TREE.sequential_tokens == 5 + (4 + 2) + 4
    assert TREE.longest_context == 8 + 2
    # Both grandchildren beside the child that was cut short.
    assert TREE.peak_width == 3
    assert TREE.depth == 2
    assert TREE.depths == [0, 1, 2, 2, 1, 1]
    assert TREE.wall_clock == 9.5


def test_calls_that_extend_each_other_are_one_training_sequence() -> None:
    sequences = TREE.training_sequences()
    assert sequences[0] == TrainingSequence(
        thread=0,
        ids_T=(1, 2, 10, 11, 3, 12, 4, 5, 13, 14),
        mask_T=(0, 0, 1, 1, 0, 1, 0, 0, 1, 1),
        logprobs_T=(0.0, 0.0, -10.0, -11.0, 0.0, -12.0, 0.0, 0.0, -13.0, -14.0),
    )
    # A prompt written anew begins another sequence; a call without logprobs is in none.
    assert sequences[1:3] == [
        TrainingSequence(1, (6, 20, 21, 22), (0, 1, 1, 1), (0.0, -20.0, -21.0, -22.0)),
        TrainingSequence(1, (8, 23), (0, 1), (0.0, -23.0)),
    ]
    assert [s.thread for s in sequences] == [0, 1, 1, 2, 3, 5]


def test_an_id_resampled_where_it_was_injected_begins_a_new_sequence() -> None:
    """The second prompt repeats the first but not what was sampled after it."""
    root = thread(0, None, call((1, 2), (3,), 0, 1), call((1, 2, 4), (5,), 1, 2))
    sequences = Trace({}, "", (root,)).training_sequences()
    assert [s.ids_T for s in sequences] == [(1, 2, 3), (1, 2, 4, 5)]


def test_a_trace_without_calls_costs_nothing() -> None:
    trace = Trace({}, "", (thread(0, None),))
    assert (trace.total_tokens, trace.longest_context, trace.peak_width, trace.depth) == (
        0,
        0,
        1,
        0,
    )
    assert trace.wall_clock == 0.0
    assert trace.training_sequences() == []


def test_whole_traces_become_one_whose_root_samples_nothing() -> None:
    single = Trace({}, "", (thread(0, None, call((1,), (80, 81, 82), 0.5, 2.0)),))
    trace = coordinated("message", [[single, TREE], [single]], End.JOINED, "join", success=True)
    root, first, moved, last = (trace.threads[i] for i in (0, 1, 2, 8))
    assert root == Thread(0, None, "message", (), ((1, 2), (8,)), End.JOINED, "join", True)
    assert [t.index for t in trace.threads] == list(range(9))
    assert [t.parent for t in trace.threads] == [None, 0, 0, 2, 3, 3, 2, 2, 0]
    assert moved.spawns == ((3, 6), (7,))
    assert trace.threads[3].spawns == ((4, 5),)
    assert (first.calls, moved.calls) == (single.root.calls, TREE.root.calls)
    # The last began when the longest of those before it had ended, after 9.5 seconds.
    assert [(c.start, c.end) for c in last.calls] == [(10.0, 11.5)]
    assert trace.total_tokens == 3 + TREE.total_tokens + 3
    assert trace.sequential_tokens == TREE.sequential_tokens + 3
    assert (trace.peak_width, trace.depth) == (1 + TREE.peak_width, 1 + TREE.depth)
    assert (trace.wall_clock, trace.error) == (11.5, None)
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


def test_the_first_error_is_that_of_the_whole() -> None:
    traces = [replace(TREE, error=error) for error in (None, "down", "late")]
    assert coordinated("", [traces], End.FAILED).error == "down"


async def _nested() -> Trace:
    codec = ByteCodec(bos="<|begin|>")
    script = {
        "go": "a <spawn><thread>one</thread><thread>two ü</thread></spawn>",
        "<thread>one</thread>": "<spawn><thread>deep</thread></spawn>",
        "<thread>two ü</thread>": "<join>",
        "<thread>deep</thread>": "<join>found ✓</join>",
        "<thread>one</thread><spawn><thread>deep</thread></spawn>"
        "<joined><thread>found ✓</thread></joined>": "<join>up</join>",
        "go" + "a <spawn><thread>one</thread><thread>two ü</thread></spawn>"
        "<joined><thread>up</thread><thread></thread></joined>": "the end",
    }
    engine = ScriptedEngine(script, codec)
    return await Runtime(engine, codec, Tags(), Sampling(max_tokens=100)).run("go")


async def _failed() -> Trace:
    engine = ScriptedEngine([Reply("half", error=EngineError("down"))], codec := ByteCodec())
    return await Runtime(engine, codec, Tags(), Sampling(max_tokens=100)).run("go")


def test_traces_read_back_equal(tmp_path: Path) -> None:
    nested, failed = asyncio.run(_nested()), asyncio.run(_failed())
    assert (nested.depth, nested.root.join, failed.error) == (2, "the end", "EngineError: down")
    path = tmp_path / "deep" / "er" / "traces.jsonl"
    write_traces(path, [TREE, nested, failed])
    assert list(read_traces(path)) == [TREE, nested, failed]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3


def _line(**changes: object) -> bytes:
    return json.dumps({**TREE.to_json(), **changes}).encode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (_line(version=2), "version 2 and this program reads 1"),
        (_line()[:-5], "line 2"),
        (b"", "line 2"),
        (b"[]", "version None"),
        (b"\xff\xfe\x00", "line 2"),
        (_line(threads=[]), "not a tree in order"),
        (_line(threads=TREE.to_json()["threads"][1:]), "not a tree in order"),
        (_line(threads=3), "not a trace"),
        (_line(grade={"right": True}), "not a trace"),
        (json.dumps({"version": 1}).encode(), "not a trace"),
    ],
)
def test_a_line_that_is_no_trace_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"\n".join([_line(), line, _line()]) + b"\n")
    traces = read_traces(path)
    assert next(traces) == TREE
    with pytest.raises(DataError, match="line 2") as caught:
        next(traces)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def changed(where: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The record of ``TREE``, with ``value`` in one place."""
    record: dict[str, Any] = json.loads(json.dumps(TREE.to_json()))
    *path, last = where
    place: Any = record
    for key in path:
        place = place[key]
    place[last] = value
    return record


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ((2, "spawns"), [[2]]),
        ((2, "parent"), None),
        ((2, "parent"), 0),
        ((2, "index"), 9),
        ((0, "parent"), 0),
        ((0, "spawns"), [[1, 4], [6]]),
        ((0, "spawns"), [[1, 4], [-1]]),
        ((1, "spawns"), [[2, 3], [4]]),
    ],
)
def test_threads_that_are_no_tree_are_refused(where: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(DataError, match="not a tree in order"):
        Trace.from_json(changed(("threads", *where), value))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("meta",), None),
        (("problem",), [1]),
        (("answer",), 5),
        (("threads", 0, "join"), None),
        (("threads", 0, "message"), 3),
        (("answer",), []),
        (("grade", "correct"), "yes"),
        (("threads", 0, "index"), 0.0),
        (("threads", 1, "parent"), 0.0),
        (("threads", 0, "spawns"), [[0.5]]),
        (("threads", 0, "success"), "yes"),
        (("threads", 0, "notes"), [1]),
        (("threads", 0, "calls", 0, "ids"), ["a"]),
        (("threads", 0, "calls", 0, "logprobs"), "ab"),
        (("threads", 0, "calls", 0, "start"), None),
        (("threads", 0, "calls", 0, "end"), "x"),
        (("threads", 0, "calls", 0, "beside"), "x"),
    ],
)
def test_a_value_of_another_kind_is_refused(where: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(DataError, match="not a trace: TypeError"):
        Trace.from_json(changed(where, value))


def test_a_call_with_more_or_fewer_logprobs_than_ids_is_refused() -> None:
    for num in (1, 3):
        record = changed(("threads", 0, "calls", 0, "logprobs"), [-1.0] * num)
        with pytest.raises(DataError, match=f"2 ids and {num} logprobs"):
            Trace.from_json(record)


def test_a_line_without_end_of_nesting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="line 1"):
        next(read_traces(path))


def test_a_missing_trace_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no trace file at .*absent\.jsonl"):
        next(read_traces(tmp_path / "absent.jsonl"))


def test_a_full_disk_leaves_the_traces_of_before(tmp_path: Path, disk_limit: DiskLimit) -> None:
    path = tmp_path / "traces.jsonl"
    write_traces(path, [TREE])
    with disk_limit(100), pytest.raises(StorageError, match=r"cannot write .*traces\.jsonl \("):
        write_traces(path, [TREE, TREE])
    assert list(read_traces(path)) == [TREE]
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_character_costs_no_trace(tmp_path: Path) -> None:
    broken = replace(TREE, error="cannot decode \ud83d", grade=None)
    write_traces(tmp_path / "t.jsonl", [TREE, broken])
    assert list(read_traces(tmp_path / "t.jsonl")) == [TREE, broken]
    (tmp_path / "t.jsonl").read_text(encoding="utf-8")


def test_threads_may_nest_as_deep_as_they_like(tmp_path: Path) -> None:
    depth = 5_000
    threads = [
        replace(TREE.root, index=i, parent=i - 1 if i else None, spawns=((i + 1,),))
        for i in range(depth)
    ]
    last = replace(TREE.root, index=depth, parent=depth - 1, spawns=())
    deep = replace(TREE, threads=(*threads, last))
    each = sum(len(c.ids) for c in TREE.root.calls)
    assert deep.sequential_tokens == deep.total_tokens == each * (depth + 1)
    assert (deep.depth, deep.peak_width) == (depth, 1)
    write_traces(tmp_path / "t.jsonl", [deep])
    assert next(read_traces(tmp_path / "t.jsonl")) == deep
