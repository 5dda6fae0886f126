"""Demonstrations in the `tags` dialect, for a task without a narrator of its own.

A solver says what each thread is given, writes and returns. What is put in when a model runs, the
prompts and the joined messages, is written here as the dialect writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apr.dialects.tags import Tags, threads
from apr.errors import DataError
from apr.interfaces import Codec, Join, Operation, Spawn
from apr.types import Demonstration, Segment


@dataclass(frozen=True, slots=True)
class Told:
    """A thread as a model is to learn to write it."""

    message: str
    """What it is given; its prompt is the dialect's of a child, the root's too."""
    steps: Sequence[str | Sequence[Told]]
    """What it writes before it joins: text, and the children of each spawn, in order."""
    join: str
    """What it returns."""

    @property
    def spawns(self) -> list[Sequence[Told]]:
        return [step for step in self.steps if not isinstance(step, str)]


def demonstration(root: Told, codec: Codec, dialect: Tags | None = None) -> Demonstration:
    """``root`` and all that it spawns, as training sequences.

    Args:
        codec: counts the tokens.
        dialect: by default ``Tags()``.

    Raises:
        DataError: the dialect would read a thread in another way than it is told, for instance
            since a message holds a tag.
    """
    teller = _Teller(codec, dialect or Tags())
    sequential_tokens = teller.tell(root)
    return Demonstration(
        sequences=teller.sequences,
        succeeded=teller.succeeded,
        depths=teller.depths,
        solved=teller.succeeded[0],
        num_children=len(teller.sequences) - 1,
        total_tokens=teller.total_tokens,
        sequential_tokens=sequential_tokens,
    )


class _Teller:
    def __init__(self, codec: Codec, dialect: Tags) -> None:
        self.codec = codec
        self.dialect = dialect
        self.sequences: list[list[Segment]] = []
        self.succeeded: list[bool] = []
        self.depths: list[int] = []
        self.total_tokens = 0

    def tell(self, thread: Told, depth: int = 0) -> int:
        """Write ``thread`` and all that it spawns; its tokens on the critical path."""
        segments = self.segments(thread)
        self.sequences.append(segments)
        self.succeeded.append(self.dialect.succeeds(thread.join))
        self.depths.append(depth)
        written = [piece for s in segments if s.demonstrated for piece in s.pieces]
        num_tokens = sum(len(self.codec.encode(piece)) for piece in written)
        self.total_tokens += num_tokens
        return num_tokens + sum(
            max(self.tell(child, depth + 1) for child in children) for children in thread.spawns
        )

    def segments(self, thread: Told) -> list[Segment]:
        segments = [Segment([self.dialect.child_prompt(thread.message)], False)]
        text = ""
        for step in thread.steps:
            if isinstance(step, str):
                text += step
                continue
            spawn = Spawn(tuple(child.message for child in step))
            text += f"<spawn>{threads(spawn.messages)}</spawn>"
            joins = [self.join(child) for child in step]
            segments += [
                self.written(text, spawn),
                Segment([self.dialect.resume("", text, joins).text], False),
            ]
            text = ""
        join = self.join(thread)
        return [*segments, self.written(f"{text}<join>{join.message}</join>", join)]

    def join(self, thread: Told) -> Join:
        return Join(thread.join, self.dialect.succeeds(thread.join))

    def written(self, text: str, operation: Operation) -> Segment:
        """What the model is to write in one call, which ends at the first stop."""
        ends = [text.index(stop) + len(stop) for stop in self.dialect.stops if stop in text]
        read = self.dialect.read("", text[: min(ends)])
        if read != operation or min(ends) < len(text):
            raise DataError(
                f"{text!r} is told as {operation} and would be read as {read}: keep tags out of "
                "texts and messages, and children in every spawn"
            )
        return Segment([text], True)
