"""The seams. Everything above meets everything below through these Protocols.

An ``Engine`` turns prompt ids into sampled ids. A ``Codec`` turns text into ids and back. A
``Dialect`` finds spawn and join in a model's text and writes what comes back. A ``Task`` poses
problems and grades answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from apr.errors import ConfigError, ContextError
from apr.types import Completion, Grade, Ids, Sampling


class Engine(Protocol):
    """What turns prompt ids into sampled ids. Implemented by ``apr.engine`` and ``apr.remote``."""

    @property
    def context(self) -> int:
        """Most tokens of prompt and completion together."""
        ...

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> Completion:
        """Sample one completion.

        Cancelling the awaiting task cancels the request and frees what it held at once.
        ``on_tokens`` is called with ids as they are sampled, some in a row, where the engine can
        stream.

        Raises:
            EngineError: the engine is down, or failed.
            ContextError: prompt and ``max_tokens`` exceed the context.
            ConfigError: it cannot sample so, for instance stop strings without a codec.
            InputError: a server refuses the request.
        """
        ...


@runtime_checkable
class SharedEngine(Engine, Protocol):
    """An engine whose workers can see each other's tokens as they are written; few can do that."""

    async def generate_together(
        self,
        prompt_ids: Sequence[int],
        openings: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        context: int | None = None,
        on_tokens: Callable[[int, Sequence[int]], None] | None = None,
        on_end: Callable[[int, Completion], bool] | None = None,
    ) -> list[Completion | None]:
        """Sample one completion for each worker, a token of each at a time.

        A worker goes on from the prompt, then what the others have written so far, then its own.
        Cancelling the awaiting task cancels all workers and frees what they held at once.

        Args:
            openings: what each worker has written before it begins; where that is nothing, its
                first token follows the prompt alone.
            samplings: how each worker samples.
            context: most tokens of the prompt and all that is written, where less than the
                engine's. Where a token more of each does not fit, all end with LENGTH.
            on_tokens: called with a worker's number and ids as they are sampled.
            on_end: called with a worker's number and its completion once it has ended, in the order
                of steps, then of numbers. Where it returns False, all others stop where they are.

        Returns:
            for each worker its completion; None where it was stopped.

        Raises:
            EngineError: the engine is down, or failed.
            ContextError: the context does not hold the prompt, the openings and a token of each
                worker, or not a worker's ``max_tokens`` after its opening.
            ConfigError: there are more workers than the engine's memory holds at once.
        """
        ...


def check_request(
    prompt_ids: Sequence[int],
    sampling: Sampling,
    context: int,
    codec: Codec | None,
    vocabulary: int | None = None,
) -> None:
    """What no engine can meet.

    Args:
        codec: that of the engine, if it has one.
        vocabulary: how many ids its model knows, where that is known.

    Raises:
        ContextError: there is no prompt, it does not fit ``context`` with what is to follow, or the
            model does not know its ids.
        ConfigError: stop strings, and nothing that spells ids.
    """
    if not prompt_ids:
        raise ContextError("the prompt is empty: give at least one token")
    if sampling.max_tokens < 1 or len(prompt_ids) + sampling.max_tokens > context:
        raise ContextError(
            f"{len(prompt_ids)} tokens of prompt and {sampling.max_tokens} to sample do not "
            f"fit a context of {context}"
        )
    if sampling.stop_strings and codec is None:
        raise ConfigError("stop strings need a codec: give the engine one, or use stop ids")
    if vocabulary is not None and not 0 <= min(prompt_ids) <= max(prompt_ids) < vocabulary:
        raise ContextError(
            f"the prompt has ids outside of the model's vocabulary of {vocabulary}: "
            "use the tokenizer the model was trained with"
        )


class Codec(Protocol):
    """A tokenizer as the runtime sees it. ``decode(encode(text)) == text``."""

    def encode(self, text: str) -> Ids: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens spelled out."""
        ...

    def token_id(self, text: str) -> int | None:
        """The id of the single special token that spells ``text``, or None."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Spawn:
    """The model asks for child threads, one per message."""

    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """The thread is done and returns ``message`` (the root's message is its answer)."""

    message: str
    success: bool
    """Whether the thread claims to have found what it was asked for (for first-success)."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """The model wrote something the dialect cannot read; the thread ends with it on record."""

    reason: str


Operation = Spawn | Join | Malformed


@dataclass(frozen=True, slots=True)
class Append:
    """The parent goes on with its context extended by ``text``."""

    text: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The parent goes on with ``text`` as its whole new prompt (the paper's way)."""

    text: str


class Dialect(Protocol):
    """A text format in which a model writes spawn and join; a thread's text is all its state."""

    @property
    def name(self) -> str: ...

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end a call: the close of a spawn, the close of a join."""
        ...

    def child_prompt(self, message: str) -> str:
        """The text a child starts from.

        Its whole prompt when fresh; what follows the parent's text when forked.
        """
        ...

    def read(self, prompt: str, sampled: str) -> Operation:
        """The operation that ends ``sampled``, which followed ``prompt``. Never raises."""
        ...

    def resume(
        self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]
    ) -> Append | Rewrite:
        """How the parent goes on when its children have ended.

        ``joins`` are in spawn order; a Malformed stands for any failure, told where it can be.
        """
        ...


P_contra = TypeVar("P_contra", contravariant=True)


class Task(Protocol[P_contra]):
    """Poses problems and grades answers."""

    def prompt(self, problem: P_contra) -> str:
        """The root thread's prompt."""
        ...

    def answer(self, message: str) -> str | None:
        """The answer claimed in the root's final message; None where it claims there is none."""
        ...

    def canonical(self, answer: str) -> str:
        """``answer`` in a form in which equal claims are equal, right or wrong. Never raises."""
        ...

    def grade(self, problem: P_contra, answer: str | None) -> Grade: ...

    def to_json(self, problem: P_contra) -> dict[str, Any]: ...
