"""Trees of threads in a terminal, while they run and as they were, and tables of scores. Knows no
engine and no task.

A thread is one line: how it stands, its message, the tokens it sampled, and what it is writing or
what came of it::

    ⋯ 24 : 9 5 3        9  <thread> 24 : 9 , 5 * 3</thread></spawn>
    ├── ✓ 24 : 9 , 5 + 3   31  5 + 3 = 8 , 9 * 8 = 72
    ├── · 24 : 9 , 5 - 3   24  nothing
    └── ⠹ 24 : 9 , 5 * 3   17  = 15 : 15 9 15 + 9 = 24
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import isnan
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from apr.eval.metrics import Summary
from apr.interfaces import Codec, Join
from apr.runtime import Observer, Path
from apr.trace import End, Thread, Trace, num_sampled
from apr.viewer import flat, plain

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAMES_PER_SECOND = 10
_MARKS = {
    End.JOINED: "·",
    End.MALFORMED: "✗",
    End.EXHAUSTED: "✗",
    End.CANCELLED: "-",
    End.FAILED: "!",
}
_STYLES = {
    End.JOINED: "dim",
    End.MALFORMED: "yellow",
    End.EXHAUSTED: "yellow",
    End.CANCELLED: "dim",
    End.FAILED: "red",
}


@dataclass
class _Branch:
    """A thread, as far as it is drawn."""

    message: str
    ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    children: list[_Branch] = field(default_factory=list)
    end: End | None = None
    """None while it runs."""
    join: str = ""
    success: bool = False
    note: str = ""

    @property
    def waits(self) -> bool:
        return any(child.end is None for child in self.children)


class Watch(Observer):
    """A run while it happens: hear it with this, and give this to ``rich.live.Live``.

    Where the tree is taller than the screen, threads that ended without success are folded.

    Rich draws from a thread of its own. It only ever reads lists that only ever grow, so nothing
    here needs a lock.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.branches: dict[Path, _Branch] = {}

    def on_thread(self, path: Path, message: str) -> None:
        branch = self.branches[path] = _Branch(message)
        if path:
            self.branches[path[:-1]].children.append(branch)

    def on_tokens(self, path: Path, ids: Sequence[int]) -> None:
        branch = self.branches[path]
        branch.ids += ids
        branch.num_tokens += len(ids)

    def on_end(self, path: Path, end: End, join: Join | None) -> None:
        branch = self.branches[path]
        if join is not None:
            branch.join, branch.success = join.message, join.success
        branch.end = end

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        root = self.branches.get(())
        if root is not None:
            yield _grow(root, self.codec, fold=len(self.branches) > console.height)


def tree(trace: Trace, fold: bool = False) -> Tree:
    """A trace, one line for each thread; with ``fold``, those of the root's children that succeeded
    and a count of the others.
    """
    return _grow(_branches(trace)[0], None, fold)


def story(trace: Trace, codec: Codec) -> Tree:
    """A trace with all that its threads wrote, and children where they were spawned."""
    branches = _branches(trace)
    root = _node(None, branches[0], codec)
    todo = [(root, trace.root)]
    while todo:
        node, thread = todo.pop()
        for call, spawn in zip_longest(thread.calls, thread.spawns, fillvalue=None):
            if call is not None:
                node.add(Text(_written(codec.decode(call.ids), len(spawn or ())), "dim"))
            width = _widest(branches[c].message for c in spawn or ())
            todo += [
                (_node(node, branches[c], codec, width), trace.threads[c]) for c in spawn or ()
            ]
    return root


def _branches(trace: Trace) -> dict[int, _Branch]:
    """Of each thread, with all below it."""
    found: dict[int, _Branch] = {}
    for thread in reversed(trace.threads):  # A child stands behind its parent.
        children = [found[c] for spawn in thread.spawns for c in spawn]
        found[thread.index] = _branch(thread, children)
    return found


def _branch(thread: Thread, children: list[_Branch]) -> _Branch:
    return _Branch(
        message=thread.message,
        num_tokens=num_sampled(thread),
        children=children,
        end=thread.end,
        join=thread.join,
        success=thread.success,
        note=thread.notes[-1] if thread.notes else "",
    )


def _grow(branch: _Branch, codec: Codec | None, fold: bool = False) -> Tree:
    """``branch`` and all below it; with ``fold``, of what has ended only the line, if it
    succeeded.
    """
    root = _node(None, branch, codec)
    todo = [(root, branch)]
    while todo:
        node, branch = todo.pop()
        children = list(branch.children)
        width = _widest(child.message for child in children)
        shown = [c for c in children if c.end is None or c.success] if fold else children
        below = [(_node(node, child, codec, width), child) for child in shown]
        todo += [(n, child) for n, child in below if not fold or child.end is None]
        if len(shown) < len(children):
            node.add(Text(f"{len(children) - len(shown)} more ended", "dim"))
    return root


def _node(above: Tree | None, branch: _Branch, codec: Codec | None, width: int = 0) -> Tree:
    """The line of ``branch``, under ``above``; ``width`` as in ``_Line``."""
    line = _Line(branch, codec, width or _widest([branch.message]))
    return Tree(line, guide_style="dim") if above is None else above.add(line)


def _written(text: str, num_children: int) -> str:
    """``text`` without the messages of its spawn: the children stand below with them."""
    before, spawn, _ = text.partition("<spawn>")
    told = f"{before} {spawn} {num_children}" if spawn and num_children else text
    return "\n".join(map(_visible, told.strip().split("\n")))


def _visible(line: str) -> str:
    """``line`` without what a terminal obeys."""
    return "".join(c if c.isprintable() or c == "\t" else " " for c in line)


@dataclass(frozen=True)
class _Line:
    """One thread on one line, cut to the width there is."""

    branch: _Branch
    codec: Codec | None
    width: int
    """Of the messages of this thread and its siblings, so that what follows them lines up."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        branch = self.branch
        style = self._style()
        message = Text(plain(branch.message))
        message.truncate(min(self.width, options.max_width // 2), overflow="ellipsis", pad=True)
        line = Text.assemble(
            (self._mark(console.get_time()), style),
            " ",
            message,
            (f" {branch.num_tokens:4}  ", "dim"),
        )
        room = max(0, options.max_width - line.cell_len)
        if branch.end is None:
            line.append(self._tail(room), "dim" if branch.waits else "")
        else:
            outcome = Text(self._outcome(), style)
            outcome.truncate(room, overflow="ellipsis")
            line.append_text(outcome)
        line.no_wrap, line.overflow = True, "crop"
        yield line

    def _mark(self, seconds: float) -> str:
        if self.branch.end is not None:
            return "✓" if self.branch.success else _MARKS[self.branch.end]
        if self.branch.waits:
            return "⋯"
        return _SPINNER[int(seconds * _FRAMES_PER_SECOND) % len(_SPINNER)]

    def _style(self) -> str:
        if self.branch.end is None:
            return "dim" if self.branch.waits else "cyan"
        return "green" if self.branch.success else _STYLES[self.branch.end]

    def _outcome(self) -> str:
        if self.branch.end is End.JOINED:
            return flat(self.branch.join) or "nothing"
        return ": ".join(filter(None, [str(self.branch.end), flat(self.branch.note)]))

    def _tail(self, room: int) -> str:
        """The end of what is being written, in ``room`` columns."""
        if self.codec is None or not room:
            return ""
        # A token is a column at least, so none further back can be in sight.
        tail = flat(self.codec.decode(self.branch.ids[-room:]))[-room:]
        while cell_len(tail) > room:
            tail = tail[1:]
        return tail


def _widest(messages: Iterable[str]) -> int:
    return max((cell_len(plain(m)) for m in messages), default=0)


def verdict(trace: Trace, answer: str | None) -> Text:
    """What a run came to and what it cost; ``answer`` as it is to be shown."""
    if trace.error is not None:
        outcome = Text(f"! {flat(trace.error)}", "bold red")
    elif trace.grade is None:
        outcome = Text(f"  {flat(answer or '') or 'no answer'}, not graded")
    elif trace.grade.correct:
        outcome = Text(f"✓ {flat(answer or '')}", "bold green")
    else:
        claim = f"{flat(answer)}: " if answer else ""
        outcome = Text(f"✗ {claim}{flat(trace.grade.reason)}", "bold yellow")
    num_threads = len(trace.threads)
    cost = (
        f"{trace.total_tokens:,} tokens, {trace.sequential_tokens:,} in sequence; "
        f"{num_threads} thread{'s' if num_threads > 1 else ''}; "
        f"longest context {trace.longest_context}; {trace.wall_clock:.2f} s"
    )
    return Text.assemble(outcome, "\n", (f"  {cost}", "dim"))


class Row(NamedTuple):
    """One method on one set of problems."""

    model: str
    method: str
    context: int | None  # None where the traces do not say
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        head = {"model": self.model, "method": self.method, "context": self.context}
        # JSON has no word for what is no number.
        figures = self.summary._asdict().items()
        return head | {k: None if isinstance(v, float) and isnan(v) else v for k, v in figures}


def scores(rows: Sequence[Row]) -> Table:
    """Rows side by side. All but accuracy are means over the problems; ``context`` is how much of
    it the longest call of a problem took up.
    """
    numbers = ("n", "accuracy, 95 %", "tokens", "in\nsequence", "children", "context")
    table = _table(("model", "method"), numbers)
    for model, method, context, s in rows:
        table.add_row(
            model,
            method,
            str(s.num_problems - s.num_failed),
            _share(s),
            _mean(s.total_tokens),
            _mean(s.sequential_tokens),
            _mean(s.num_children),
            f"{s.longest_context:.0f}/{context or '?'}",
        )
    if num_failed := sum(row.summary.num_failed for row in rows):
        table.caption = f"{num_failed} runs that the engine failed are left out"
    return table


def _share(s: Summary) -> str:
    if isnan(s.accuracy):
        return "not graded"
    return f"{s.accuracy:.1%} {100 * s.interval.low:.1f}-{100 * s.interval.high:.1f}"


def columns(rows: Mapping[str, Mapping[str, str]]) -> Table:
    """Named rows of the same columns, whose names stand one word to a line."""
    names = next(iter(rows.values()), {})
    table = _table(("",), [name.replace(" ", "\n") for name in names])
    for name, row in rows.items():
        table.add_row(name, *row.values())
    return table


def _table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """Columns by their heads. Where a line is too short for all, texts fold and numbers do not."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for head in texts:
        table.add_column(head, overflow="fold", min_width=8)
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _mean(value: float) -> str:
    """With as many decimals as can matter."""
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
