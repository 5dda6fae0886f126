"""A trace as a timeline: one row for each thread, one bar for each call, an SVG of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import count

from apr.trace import End, Thread, Trace, num_sampled
from apr.viewer.spans import Span, critical, place

STYLE = """
.apr { --ink: #1c1c1c; --muted: #5f5f5f; --line: #dddddd; --found: #00805e; --nothing: #9db4c4;
  --stopped: #d9a400; --failed: #c8452f; --wait: #0072b2;
  font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { .apr { --ink: #e8e8e6; --muted: #a9a9a5; --line: #3a3d42;
  --found: #2fc295; --nothing: #5d7384; --stopped: #e6c229; --failed: #ff7b62; --wait: #56b4e9; } }
.apr text { fill: var(--ink); } .apr .soft { fill: var(--muted); }
.apr .message { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 11px; }
.apr .found { fill: var(--found); } .apr .nothing { fill: var(--nothing); }
.apr .stopped { fill: var(--stopped); } .apr .failed { fill: var(--failed); }
.apr .grid, .apr .fork { stroke: var(--line); } .apr .waits { stroke: var(--muted); }
.apr .critical { fill: var(--wait); } .apr a:hover rect { opacity: .75; }
"""
_KINDS = {
    End.JOINED: "nothing",
    End.MALFORMED: "stopped",
    End.EXHAUSTED: "stopped",
    End.CANCELLED: "nothing",
    End.FAILED: "failed",
}
_CRITICAL = "critical"
_LEGEND = {
    "found": "joined with something",
    "nothing": "joined with nothing",
    "stopped": "stopped: unreadable, or out of room",
    _CRITICAL: "waited for",
}
_WIDTH, _RIGHT, _TOP, _BOTTOM = 960, 60, 12, 58
_LETTER = 6.7
"""Width of a letter, about."""
_LONGEST = 42
"""Letters of a message that are shown: its last."""
_MANY = 60
"""Threads that have no room for a label each."""


@dataclass(frozen=True)
class _Frame:
    """Where things are, in pixels."""

    left: float
    """Where time begins."""
    scale: float
    """Of a token."""
    height: int
    """Of a row."""

    @property
    def labelled(self) -> bool:
        return self.height > 10

    def x(self, tokens: int) -> float:
        return self.left + tokens * self.scale

    def y(self, index: int) -> int:
        return _TOP + self.height * index


def svg(trace: Trace, links: bool = False) -> str:
    """The timeline of ``trace``, its time in tokens along the critical path.

    Args:
        links: each row leads to ``#thread-INDEX`` of the page around it.
    """
    placed, ends = place(trace)
    end = max([1, *(span.end for own in placed for span in own)])
    at = _frame(trace, end)
    waited = critical(trace, ends)
    bottom = at.y(len(trace.threads))
    rows = [_row(t, placed[t.index], t.index in waited, at) for t in trace.threads]
    if links:
        rows = [f'<a href="#thread-{i}">{row}</a>' for i, row in enumerate(rows)]
    parts = [*_axis(end, bottom, at), *_forks(trace, placed, at), *rows, _legend(bottom + 48, at)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="apr" role="img" aria-label="Timeline of '
        f'{len(trace.threads)} threads" viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def kind(thread: Thread) -> str:
    """What became of ``thread``, as a class of the style."""
    return "found" if thread.success else _KINDS[thread.end]


def plain(message: str) -> str:
    """``message`` on one line; a root's is its whole prompt, which marks it as a thread."""
    return flat(message.replace("<thread>", " ").replace("</thread>", " "))


def flat(text: str) -> str:
    """``text`` on one line, without what is no character: a model may write any, XML holds no
    control characters, and a terminal obeys them.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _frame(trace: Trace, end: int) -> _Frame:
    left = 4.0
    height = 20 if len(trace.threads) <= _MANY else 6
    if height > 10:
        longest = max(len(plain(t.message)) for t in trace.threads)
        left += _LETTER * min(longest, _LONGEST) + 12
    return _Frame(left, (_WIDTH - left - _RIGHT) / end, height)


def _row(thread: Thread, own: list[Span], waited: bool, at: _Frame) -> str:
    """Label and bars of a thread, with all of it to be read where a mouse rests."""
    drawn = "".join(_bar(span, thread, waited, at) for span in own)
    if at.labelled:
        drawn += _label(thread, own, at)
    joined = plain(thread.join) or "nothing"
    said = f"{plain(thread.message)}\n{num_sampled(thread)} tokens\n{joined}"
    return f"<g><title>{escape(said)}</title>{drawn}</g>"


def _label(thread: Thread, own: list[Span], at: _Frame) -> str:
    text = plain(thread.message)
    text = text if len(text) <= _LONGEST else "…" + text[1 - _LONGEST :]
    y = at.y(thread.index) + 13
    end = at.x(own[-1].end) if own else at.left
    return (
        f'<text class="message" x="{at.left - 8:.1f}" y="{y}" text-anchor="end">{escape(text)}'
        f'</text><text class="soft" x="{end + 5:.1f}" y="{y}">{num_sampled(thread)}</text>'
    )


def _bar(span: Span, thread: Thread, waited: bool, at: _Frame) -> str:
    x, y = at.x(span.start), at.y(thread.index) + 2
    width = max(1.0, (span.end - span.start) * at.scale)
    thick = at.height - 7 if at.labelled else at.height - 2
    bar = _rect(kind(thread), x, y, width, thick)
    if waited and at.labelled:
        bar += _rect(_CRITICAL, x, y + thick, width, 2.5)
    return bar


def _rect(of: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{of}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _forks(trace: Trace, placed: list[list[Span]], at: _Frame) -> Iterator[str]:
    """From where a thread spawned to its last child, and the time that it waits."""
    middle = at.height / 2 - 1
    for thread in trace.threads:
        own, y = placed[thread.index], at.y(thread.index) + middle
        for call, children in enumerate(thread.spawns):
            started = [placed[c][0].start for c in children if placed[c]]
            if not started:
                continue
            x, last = at.x(min(started)), at.y(max(children)) + middle
            yield f'<path class="fork" d="M{x:.1f} {y:.1f}V{last:.1f}"/>'
            if call + 1 < len(own):
                back = at.x(own[call + 1].start)
                yield (
                    f'<path class="waits" d="M{x:.1f} {y:.1f}H{back:.1f}" stroke-dasharray="1 3"/>'
                )


def _axis(end: int, bottom: int, at: _Frame) -> Iterator[str]:
    for tick in range(0, end + 1, _step(end)):
        x = at.x(tick)
        yield f'<path class="grid" d="M{x:.1f} {_TOP - 6}V{bottom + 2}"/>'
        yield _soft(x, bottom + 16, f"{tick:,}", "middle")
    yield _soft(_WIDTH - _RIGHT, bottom + 32, "tokens in sequence", "end")


def _step(end: int) -> int:
    """Between two ticks: 1, 2 or 5 times a power of ten, so that there are eight at most."""
    steps = (step * int(10**power) for power in count() for step in (1, 2, 5))
    return next(step for step in steps if end <= 8 * step)


def _legend(y: int, at: _Frame) -> str:
    x, parts = 4.0, []
    for name, text in _LEGEND.items():
        if name == _CRITICAL and not at.labelled:
            continue
        high = 2.5 if name == _CRITICAL else 10.0
        parts += [_rect(name, x, y - 4 - high / 2, 14, high), _soft(x + 19, y, text, "start")]
        x += 19 + _LETTER * len(text) + 10
    return "".join(parts)


def _soft(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
