"""A runtime whose engine gives scripted replies, prompt by prompt, and an observer that takes
down what it hears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr.dialects.tags import Tags
from apr.interfaces import Join
from apr.runtime import Observer, Path, Runtime
from apr.testing import ByteCodec, Reply, ScriptedEngine
from apr.trace import End, Trace
from apr.types import Sampling

Replies = Mapping[str, str | Reply | Sequence[str | Reply]]
CODEC = ByteCodec()


class Scripted(ScriptedEngine):
    """Gives the replies to a prompt one after the other."""

    def __init__(self, replies: Replies) -> None:
        left = {
            prompt: [given] if isinstance(given, str | Reply) else list(given)
            for prompt, given in replies.items()
        }
        super().__init__(lambda prompt: left[prompt].pop(0), CODEC)

    @property
    def seeds(self) -> list[int | None]:
        return [request.sampling.seed for request in self.requests]


def runtime_of(replies: Replies, seed: int | None = None, **options: Any) -> Runtime:
    sampling = Sampling(max_tokens=100, temperature=1.0, seed=seed)
    return Runtime(Scripted(replies), CODEC, Tags(), sampling, **options)


def engine_of(runtime: Runtime) -> Scripted:
    assert isinstance(runtime.engine, Scripted)
    return runtime.engine


class Diary(Observer):
    """Which threads there were, what they sampled and how they ended, by path."""

    def __init__(self) -> None:
        self.messages: dict[Path, str] = {}
        self.ids: dict[Path, list[int]] = {}
        self.ends: dict[Path, tuple[End, Join | None]] = {}

    def on_thread(self, path: Path, message: str) -> None:
        assert path not in self.messages
        assert not path or path[:-1] in self.messages
        self.messages[path], self.ids[path] = message, []

    def on_tokens(self, path: Path, ids: Sequence[int]) -> None:
        assert path not in self.ends
        assert ids
        self.ids[path] += ids

    def on_end(self, path: Path, end: End, join: Join | None) -> None:
        assert path in self.messages
        assert path not in self.ends
        self.ends[path] = end, join

    def agrees_with(self, trace: Trace) -> bool:
        """Whether it heard of exactly the threads of ``trace``, each at its place."""
        paths: list[Path] = []
        for thread in trace.threads:
            path: Path = ()
            if thread.parent is not None:
                siblings = [c for group in trace.threads[thread.parent].spawns for c in group]
                path = (*paths[thread.parent], siblings.index(thread.index))
            paths.append(path)
        threads = dict(zip(paths, trace.threads, strict=True))
        return (
            self.messages == {path: t.message for path, t in threads.items()}
            and self.ids == {p: [i for c in t.calls for i in c.ids] for p, t in threads.items()}
            and {p: (end, said(join)) for p, (end, join) in self.ends.items()}
            == {p: (t.end, (t.join, t.success)) for p, t in threads.items()}
        )


def said(join: Join | None) -> tuple[str, bool]:
    """What a thread says of it, and whether it claims success."""
    return (join.message, join.success) if join else ("", False)
