"""One HTML file that needs nothing else: the timeline of a trace, and what each thread wrote.

All text in it is a model's or a task's and is escaped; there is no script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import groupby
from math import exp
from typing import NamedTuple

from apr.trace import Thread, Trace, num_sampled
from apr.types import Ids
from apr.viewer.timeline import kind, plain, svg

_UNSURE = 0.9
"""Sampled tokens that were less likely than this are marked."""

_CSS = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1.25rem 4rem;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .25rem; } p { margin: .25rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; } svg { width: 100%; min-width: 44rem; display: block; }
.muted { opacity: .7; font-size: .9rem; }
details { border-top: 1px solid #8884; padding: .35rem 0; } summary { cursor: pointer; }
details details { margin-left: 1.5rem; }
pre, summary, .join { font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 .4rem 1rem; }
pre .given { opacity: .55; } mark { background: #ffb00055; color: inherit; }
.found::before { content: "✓ "; color: #00805e; } .nothing::before { content: "· "; }
.stopped::before { content: "✗ "; color: #b8860b; }
.failed::before { content: "! "; color: #c8452f; }
"""


class Piece(NamedTuple):
    """Some ids of a thread, in the order in which they stand in its context."""

    ids: Ids
    logprobs: tuple[float, ...]  # of sampled ids, where the engine gave them; else empty
    sampled: bool


def page(
    trace: Trace, decode: Callable[[Sequence[int]], str] | None, answer: str | None = None
) -> str:
    """The whole page.

    Args:
        decode: reads the tokens; without it the page has messages and no texts.
        answer: how what the run claims is to be shown.
    """
    title = plain(trace.root.message) or trace.method
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(_outcome(trace, answer))}</p>\n"
        f'<p class="muted">{_cost(trace)}</p>\n<div class="wide">{svg(trace, links=True)}</div>\n'
        f'<p class="muted">{_HOW if decode else _UNREAD}</p>\n'
        f"{_threads(trace, decode)}\n</body>\n</html>\n"
    )


_HOW = (
    "What each thread wrote; pale is what it was given. Marked are tokens of which the model was "
    f"less than {_UNSURE:.0%} sure."
)
_UNREAD = "The tokenizer that reads the text is not here, so there are messages only."


def pieces(thread: Thread) -> Iterator[Piece]:
    """What ``thread`` read and wrote, each id once; a prompt that was rewritten stands whole."""
    seen: Ids = ()
    for call in thread.calls:
        extends = call.prompt_ids[: len(seen)] == seen
        yield Piece(call.prompt_ids[len(seen) if extends else 0 :], (), False)
        yield Piece(call.ids, call.logprobs, True)
        seen = call.prompt_ids + call.ids


def _outcome(trace: Trace, answer: str | None) -> str:
    if trace.error is not None:
        return f"Failed: {trace.error}"
    claim = answer or trace.answer or "no answer"
    return f"{claim} ({trace.grade.reason})" if trace.grade is not None else claim


def _cost(trace: Trace) -> str:
    return escape(
        f"{trace.method}: {trace.total_tokens:,} tokens, {trace.sequential_tokens:,} in sequence; "
        f"{len(trace.threads)} threads, at most {trace.peak_width} at a time; longest context "
        f"{trace.longest_context:,}; {trace.wall_clock:.2f} s"
    )


def _threads(trace: Trace, decode: Callable[[Sequence[int]], str] | None) -> str:
    """The root, and folded within each thread those that it spawned."""
    drawn: dict[int, str] = {}
    for thread in reversed(trace.threads):  # A child stands behind its parent.
        children = "".join(drawn.pop(child) for spawn in thread.spawns for child in spawn)
        drawn[thread.index] = _thread(thread, children, decode)
    return drawn[0]


def _thread(thread: Thread, children: str, decode: Callable[[Sequence[int]], str] | None) -> str:
    text = "".join(_text(piece, decode) for piece in pieces(thread)) if decode else ""
    notes = "".join(f'<p class="muted">{escape(note)}</p>' for note in thread.notes)
    opened = " open" if thread.parent is None else ""
    return (
        f'<details{opened}><summary><span class="{kind(thread)}">{escape(plain(thread.message))}'
        f'</span> <span class="muted">{num_sampled(thread)} tokens, {thread.end}: '
        f"{escape(plain(thread.join)) or 'nothing'}</span></summary>\n"
        f'<div id="thread-{thread.index}">{notes}<pre>{text}</pre>{children}</div></details>\n'
    )


def _text(piece: Piece, decode: Callable[[Sequence[int]], str]) -> str:
    if not piece.sampled:
        return f'<span class="given">{escape(decode(piece.ids))}</span>'
    if len(piece.logprobs) != len(piece.ids):
        return escape(decode(piece.ids))
    runs = groupby(zip(piece.ids, piece.logprobs, strict=True), lambda t: exp(t[1]) < _UNSURE)
    return "".join(_run(unsure, list(run), decode) for unsure, run in runs)


def _run(unsure: bool, run: list[tuple[int, float]], decode: Callable[[Sequence[int]], str]) -> str:
    text = escape(decode([id for id, _ in run]))
    sure = ", ".join(f"{exp(logprob):.0%}" for _, logprob in run)
    return f'<mark title="{sure}">{text}</mark>' if unsure else text
