"""Doubles for tests of whatever is built on ``apr``: an engine that says what it is told to, and a
tokenizer of bytes. Both are exact and quick, and neither needs torch.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from apr.dialects.tags import TAGS
from apr.interfaces import Codec, check_request
from apr.types import Completion, FinishReason, Ids, Sampling


@dataclass(frozen=True, slots=True)
class Reply:
    """What a scripted engine does with one prompt."""

    text: str
    """What it samples: cut at the first stop; where there is none, the codec's end follows."""
    delay: float = 0.0
    """Seconds before each token."""
    error: Exception | None = None
    """Raised once the text is sampled, in place of an answer."""


Script = Mapping[str, str | Reply] | Sequence[str | Reply] | Callable[[str], str | Reply]


class Request(NamedTuple):
    """What a scripted engine was asked."""

    prompt: str  # text, without the beginning of sequence
    prompt_ids: Ids
    sampling: Sampling


class ByteCodec:
    """A token per byte of UTF-8, and one per special text. ``decode(encode(text)) == text``."""

    def __init__(
        self, specials: Sequence[str] = TAGS, bos: str | None = None, eos: str | None = "<|end|>"
    ) -> None:
        texts = [*specials, *(s for s in (bos, eos) if s is not None)]
        self.specials = {text: 256 + i for i, text in enumerate(dict.fromkeys(texts))}
        self.texts = dict(enumerate(bytes([i]) for i in range(256)))
        self.texts |= {id: text.encode() for text, id in self.specials.items()}
        self.bos_id = None if bos is None else self.specials[bos]
        self.eos_id = None if eos is None else self.specials[eos]
        longest_first = sorted(self.specials, key=len, reverse=True)
        self.cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, text: str) -> Ids:
        ids: list[int] = []
        for piece in self.cut.split(text) if self.specials else [text]:
            special = self.specials.get(piece)
            ids += piece.encode() if special is None else [special]
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        data = b"".join(map(self.texts.__getitem__, ids))
        return data.decode(errors="replace")

    def token_id(self, text: str) -> int | None:
        return self.specials.get(text)


class ScriptedEngine:
    """An ``Engine`` that samples what its script says.

    It stops, counts, streams and can be cancelled as a real one; ``logprob`` gives the logprob it
    reports for an id.
    """

    def __init__(self, script: Script, codec: Codec, context: int = 4096) -> None:
        """
        Args:
            script: replies by the whole text of the prompt, or in the order of the calls, or a
                function of the prompt's text.
        """
        self.script = script
        self.codec = codec
        self.context = context
        self.requests: list[Request] = []
        """Every call, in the order asked."""
        self.num_active = 0
        """Calls under way."""
        self.num_cancelled = 0

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> Completion:
        """As ``Engine.generate``.

        Raises:
            LookupError: the script has no reply to the prompt.
        """
        check_request(prompt_ids, sampling, self.context, self.codec)
        reply = self._reply(prompt_ids, sampling)
        self.num_active += 1
        try:
            return await self._sample(reply, sampling, on_tokens)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_active -= 1

    @staticmethod
    def logprob(id: int) -> float:
        return -(1 + id) / 1024

    def _reply(self, prompt_ids: Sequence[int], sampling: Sampling) -> Reply:
        ids = tuple(prompt_ids)
        text = self.codec.decode(ids[1:] if ids[:1] == (self.codec.bos_id,) else ids)
        self.requests.append(Request(text, ids, sampling))
        try:
            if callable(self.script):
                reply = self.script(text)
            elif isinstance(self.script, Mapping):
                reply = self.script[text]
            else:
                reply = self.script[len(self.requests) - 1]
        except LookupError as e:
            raise LookupError(f"no reply is scripted for the prompt {text!r}") from e
        return Reply(reply) if isinstance(reply, str) else reply

    async def _sample(
        self, reply: Reply, sampling: Sampling, on_tokens: Callable[[Sequence[int]], None] | None
    ) -> Completion:
        ids: list[int] = []
        reason = FinishReason.STOP
        for id in self._tokens(reply):
            if len(ids) == sampling.max_tokens:
                reason = FinishReason.LENGTH
                break
            await asyncio.sleep(reply.delay)
            ids.append(id)
            if on_tokens is not None:
                on_tokens([id])
            if sampling.stops(ids, self.codec.decode):
                break
        if reply.error is not None:
            raise reply.error
        return Completion(tuple(ids), tuple(map(self.logprob, ids)), reason)

    def _tokens(self, reply: Reply) -> Iterator[int]:
        yield from self.codec.encode(reply.text)
        if reply.error is None and self.codec.eos_id is not None:
            yield self.codec.eos_id
