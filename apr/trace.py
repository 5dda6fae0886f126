"""The finished tree of threads of one problem: what was asked, sampled and joined.

A trace stores each call once, as the ids that crossed the engine's border. Token counts, widths
and training sequences are read off it, never stored. Knows nothing of engines, text formats or
tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from apr.errors import DataError
from apr.files import new_file
from apr.types import FinishReason, Grade, Ids

T = TypeVar("T")

VERSION = 1


class End(StrEnum):
    """How a thread ended."""

    JOINED = "joined"
    """It wrote a join (the root: its answer)."""
    MALFORMED = "malformed"
    """It wrote something the dialect cannot read."""
    EXHAUSTED = "exhausted"
    """A limit or its context ran out before it joined."""
    CANCELLED = "cancelled"
    """A sibling's success made it needless."""
    FAILED = "failed"
    """The engine failed; the whole trace has no grade."""


@dataclass(frozen=True, slots=True)
class Call:
    """One engine request inside a thread."""

    prompt_ids: Ids
    ids: Ids
    """Sampled ids; those of a cancelled call as far as they were seen."""
    logprobs: tuple[float, ...]
    """One for each sampled id; none where the engine tells none, or the call was cut short."""
    finish_reason: FinishReason | None
    """None for a call that was cut short by cancellation or failure."""
    start: float
    """Seconds after the trace began."""
    end: float
    beside: int = 0
    """Tokens of other threads that were in its context, too: of workers that share one cache."""


@dataclass(frozen=True, slots=True)
class Thread:
    """One consecutive line of decoding."""

    index: int
    """Position in the trace's list; the root is 0."""
    parent: int | None
    message: str
    """What it was spawned with; the root: the problem's prompt."""
    calls: tuple[Call, ...]
    spawns: tuple[tuple[int, ...], ...]
    """Indices of the children of each spawn, in the order written; spawn k follows call k. A root
    without calls coordinates (see ``coordinated``): its spawns follow one another."""
    end: End
    join: str
    """The message it joined with; empty unless ``end`` is JOINED."""
    success: bool = False
    """Whether its join claims success."""
    notes: tuple[str, ...] = ()
    """What went wrong, in order: limits met, malformed text."""


class TrainingSequence(NamedTuple):
    """Ids of consecutive calls that extend each other, T tokens.

    Calls without logprobs are left out, so that every id that is trained on has one; and so are
    those that saw tokens of other threads, which their own ids do not tell of.
    """

    thread: int  # index of the thread it belongs to
    ids_T: Ids
    mask_T: tuple[int, ...]  # 1 where the engine sampled the id, 0 where it was injected
    logprobs_T: tuple[float, ...]  # the engine's, 0.0 where the mask is 0


@dataclass(frozen=True)
class Trace:
    """The tree of threads of one problem."""

    problem: dict[str, Any]
    method: str
    threads: tuple[Thread, ...]
    answer: str | None = None
    """What the run claims; None where it claims nothing."""
    grade: Grade | None = None
    """None where the world failed, or where nobody graded."""
    error: str | None = None
    """What failed in the world, if anything did."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Model, sampling and budget as the caller named them."""

    @property
    def root(self) -> Thread:
        return self.threads[0]

    @property
    def is_correct(self) -> bool:
        """Whether it has a grade, and a good one."""
        return self.grade is not None and self.grade.correct

    @property
    def num_children(self) -> int:
        """Threads that were spawned, at any depth."""
        return len(self.threads) - 1

    @cached_property
    def total_tokens(self) -> int:
        """All sampled tokens."""
        return sum(num_sampled(t) for t in self.threads)

    @cached_property
    def sequential_tokens(self) -> int:
        """Sampled tokens on the critical path: of children in parallel only the longest counts.

        A cancelled child does not count: its parent went on without it.
        """
        return self.sequential_of[0]

    @cached_property
    def sequential_of(self) -> list[int]:
        """Sequential tokens of each thread with all below it, by index."""
        found = [0] * len(self.threads)
        for thread in reversed(self.threads):  # A child stands behind its parent.
            waited = (max((found[c] for c in self.alive(g)), default=0) for g in thread.spawns)
            found[thread.index] = num_sampled(thread) + sum(waited)
        return found

    def alive(self, children: Iterable[int]) -> list[int]:
        """Those that their parent waited for: a cancelled child it went on without."""
        return [c for c in children if self.threads[c].end is not End.CANCELLED]

    @cached_property
    def longest_context(self) -> int:
        """Most tokens any one call saw and sampled."""
        return max(
            (len(c.prompt_ids) + len(c.ids) + c.beside for t in self.threads for c in t.calls),
            default=0,
        )

    @cached_property
    def peak_width(self) -> int:
        """Most threads that can decode at once, by the shape of the tree."""
        found = [1] * len(self.threads)
        for thread in reversed(self.threads):
            widths = [sum(found[c] for c in group) for group in thread.spawns]
            found[thread.index] = max([1, *widths])
        return found[0]

    @cached_property
    def depth(self) -> int:
        """Levels of threads below the root."""
        return max(self.depths)

    @cached_property
    def depths(self) -> list[int]:
        """Levels above each thread; the root has 0."""
        found: list[int] = []
        for thread in self.threads:
            found.append(0 if thread.parent is None else 1 + found[thread.parent])
        return found

    @property
    def wall_clock(self) -> float:
        """Seconds from the start to the end of the last call."""
        return max((c.end for t in self.threads for c in t.calls), default=0.0)

    def training_sequences(self) -> list[TrainingSequence]:
        """Sequences to train on; calls whose prompt extends the call before share one."""
        return [s for t in self.threads for s in _sequences(t)]

    def to_json(self) -> dict[str, Any]:
        """One JSON object; ``from_json`` gives back an equal trace."""
        # Field by field: ``asdict`` copies every id and logprob by itself, which takes far longer.
        threads = [
            {**_fields(thread), "calls": [_fields(call) for call in thread.calls]}
            for thread in self.threads
        ]
        grade = self.grade._asdict() if self.grade else None
        return {"version": VERSION, **_fields(self), "threads": threads, "grade": grade}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Trace:
        """Raises DataError for another version or a record that is no trace."""
        version = record.get("version") if isinstance(record, dict) else None
        if version != VERSION:
            raise DataError(
                f"the trace has version {version!r} and this program reads {VERSION}: "
                "make it again with this program"
            )
        try:
            return Trace(
                problem=_of(dict, record["problem"]),
                method=_of(str, record["method"]),
                threads=_tree(record["threads"]),
                answer=_or_none(str, record["answer"]),
                grade=None if record["grade"] is None else _grade(record["grade"]),
                error=_or_none(str, record["error"]),
                meta=_of(dict, record["meta"]),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"not a trace: {type(e).__name__} {e}") from e


def _fields(record: Call | Thread | Trace) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def num_sampled(thread: Thread) -> int:
    """Tokens that ``thread`` itself sampled."""
    return sum(len(c.ids) for c in thread.calls)


def coordinated(
    message: str, phases: Sequence[Sequence[Trace]], end: End, join: str = "", success: bool = False
) -> Trace:
    """Whole traces as one: their roots become children of a root that samples nothing itself.

    The traces of a phase ran at the same time, each phase once the one before had ended. So what
    they cost together is read off the tree as ever: all their tokens in total, in sequence those of
    the longest of each phase. It has the first error there is.
    """
    threads: list[Thread] = []
    spawns: list[tuple[int, ...]] = []
    seconds = 0.0
    for phase in phases:
        roots: list[int] = []
        for trace in phase:
            roots.append(1 + len(threads))
            threads += [_moved(thread, roots[-1], seconds) for thread in trace.threads]
        spawns.append(tuple(roots))
        seconds += max((trace.wall_clock for trace in phase), default=0.0)
    root = Thread(0, None, message, (), tuple(spawns), end, join, success)
    errors = [trace.error for phase in phases for trace in phase if trace.error is not None]
    return Trace({}, "", (root, *threads), error=errors[0] if errors else None)


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Write JSON lines, one trace each; ``path`` appears whole or not at all.

    Raises:
        StorageError: the disk is full, or the path may not be written.
    """
    with new_file(path) as tmp, tmp.open("wb") as f:
        f.writelines(map(line_of, traces))


def line_of(trace: Trace) -> bytes:
    """``trace`` as a line of JSON in UTF-8."""
    record = trace.to_json()
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # Half a character, which a server may have told: in escapes.
        return (json.dumps(record) + "\n").encode()


def read_traces(path: Path) -> Iterator[Trace]:
    """Read what ``write_traces`` wrote.

    Raises:
        DataError: the file is missing, or a line is no trace (its number is named).
    """
    if not path.is_file():
        raise DataError(f"no trace file at {path}: name one that --trace or apr eval wrote")
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            try:
                yield Trace.from_json(json.loads(line))
            except (ValueError, RecursionError) as e:  # Not UTF-8, not JSON, or no trace.
                raise DataError(f"{path}, line {number}: {e}") from e


def _moved(thread: Thread, index: int, seconds: float) -> Thread:
    """``thread`` of a tree whose root is to stand at ``index`` under another, and started later."""
    return replace(
        thread,
        index=thread.index + index,
        parent=0 if thread.parent is None else thread.parent + index,
        spawns=tuple(tuple(child + index for child in children) for children in thread.spawns),
        calls=tuple(replace(c, start=c.start + seconds, end=c.end + seconds) for c in thread.calls),
    )


def _tree(records: list[dict[str, Any]]) -> tuple[Thread, ...]:
    """Raises ValueError where threads point at each other in a way that no walk would survive."""
    threads = tuple(map(_thread, records))
    sound = all(
        thread.index == i
        and (thread.parent is None if i == 0 else thread.parent in range(i))
        and all(0 < c < len(threads) and threads[c].parent == i for c in chain(*thread.spawns))
        for i, thread in enumerate(threads)
    )
    if not threads or not sound:
        raise ValueError("its threads are not a tree in order")
    return threads


def _of(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _or_none(kind: type[T], value: Any) -> T | None:
    return None if value is None else _of(kind, value)


def _number(value: Any) -> float:
    return value if isinstance(value, float) else _of(int, value)


def _ids(values: list[Any]) -> Ids:
    return tuple(_of(int, value) for value in values)


def _grade(r: dict[str, Any]) -> Grade:
    return Grade(_of(bool, r["correct"]), _of(str, r["reason"]))


def _call(r: dict[str, Any]) -> Call:
    call = Call(
        prompt_ids=_ids(r["prompt_ids"]),
        ids=_ids(r["ids"]),
        logprobs=tuple(map(_number, r["logprobs"])),
        finish_reason=FinishReason(r["finish_reason"]) if r["finish_reason"] else None,
        start=_number(r["start"]),
        end=_number(r["end"]),
        beside=_of(int, r.get("beside", 0)),
    )
    if len(call.logprobs) not in (0, len(call.ids)):
        raise ValueError(f"a call has {len(call.ids)} ids and {len(call.logprobs)} logprobs")
    return call


def _thread(r: dict[str, Any]) -> Thread:
    return Thread(
        index=_of(int, r["index"]),
        parent=_or_none(int, r["parent"]),
        message=_of(str, r["message"]),
        calls=tuple(map(_call, r["calls"])),
        spawns=tuple(map(_ids, r["spawns"])),
        end=End(r["end"]),
        join=_of(str, r["join"]),
        success=_of(bool, r["success"]),
        notes=tuple(_of(str, note) for note in r["notes"]),
    )


def _sequences(thread: Thread) -> Iterator[TrainingSequence]:
    ids: Ids = ()
    mask: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    for call in thread.calls:
        if not call.logprobs or call.beside:
            continue
        prompt = call.prompt_ids
        if not ids or prompt[: len(ids)] != ids:
            if ids:
                yield TrainingSequence(thread.index, ids, mask, logprobs)
            ids, mask, logprobs = (), (), ()
        injected = len(prompt) - len(ids)
        ids = prompt + call.ids
        mask += (0,) * injected + (1,) * len(call.ids)
        logprobs += (0.0,) * injected + call.logprobs
    if ids:
        yield TrainingSequence(thread.index, ids, mask, logprobs)
