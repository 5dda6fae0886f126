"""When threads decode, and how that is drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.trace import Call, End, Thread, Trace, coordinated
from apr.types import FinishReason
from apr.viewer import svg
from apr.viewer.spans import Span, critical, place


def thread(
    index: int,
    parent: int | None,
    sampled: Sequence[int],
    spawns: Sequence[tuple[int, ...]] = (),
    end: End = End.JOINED,
) -> Thread:
    calls = tuple(
        Call((0,), tuple(range(n)), (0.0,) * n, FinishReason.STOP, 0.0, 0.0) for n in sampled
    )
    return Thread(index, parent, f"<thread>{index}</thread>", calls, tuple(spawns), end, "")


def spans_of(trace: Trace) -> list[list[Span]]:
    return place(trace).spans


def waited_for(trace: Trace) -> set[int]:
    return critical(trace, place(trace).ends)


# 4 tokens, then 10 beside 20, of which 5 are a grandchild's, then 6.
NESTED = Trace(
    {},
    "apr",
    (
        thread(0, None, [4, 6], [(1, 2)]),
        thread(1, 0, [10]),
        thread(2, 0, [9, 6], [(3,)]),
        thread(3, 2, [5]),
    ),
)


def test_children_start_where_they_were_spawned_and_their_parent_waits_for_the_last() -> None:
    assert spans_of(NESTED) == [[(0, 4), (24, 30)], [(4, 14)], [(4, 13), (18, 24)], [(13, 18)]]
    assert waited_for(NESTED) == {0, 2, 3}


def test_nobody_waits_for_a_cancelled_child() -> None:
    cancelled = replace(
        NESTED,
        threads=tuple(replace(t, end=End.CANCELLED) if t.index == 2 else t for t in NESTED.threads),
    )
    assert spans_of(cancelled)[0] == [(0, 4), (14, 20)]
    assert waited_for(cancelled) == {0, 1}


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> list[Thread]:
    """A thread with index 0 and all below it, each behind its parent."""
    sampled = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    threads: list[Thread] = []
    spawns: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(0, len(sampled))) if depth else 0):
        children = []
        for below in draw(st.lists(trees(depth - 1), min_size=1, max_size=3)):
            first = 1 + len(threads)
            children.append(first)
            threads += [
                replace(
                    t,
                    index=t.index + first,
                    parent=0 if t.parent is None else t.parent + first,
                    spawns=tuple(tuple(c + first for c in spawn) for spawn in t.spawns),
                )
                for t in below
            ]
        spawns.append(tuple(children))
    end = draw(st.sampled_from([End.JOINED, End.EXHAUSTED, End.CANCELLED]))
    return [thread(0, None, sampled, spawns, end), *threads]


@given(trees())
def test_a_trace_ends_at_its_sequential_tokens(threads: list[Thread]) -> None:
    trace = Trace({}, "apr", tuple(threads))
    placed = spans_of(trace)
    waited = [span.end for i in waited_for(trace) for span in placed[i]]
    assert max(waited, default=0) == trace.sequential_tokens
    assert place(trace).ends[0] == trace.sequential_tokens
    assert sum(end - start for own in placed for start, end in own) == trace.total_tokens


def test_a_root_that_samples_nothing_waits_for_phase_after_phase() -> None:
    one = Trace({}, "serial", (thread(0, None, [5]),))
    both = coordinated("all", [[one, one], [one]], End.JOINED)
    assert spans_of(both) == [[], [(0, 5)], [(0, 5)], [(5, 10)]]
    ET.fromstring(svg(both))


def test_every_call_is_a_bar_where_it_decodes() -> None:
    root = ET.fromstring(svg(NESTED))
    bars = [
        (float(r.get("x", 0)), float(r.get("width", 0)))
        for r in root.iter("{http://www.w3.org/2000/svg}rect")
        if r.get("class") == "nothing"
    ][:6]
    (left, four), *_ = bars
    scale = four / 4
    begun = [round((x - left) / scale) for x, _ in bars]
    assert begun == [0, 24, 4, 4, 18, 13]
    assert [round(width / scale) for _, width in bars] == [4, 6, 10, 9, 6, 5]


def test_a_tree_of_hundreds_has_thin_rows_without_labels() -> None:
    children = tuple(range(1, 301))
    wide = Trace(
        {}, "apr", (thread(0, None, [4, 1], [children]), *(thread(i, 0, [3]) for i in children))
    )
    text = svg(wide)
    assert 'class="message"' not in text
    assert "waited for" not in text
    assert float(re.findall(r'viewBox="0 0 \d+ (\d+)"', text)[0]) < 2_000


@pytest.mark.parametrize("message", ["<script>alert(1)</script>", '"&<', "\x00\x1b[31m", "\udc80"])
def test_text_of_a_model_is_only_text(message: str) -> None:
    drawn = svg(Trace({}, "apr", (replace(thread(0, None, [3]), message=message, join=message),)))
    assert "<script" not in drawn
    ET.fromstring(drawn.encode())
