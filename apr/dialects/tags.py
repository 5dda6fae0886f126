"""The `tags` dialect, for any task::

    ...<spawn><thread>first</thread><thread>second</thread></spawn>     a thread spawns two children
    <thread>first</thread>                                              what a child starts from
    ...<join>what it found</join>                                       how a child ends
    <joined><thread>what it found</thread><thread></thread></joined>    what the parent goes on from

A child that failed, was cancelled or was refused is told as an empty thread, exactly like one that
joined with nothing: to the parent they mean the same, and a model needs no token to learn it. The
reason stays on the trace.

A thread that ends without any tag joins with its text: plain chain of thought.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from apr.interfaces import Append, Join, Malformed, Operation, Spawn

TAGS = (
    "<spawn>",
    "</spawn>",
    "<thread>",
    "</thread>",
    "<join>",
    "</join>",
    "<joined>",
    "</joined>",
)
_TAG = re.compile("|".join(map(re.escape, TAGS)))
_OPENED = re.compile(r"<(spawn|join)>")
_CLOSED = re.compile(r"</(spawn|join)>")


class Tags:
    """Spawn and join as tags around messages; messages are kept to the letter."""

    name: str = "tags"
    stops: tuple[str, ...] = ("</spawn>", "</join>")

    def succeeds(self, message: str) -> bool:
        """Whether a thread that joins with ``message`` claims success."""
        return bool(message.strip())

    def child_prompt(self, message: str) -> str:
        return threads([message])

    def read(self, prompt: str, sampled: str) -> Operation:
        """The first operation that was closed; what follows it came with the closing token."""
        opened = _OPENED.search(sampled)
        closed = _CLOSED.search(sampled, opened.end()) if opened else None
        if opened is None or closed is None:
            return self._join(sampled)
        if opened[1] != closed[1]:
            return Malformed(f"A {opened[0]} was closed by {closed[0]}.")
        body = sampled[opened.end() : closed.start()]
        return _spawn(body) if opened[1] == "spawn" else self._join(body)

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Append:
        messages = [j.message if isinstance(j, Join) else "" for j in joins]
        return Append(f"<joined>{threads(messages)}</joined>")

    def _join(self, message: str) -> Join | Malformed:
        return stray_tag(message) or Join(message, self.succeeds(message))


def threads(messages: Iterable[str]) -> str:
    """``messages``, each as a thread."""
    return "".join(f"<thread>{m}</thread>" for m in messages)


def messages(text: str) -> list[str]:
    """Those of the threads in ``text``: the other end of ``threads``."""
    return _apart(text)[0]


def stray_tag(message: str) -> Malformed | None:
    """Why ``message`` cannot be passed on: a tag in it would be read as an operation."""
    found = _TAG.search(message)
    return Malformed(f"A message holds the tag {found[0]}.") if found else None


def _spawn(body: str) -> Spawn | Malformed:
    found, outside = _apart(body)
    if not found:
        return Malformed("A spawn holds no <thread>.")
    if outside.strip():
        return Malformed("A spawn holds text outside of its threads.")
    return next(filter(None, map(stray_tag, found)), None) or Spawn(tuple(found))


def _apart(text: str) -> tuple[list[str], str]:
    """Messages of the threads in ``text``, and what is left of it.

    In one pass, however many tags there are: a model that repeats one must not hold up the others.
    """
    found, outside = [], []
    at = 0
    while (start := text.find("<thread>", at)) >= 0 and (end := text.find("</thread>", start)) >= 0:
        outside.append(text[at:start])
        found.append(text[start + len("<thread>") : end])
        at = end + len("</thread>")
    return found, "".join([*outside, text[at:]])
