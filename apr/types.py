"""Values that every layer shares. Knows nothing of engines, tasks or text formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import compress
from typing import NamedTuple

Ids = tuple[int, ...]
_LONGEST_CHARACTER = 4
"""Bytes of a character, at most."""
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"


class FinishReason(StrEnum):
    """Why an engine stopped sampling."""

    STOP = "stop"
    """A stop id or stop string was sampled; it is the end of the sampled ids."""
    LENGTH = "length"
    """``max_tokens`` were sampled."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one completion."""

    max_tokens: int
    """Most tokens to sample; never more than context minus prompt."""
    temperature: float = 0.0
    """0 is greedy. Logprobs returned are those at temperature 1, whatever this is."""
    top_p: float = 1.0
    """Nucleus mass to sample from; 1 is all."""
    top_k: int = 0
    """Number of likeliest tokens to sample from; 0 is all."""
    seed: int | None = None
    """Same seed, same prompt, same ids, whatever else the engine is doing."""
    stop_ids: Ids = ()
    """Token ids that end the completion; the id that matched is kept."""
    stop_strings: tuple[str, ...] = ()
    """Strings that end the completion; the ids that make up the match are kept."""

    def stops(
        self, ids: Sequence[int], decode: Callable[[Sequence[int]], str] | None, start: int = 0
    ) -> bool:
        """Whether the last of ``ids`` ends what was sampled, the ids from number ``start`` on.

        Without ``decode`` no string does.
        """
        if ids[-1] in self.stop_ids:
            return True
        if not self.stop_strings or decode is None:
            return False
        # A token spells a byte at least, so a stop string never reaches further back than this; one
        # token more, since some decoders leave out a space that text begins with.
        reach = max(len(s.encode()) for s in self.stop_strings) + 1
        for more in range(_LONGEST_CHARACTER):
            tail = decode(ids[max(start, len(ids) - reach - more) :])
            if any(s in tail for s in self.stop_strings):
                return True
            # It may begin inside of a character, and some decoders then read none of what follows.
            if _UNREADABLE not in tail:
                break
        return False


class Completion(NamedTuple):
    """What an engine returns for one prompt."""

    ids: Ids  # sampled ids, the stop included
    logprobs: tuple[float, ...]  # of each id at temperature 1; none where the engine tells none
    finish_reason: FinishReason


class Grade(NamedTuple):
    """The verdict of a task's exact checker."""

    correct: bool
    reason: str  # one sentence: why not, or "correct"


class Segment(NamedTuple):
    """A stretch of a demonstration that one side wrote."""

    pieces: list[str]  # text, cut where the tokenizer cuts it, too; into tokens is quickest
    demonstrated: bool  # True: what the model is to write; False: prompt or injected message


class Demonstration(NamedTuple):
    """A solver-written trace, as the training sequences it amounts to."""

    sequences: list[list[Segment]]  # the root thread's first; segments alternate who writes
    succeeded: list[bool]  # for each sequence, whether its thread found what it was asked for
    depths: list[int]  # for each sequence, how deep in the tree its thread stands; 0 is the root
    solved: bool
    num_children: int
    total_tokens: int  # tokens demonstrated, over all threads
    sequential_tokens: int  # those on the critical path

    def only(self, kept: Sequence[bool]) -> Demonstration:
        """The same with those sequences to learn from that are ``kept``; all its figures stay."""
        return self._replace(
            sequences=list(compress(self.sequences, kept)),
            succeeded=list(compress(self.succeeded, kept)),
            depths=list(compress(self.depths, kept)),
        )
