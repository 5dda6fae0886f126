"""When each call of a trace decodes, counted in tokens along the critical path."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from apr.trace import Trace


class Span(NamedTuple):
    """Where a call stands: the tokens of all that must be sampled one after the other before it."""

    start: int
    end: int


class Placed(NamedTuple):
    """Where the threads of a trace stand."""

    spans: list[list[Span]]  # of each thread's calls
    ends: list[int]  # where each thread is over, and has waited for all it waits for


def place(trace: Trace) -> Placed:
    """Threads as on a machine that decodes all of them at the same speed.

    Children start where their parent spawned them, and their parent goes on where the last of them
    joined. The root ends at the sequential tokens of the trace.
    """
    placed = Placed([[] for _ in trace.threads], [0] * len(trace.threads))
    starts = [0] * len(trace.threads)
    for thread in trace.threads:  # A child stands behind its parent.
        at = starts[thread.index]
        for call, children in zip_longest(thread.calls, thread.spawns):
            if call is not None:
                placed.spans[thread.index].append(Span(at, at + len(call.ids)))
                at += len(call.ids)
            for child in children or ():
                starts[child] = at
            at += max((trace.sequential_of[c] for c in trace.alive(children or ())), default=0)
        placed.ends[thread.index] = at
    return placed


def critical(trace: Trace, ends: Sequence[int]) -> set[int]:
    """Threads that somebody waits for: the root, and the last child of each of their spawns.

    Args:
        ends: of all threads, as ``place`` tells them.
    """
    found = {0}
    for thread in trace.threads:
        if thread.index in found:
            for children in thread.spawns:
                found |= set(sorted(trace.alive(children), key=lambda c: -ends[c])[:1])
    return found
