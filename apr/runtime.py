"""Runs one problem as a tree of threads, over any engine, codec and dialect.

What the model does wrong (malformed text, a limit met, a full context) is data: it is noted on the
thread and told to the parent where the dialect can. What the world does wrong is an error: the
trace is cut short and says so. Knows no engine implementation, no task and no text format.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from apr.config import check_least
from apr.errors import ContextError, EngineError
from apr.interfaces import Append, Codec, Dialect, Engine, Join, Malformed, Spawn
from apr.trace import Call, End, Thread, Trace
from apr.types import Completion, FinishReason, Ids, Sampling

Path = tuple[int, ...]
"""Where a thread is in its tree: the root is (), its third child (2,), that one's first (2, 0)."""


class ChildContext(StrEnum):
    """What a child sees before its message."""

    FRESH = "fresh"
    """Nothing (the paper's way)."""
    FORK = "fork"
    """All that its parent saw and wrote, the spawn included."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may spend. A limit met is data on the trace, never an error.

    Tokens and threads are shared out, so that a seeded trace does not depend on which thread ran
    first: a spawn divides what its thread has left, and gets back what its children left over.
    """

    depth: int = 8
    """Levels of threads below the root; 0 refuses every spawn."""
    children: int = 64
    """Children of one spawn; those beyond are refused."""
    threads: int = 1024
    """Threads of the trace, the root included; those beyond are refused."""
    calls: int = 256
    """Calls of one thread; ends one that spawns in circles."""
    total_tokens: int | None = None
    """Sampled tokens of the trace. At a spawn the parent keeps a share as large as a child's."""
    seconds: float | None = None
    """Wall clock of the run."""
    context: int | None = None
    """Most tokens of prompt and completion together, where less than the engine's context."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            least = 0 if name in ("depth", "seconds") else 1
            check_least(least, **{f"limit {name}": getattr(self, name)})


class Observer:
    """Hears of a run while it happens; each method does nothing until a subclass overrides it."""

    def on_thread(self, path: Path, message: str) -> None:
        """A thread was spawned; its parent is ``path[:-1]``."""

    def on_tokens(self, path: Path, ids: Sequence[int]) -> None:
        """A thread sampled ``ids``; where the engine cannot stream, when its call ends."""

    def on_end(self, path: Path, end: End, join: Join | None) -> None:
        """A thread ended; ``join`` is what it returned, where it did."""


@dataclass(frozen=True)
class Runtime:
    """How to run a problem; one instance runs any number of them, also at the same time."""

    engine: Engine
    codec: Codec
    dialect: Dialect
    sampling: Sampling
    """For every call; ``max_tokens`` is cut to what context and limits leave. With a seed, each
    call gets its own, made from the seed, its prompt, the thread's path and the number of the call,
    so that problems sampled with one seed are independent of each other."""
    limits: Limits = field(default_factory=Limits)
    child_context: ChildContext = ChildContext.FRESH
    first_success: bool = False
    """The first child to join with a success cancels its siblings and all below them."""

    async def run(self, prompt: str, observer: Observer | None = None) -> Trace:
        """Run the thread that starts from ``prompt``, and all that it spawns.

        Threads are numbered depth first, in the order written. Cancelling cancels every call.

        Returns:
            A trace without problem, method, answer and grade, which are the caller's to fill in.
            Where the engine failed, it holds what there was until then, and ``error`` is set.

        Raises:
            ContextError: ``prompt`` leaves no room for one sampled token.
        """
        return await self.go_on(self.root_ids(prompt), (), prompt, observer)

    async def go_on(
        self, prompt_ids: Ids, written: Ids, message: str, observer: Observer | None = None
    ) -> Trace:
        """Run a thread that stands half written, and all that it spawns. As ``run``, but a context
        without room is data.

        Args:
            written: what follows the prompt already; the dialect reads it as the thread's own.
            message: what the trace says that the thread was given.
        """
        run = _Run(self, observer or Observer())
        try:
            await run.live(run.open((), message, run.purse), prompt_ids, written)
        except EngineError as e:
            run.close((), End.FAILED)
            return run.trace(error=f"{type(e).__name__}: {e}")
        except asyncio.CancelledError:
            run.close((), End.CANCELLED)
            raise
        return run.trace(error=None)

    def reseeded(self, number: int) -> Runtime:
        """The same for one of several runs on one prompt: where seeded, with a seed of its own."""
        seed = self.sampling.seed
        seed = None if seed is None else derived_seed(seed, number)
        return replace(self, sampling=replace(self.sampling, seed=seed))

    @property
    def context(self) -> int:
        """Most tokens of prompt and completion together."""
        return min(self.engine.context, self.limits.context or self.engine.context)

    def start_ids(self, text: str) -> Ids:
        """Prompt ids of a context that holds nothing but ``text``."""
        bos = () if self.codec.bos_id is None else (self.codec.bos_id,)
        return bos + self.codec.encode(text)

    def root_ids(self, prompt: str) -> Ids:
        """``start_ids`` of a whole run.

        Raises:
            ContextError: ``prompt`` leaves no room for one sampled token.
        """
        prompt_ids = self.start_ids(prompt)
        if len(prompt_ids) >= self.context:
            raise ContextError(
                f"the prompt has {len(prompt_ids)} tokens, which leaves no room in a context of "
                f"{self.context}: shorten the prompt or use a longer context"
            )
        return prompt_ids

    def child_ids(self, parent: Call, message: str) -> Ids:
        """Prompt ids of a child that ``parent`` spawned with ``message``."""
        text = self.dialect.child_prompt(message)
        if self.child_context is ChildContext.FRESH:
            return self.start_ids(text)
        return parent.prompt_ids + parent.ids + self.codec.encode(text)

    def resume_ids(self, parent: Call, joins: Sequence[Join | Malformed]) -> Ids:
        """Prompt ids from which the thread of ``parent`` goes on once its children have ended."""
        resumed = self.dialect.resume(*self.texts(parent), joins)
        if isinstance(resumed, Append):
            return parent.prompt_ids + parent.ids + self.codec.encode(resumed.text)
        return self.start_ids(resumed.text)

    def texts(self, call: Call) -> tuple[str, str]:
        """Prompt and sampled text of ``call``, without the marks of beginning and end."""
        prompt, ids = call.prompt_ids, call.ids
        if prompt and prompt[0] == self.codec.bos_id:
            prompt = prompt[1:]
        if ids and ids[-1] == self.codec.eos_id:
            ids = ids[:-1]
        return self.codec.decode(prompt), self.codec.decode(ids)

    def sampling_of(self, path: Path, number: int, prompt_ids: Ids, max_tokens: int) -> Sampling:
        """How to sample call ``number`` of the thread at ``path``."""
        seed = self.sampling.seed
        stops = {s: self.codec.token_id(s) for s in self.dialect.stops}
        ids = [self.codec.eos_id, *stops.values()]
        return replace(
            self.sampling,
            max_tokens=max_tokens,
            seed=None if seed is None else derived_seed(seed, prompt_ids, path, number),
            stop_ids=self.sampling.stop_ids + tuple(i for i in ids if i is not None),
            stop_strings=self.sampling.stop_strings
            + tuple(s for s, id in stops.items() if id is None),
        )


@dataclass
class _Purse:
    """What a thread, with all it spawns, may still spend."""

    tokens: int | None  # None is no limit
    threads: int

    def share(self, num_children: int) -> list[_Purse]:
        """Take out one thread and one purse for each child; the parent keeps a share of tokens."""
        self.threads -= num_children
        tokens = None if self.tokens is None else self.tokens // (num_children + 1)
        threads = self.threads // max(1, num_children)
        self.spend((tokens or 0) * num_children)
        self.threads -= threads * num_children
        return [_Purse(tokens, threads) for _ in range(num_children)]

    def spend(self, num_tokens: int) -> None:
        if self.tokens is not None:
            self.tokens -= num_tokens

    def put_back(self, rest: _Purse) -> None:
        self.spend(-(rest.tokens or 0))
        self.threads += rest.threads


@dataclass
class _Thread:
    """A thread while it runs."""

    path: Path
    message: str
    purse: _Purse
    calls: list[Call] = field(default_factory=list)
    spawns: list[list[Path]] = field(default_factory=list)
    end: End | None = None
    join: Join | None = None
    notes: list[str] = field(default_factory=list)

    def freeze(self, index: dict[Path, int]) -> Thread:
        assert self.end is not None
        return Thread(
            index=index[self.path],
            parent=index[self.path[:-1]] if self.path else None,
            message=self.message,
            calls=tuple(self.calls),
            spawns=tuple(tuple(index[c] for c in children) for children in self.spawns),
            end=self.end,
            join=self.join.message if self.join else "",
            success=self.join is not None and self.join.success,
            notes=tuple(self.notes),
        )


class _Run:
    """The state of one run: its threads, its clock."""

    def __init__(self, runtime: Runtime, observer: Observer) -> None:
        self.runtime = runtime
        self.observer = observer
        self.limits = limits = runtime.limits
        self.clock = asyncio.get_running_loop().time
        self.start = self.clock()
        self.deadline = None if limits.seconds is None else self.start + limits.seconds
        self.purse = _Purse(limits.total_tokens, limits.threads - 1)
        self.threads: dict[Path, _Thread] = {}

    async def live(self, thread: _Thread, prompt_ids: Ids, written: Ids = ()) -> Join | Malformed:
        """Decode ``thread`` until it joins or cannot go on; returns what its parent is told.

        Args:
            written: what the thread has written after its prompt, in calls that are not its own.
        """
        while True:
            max_tokens, reason = self.allowance(thread, prompt_ids + written)
            if max_tokens < 1:
                break
            call = await self.call(thread, prompt_ids + written, max_tokens)
            if call.finish_reason is None:
                reason = self.out_of_time
            if call.finish_reason is not FinishReason.STOP:
                break
            call = replace(call, prompt_ids=prompt_ids, ids=written + call.ids)
            operation = self.runtime.dialect.read(*self.runtime.texts(call))
            if not isinstance(operation, Spawn):
                return self.finish(thread, operation)
            joins = await self.spawn(thread, call, operation.messages)
            prompt_ids, written = self.runtime.resume_ids(call, joins), ()
        thread.notes.append(reason)
        self.end(thread, End.EXHAUSTED)
        return Malformed(reason)

    def allowance(self, thread: _Thread, prompt_ids: Ids) -> tuple[int, str]:
        """Most tokens that the next call of ``thread`` may sample, and what sets that bound."""
        context, sampling, limits = self.runtime.context, self.runtime.sampling, self.limits
        if len(thread.calls) >= limits.calls:
            return 0, f"The thread has made its {limits.calls} calls."
        if self.deadline is not None and self.clock() >= self.deadline:
            return 0, self.out_of_time
        bounds = [
            (context - len(prompt_ids), f"The context of {context} tokens is full."),
            (sampling.max_tokens, f"The call has sampled its {sampling.max_tokens} tokens."),
        ]
        if thread.purse.tokens is not None:
            ran_out = f"Its share of the trace's {limits.total_tokens} tokens ran out."
            bounds.insert(1, (thread.purse.tokens, ran_out))
        return min(bounds, key=lambda bound: bound[0])

    @property
    def out_of_time(self) -> str:
        return f"The run's {self.limits.seconds} seconds are over."

    async def call(self, thread: _Thread, prompt_ids: Ids, max_tokens: int) -> Call:
        """Make one call and put it on record, however it ends."""
        seen: list[int] = []
        completion: Completion | None = None

        def hear(ids: Sequence[int]) -> None:
            seen.extend(ids)
            self.observer.on_tokens(thread.path, ids)

        sampling = self.runtime.sampling_of(thread.path, len(thread.calls), prompt_ids, max_tokens)
        start = self.clock() - self.start
        try:
            async with asyncio.timeout_at(self.deadline) as timer:
                completion = await self.runtime.engine.generate(prompt_ids, sampling, hear)
            if unheard := completion.ids[len(seen) :]:
                hear(unheard)
        except TimeoutError:
            if not timer.expired():
                raise
        finally:
            ids, logprobs, finish_reason = completion or (tuple(seen), (), None)
            end = self.clock() - self.start
            call = Call(prompt_ids, ids, logprobs, finish_reason, start, end)
            thread.calls.append(call)
            thread.purse.spend(len(ids))
        return call

    def finish(self, thread: _Thread, operation: Join | Malformed) -> Join | Malformed:
        if isinstance(operation, Join):
            thread.join = operation
            self.end(thread, End.JOINED)
        else:
            thread.notes.append(operation.reason)
            self.end(thread, End.MALFORMED)
        return operation

    async def spawn(
        self, parent: _Thread, call: Call, messages: Sequence[str]
    ) -> list[Join | Malformed]:
        """Run the children that the limits admit; returns what each message came to, in order."""
        admitted, reason = self.admission(parent, len(messages))
        refused = len(messages) - admitted
        if refused:
            parent.notes.append(f"Refused {refused} of {len(messages)} children: {reason}")
        children = self.open_children(parent, messages[:admitted])
        parent.spawns.append([c.path for c in children])
        try:
            joins = await self.live_all(children, call)
        finally:  # Where it is cancelled, too: those who go on have what is left.
            for child in children:
                parent.purse.put_back(child.purse)
        for child in children:
            self.close(child.path, End.CANCELLED)
        return joins + [Malformed(reason)] * refused

    def admission(self, parent: _Thread, asked: int) -> tuple[int, str]:
        """How many of ``asked`` children may run, and what sets that bound."""
        limits = self.limits
        bounds = [
            (asked, "none."),
            (limits.children, f"a spawn may have {limits.children}."),
            (parent.purse.threads, f"its share of the trace's {limits.threads} threads ran out."),
        ]
        if len(parent.path) >= limits.depth:
            bounds = [(0, f"threads may be {limits.depth} levels deep.")]
        return min(bounds, key=lambda bound: bound[0])

    def open_children(self, parent: _Thread, messages: Sequence[str]) -> list[_Thread]:
        first = sum(map(len, parent.spawns))
        purses = parent.purse.share(len(messages))
        return [
            self.open((*parent.path, first + i), message, purse)
            for i, (message, purse) in enumerate(zip(messages, purses, strict=True))
        ]

    async def live_all(self, children: Sequence[_Thread], call: Call) -> list[Join | Malformed]:
        """Run ``children`` at the same time; raises the first failure itself, not a group."""
        tasks: list[asyncio.Task[Join | Malformed]] = []

        async def live(child: _Thread) -> Join | Malformed:
            told = await self.live(child, self.runtime.child_ids(call, child.message))
            if self.runtime.first_success and isinstance(told, Join) and told.success:
                for task in tasks:
                    if task is not asyncio.current_task():
                        task.cancel()
            return told

        try:
            async with asyncio.TaskGroup() as group:
                tasks += [group.create_task(live(child)) for child in children]
        except ExceptionGroup as e:
            raise _cause(e) from None
        cancelled = Malformed("A sibling succeeded first.")
        return [cancelled if task.cancelled() else task.result() for task in tasks]

    def open(self, path: Path, message: str, purse: _Purse) -> _Thread:
        thread = self.threads[path] = _Thread(path, message, purse)
        self.observer.on_thread(path, message)
        return thread

    def end(self, thread: _Thread, end: End) -> None:
        thread.end = end
        self.observer.on_end(thread.path, end, thread.join)

    def close(self, path: Path, end: End) -> None:
        """End every thread at and below ``path`` that has not ended by itself."""
        for thread in self.threads.values():
            if thread.end is None and thread.path[: len(path)] == path:
                self.end(thread, end)

    def trace(self, error: str | None) -> Trace:
        paths = sorted(self.threads)
        index = {path: i for i, path in enumerate(paths)}
        threads = tuple(self.threads[path].freeze(index) for path in paths)
        return Trace(problem={}, method="", threads=threads, error=error)


def derived_seed(*key: int | tuple[int, ...]) -> int:
    """31 bits, which every server accepts; the same in every process, unlike ``hash``."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "big") >> 1


def _cause(group: ExceptionGroup) -> Exception:
    """One exception of a group: a defect before a failure of the engine, which would hide it."""
    defects = [e for e in group.exceptions if not isinstance(e, EngineError)]
    return (defects or list(group.exceptions))[0]
