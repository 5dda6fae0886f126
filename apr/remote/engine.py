"""The ``Engine`` seam over a server. What a request looks like is an ``Api``'s to know.

A server tells a stop in its own way, and some cannot be told of every kind of stop. So the ids are
looked at here, too: a completion ends at the first stop whatever the server thinks of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple, Protocol

from apr.errors import EngineError, InputError
from apr.interfaces import Codec, check_request
from apr.remote.http import Http, Json
from apr.types import Completion, FinishReason, Ids, Sampling


class Piece(NamedTuple):
    """What one piece of a reply adds to a completion."""

    ids: Ids
    logprobs: tuple[float, ...]  # of ``ids`` at temperature 1; empty where the server has none
    finish_reason: FinishReason | None = None  # the server's; None while it goes on
    hang_up: bool = False  # it is finished though the server goes on


class Exchange(Protocol):
    """One request, and the reading of the reply."""

    @property
    def body(self) -> Json:
        """What to ask."""
        ...

    def read(self, reply: Json) -> Piece:
        """What a piece of the reply adds to the pieces before.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: it is not what this kind of server
                replies.
            EngineError: the server gave up.
        """
        ...


class Counted:
    """Base of the exchanges with servers that tell ids: as many as were asked for, and no more."""

    server = "the server"
    hint: str
    """Why it may have stopped before, or what to do then."""

    def __init__(self, body: Json, max_tokens: int) -> None:
        self.body = body
        self.max_tokens = max_tokens
        self.num_read = 0

    def piece(
        self, ids: Sequence[int], logprobs: Sequence[float], reason: FinishReason | None
    ) -> Piece:
        """The next piece, counted. As ``Exchange.read`` raises."""
        self.num_read += len(ids)
        told = f"{self.num_read} of {self.max_tokens} tokens"
        if self.num_read > self.max_tokens:
            raise ValueError(told)
        if reason is FinishReason.LENGTH and self.num_read < self.max_tokens:
            raise EngineError(f"{self.server} stopped after {told}: {self.hint}")
        return Piece(tuple(ids), tuple(logprobs), reason)


class Api(Protocol):
    """What one kind of server is asked, and how it answers."""

    @property
    def path(self) -> str: ...

    @property
    def context(self) -> int:
        """Most tokens of prompt and completion together."""
        ...

    def exchange(self, prompt_ids: Ids, sampling: Sampling, stream: bool) -> Exchange: ...


@dataclass
class Heard:
    """A completion while it is being heard."""

    sampling: Sampling
    codec: Codec | None
    on_tokens: Callable[[Sequence[int]], None] | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def take(self, piece: Piece) -> bool:
        """Whether the server need not go on."""
        decode = None if self.codec is None else self.codec.decode
        for i, id in enumerate(piece.ids):
            self.ids.append(id)
            self.logprobs += piece.logprobs[i : i + 1]
            if self.on_tokens is not None:
                self.on_tokens([id])
            if self.sampling.stops(self.ids, decode):
                self.finish_reason = FinishReason.STOP
                return piece.hang_up or piece.finish_reason is None
        self.finish_reason = piece.finish_reason or self.finish_reason
        return piece.hang_up

    def completion(self) -> Completion | None:
        """None where the reply ended too early."""
        if self.finish_reason is None:
            return None
        # Better no logprob than a wrong one: what reads traces leaves such calls out of training.
        complete = len(self.logprobs) == len(self.ids)
        logprobs = tuple(self.logprobs) if complete else ()
        return Completion(tuple(self.ids), logprobs, self.finish_reason)


class RemoteEngine:
    """Implements ``apr.interfaces.Engine`` over one server."""

    def __init__(
        self,
        http: Http,
        api: Api,
        codec: Codec | None,
        about: dict[str, Any],
        context: int | None = None,
    ) -> None:
        """
        Args:
            codec: needed for stop strings, and where the server tells text only.
            about: what traces note of the server.
            context: where less is wanted than the server has.
        """
        self.http = http
        self.api = api
        self.codec = codec
        self.about = about
        self.context = context or api.context

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> Completion:
        """As ``apr.interfaces.Engine.generate``.

        Raises:
            InputError: the server refuses the request.
        """
        check_request(prompt_ids, sampling, self.context, self.codec)
        stream = self.http.config.stream and on_tokens is not None
        exchange = self.api.exchange(tuple(prompt_ids), sampling, stream)
        heard = Heard(sampling, self.codec, on_tokens)

        def hear(reply: Json) -> bool:
            return heard.take(self._read(exchange, reply))

        await self.http.post(self.api.path, exchange.body, hear)
        completion = heard.completion()
        if completion is None:
            raise self.http.misread("a reply without an end")
        return completion

    async def close(self) -> None:
        """Close the connections of the running event loop, which otherwise does so at its end."""
        await self.http.close()

    def _read(self, exchange: Exchange, reply: Json) -> Piece:
        try:
            piece = _of_numbers(exchange.read(reply))
            if self.codec is not None:
                self.codec.decode(piece.ids)  # Whether it knows them: listeners decode, too.
            return piece
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise self.http.misread(f"{type(e).__name__}: {e}") from e


def _of_numbers(piece: Piece) -> Piece:
    """Raises TypeError or OverflowError where an id or a logprob is something else."""
    for id in piece.ids:
        if type(id) is not int or id < 0:
            raise TypeError(f"{id!r} is no id of a token")
    for logprob in piece.logprobs:
        if type(logprob) not in (float, int) or not isfinite(logprob):
            raise TypeError(f"{logprob!r} is no logprob")
    return piece
