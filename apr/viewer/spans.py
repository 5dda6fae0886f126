"""When each call of a trace decodes, counted in tokens along the critical path."""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

from apr.trace import End, Thread, Trace


class Span(NamedTuple):
    """Where a call stands: the tokens of all that must be sampled one after the other before it."""

    start: int
    end: int


def spans(trace: Trace) -> list[list[Span]]:
    """Those of each thread's calls, as on a machine that decodes all threads at the same speed.

    Children start where their parent spawned them, and their parent goes on where the last of them
    joined. The root of a finished trace ends at its sequential tokens.
    """
    placed: list[list[Span]] = [[] for _ in trace.threads]
    _place(trace, trace.root, 0, placed)
    return placed


def critical(trace: Trace) -> set[int]:
    """Threads that somebody waits for: the root, and the last child of each of their spawns."""
    ends = _ends(spans(trace), trace)
    found = {0}
    # A child stands behind its parent.
    for thread in trace.threads:
        if thread.index in found:
            for children in thread.spawns:
                found |= set(sorted(_alive(trace, children), key=lambda c: -ends[c])[:1])
    return found


def _place(trace: Trace, thread: Thread, at: int, placed: list[list[Span]]) -> int:
    """Where ``thread`` ends that starts at ``at``; its spans, and those below it, are noted."""
    for call, children in zip_longest(thread.calls, thread.spawns):
        if call is not None:
            placed[thread.index].append(Span(at, at + len(call.ids)))
            at += len(call.ids)
        ends = {c: _place(trace, trace.threads[c], at, placed) for c in children or ()}
        at = max((ends[c] for c in _alive(trace, children or ())), default=at)
    return at


def _alive(trace: Trace, children: tuple[int, ...]) -> list[int]:
    """Those that their parent waited for: a cancelled child it went on without."""
    return [c for c in children if trace.threads[c].end is not End.CANCELLED]


def _ends(placed: list[list[Span]], trace: Trace) -> list[int]:
    """The last that is written in each thread and below it."""
    ends = [max((span.end for span in of), default=0) for of in placed]
    for thread in reversed(trace.threads):
        if thread.parent is not None:
            ends[thread.parent] = max(ends[thread.parent], ends[thread.index])
    return ends
