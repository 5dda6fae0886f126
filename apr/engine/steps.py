"""How a step of the engine is computed and sampled from: in C, where there is a CPU and a compiler,
or in torch, on a GPU as graphs.

Axis suffixes: ``_N`` token of the step, ``_B`` sequence that is sampled from, ``_V`` vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apr.engine.attention import PagedKV
from apr.engine.graphs import DecodeGraphs
from apr.engine.kernel import CompiledKV
from apr.engine.sampler import draw
from apr.engine.scheduler import Chunk, Scheduler
from apr.engine.sequence import Sequence
from apr.models.llama import Llama
from apr.models.native import Wanted

Numbers = NDArray[np.int64]

_BURST_WORK = 2 * 10**10
"""Multiplications between two looks at who has come or gone: 0.1 to 0.2 s of two cores."""
_PATIENCE = 32
"""A burst is over when more than one in so many of its sequences have ended: somebody may wait."""
_PATIENCE_IN_PARTS = 8
"""The same where there are others beside, so that it is worth while to fill a cache for a part."""
_WAIT = 16
"""Rows that take as long as reading the weights does; a step of fewer is no shorter."""
_LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_ROWS_PER_THREAD = 8
"""Sequences that keep a thread busy."""


class Sampled(NamedTuple):
    """What a step gives one sequence."""

    sequence: Sequence
    ids: list[int]  # in a row
    logprobs: list[float]


class Steps(Protocol):
    """Runs chunks through the network and samples behind those that complete a sequence."""

    def __call__(self, chunks: list[Chunk]) -> list[Sampled]: ...


class StepsInC:
    """A step, and on with its sequences as long as nobody needs to look up."""

    def __init__(self, model: Llama, kv: CompiledKV, scheduler: Scheduler, burst: int) -> None:
        """
        Args:
            burst: most ids in a row.
        """
        self.model, self.kv, self.scheduler, self.burst = model, kv, scheduler, burst
        self.num_parameters = model.num_parameters
        self.pages_at_hand = self._pages_at_hand()

    def __call__(self, chunks: list[Chunk]) -> list[Sampled]:
        most = self._most(chunks)
        chunks = self.kv.order(chunks)
        size = _ROWS_PER_THREAD * torch.get_num_threads()
        parts = split(chunks, size, self.pages_at_hand) if most > 1 else [chunks]
        patience = _PATIENCE if len(parts) == 1 else _PATIENCE_IN_PARTS
        return [sampled for part in parts for sampled in self._decode(part, most, patience)]

    def _decode(self, chunks: list[Chunk], most: int, patience: int) -> list[Sampled]:
        """A step of ``chunks``, and up to so many ids in a row behind it."""
        ids_N, positions_N, last = _flat(chunks)
        rows = np.array([i for i, c in enumerate(chunks) if c.samples], np.int64)
        sequences = [chunks[i].sequence for i in rows]
        wanted = self._wanted(sequences, rows, last[rows], most, patience)
        assert self.model.compiled is not None, "what attends in C runs in C"
        told = self.model.compiled.decode(ids_N, positions_N, self.kv.attend(chunks), wanted)
        return [Sampled(s, *drawn) for s, drawn in zip(sequences, told, strict=True)]

    def _most(self, chunks: list[Chunk]) -> int:
        """How many ids in a row may be sampled behind ``chunks``, which get room for them."""
        if not all(c.samples and not c.sequence.sampling.stop_strings for c in chunks):
            return 1
        most = min(self.burst, _BURST_WORK // (max(len(chunks), _WAIT) * self.num_parameters))
        return self.scheduler.stretch(chunks, most) if most > 1 else 1

    def _pages_at_hand(self) -> int:
        """Pages that fit the last cache beside the weights; all, where those are most of it."""
        cache = _last_cache()
        room = cache - self.num_parameters * self.model.embed_tokens.weight.itemsize
        return room // self.kv.page_bytes if 2 * room > cache else self.kv.num_pages

    def _wanted(
        self, sequences: list[Sequence], rows: Numbers, last: Numbers, most: int, patience: int
    ) -> Wanted:
        samplings = [s.sampling for s in sequences]
        limits = [min(most, s.sampling.max_tokens - s.num_sampled) for s in sequences]
        uniforms = np.zeros((len(sequences), most))
        for row, sequence, limit in zip(uniforms, sequences, limits, strict=True):
            if sequence.sampling.temperature > 0:
                row[:limit] = sequence.next_uniforms(limit)
        everything = self.model.config.vocab_size
        return Wanted(
            rows,
            last,
            np.array([s.temperature for s in samplings], np.float64),
            np.array([s.top_p for s in samplings], np.float64),
            uniforms,
            np.array([min(s.top_k or everything, everything) for s in samplings], np.int64),
            np.array(limits, np.int64),
            [[id for id in s.stop_ids if id < everything] for s in samplings],
            patience,
        )


class StepsInTorch:
    """A step on any device."""

    def __init__(self, model: Llama, kv: PagedKV, graphs: DecodeGraphs | None) -> None:
        """
        Args:
            graphs: compute those chunks that are the next token of a sequence.
        """
        self.model, self.kv, self.graphs = model, kv, graphs
        self.device = model.embed_tokens.weight.device

    @torch.inference_mode()
    def __call__(self, chunks: list[Chunk]) -> list[Sampled]:
        if self.graphs is None:
            return self._compute(chunks)
        # Prompts come in at any time: those that go on by a token do not wait for their shapes.
        going_on = [c for c in chunks if _goes_on(c)]
        others = [c for c in chunks if not _goes_on(c)]
        sampled = self._compute(others) if others else []
        if going_on:
            sampled += _draw([c.sequence for c in going_on], self.graphs.logits(going_on))
        return sampled

    def _compute(self, chunks: list[Chunk]) -> list[Sampled]:
        chunks = self.kv.order(chunks)
        ids_N, positions_N, last = _flat(chunks)
        attend = self.kv.attend(chunks)
        hidden_ND = self.model(ids_N.to(self.device), positions_N.to(self.device), attend)
        rows = [i for i, c in enumerate(chunks) if c.samples]
        if not rows:
            return []
        logits_BV = self.model.logits(hidden_ND[torch.from_numpy(last[rows]).to(self.device)])
        return _draw([chunks[i].sequence for i in rows], logits_BV)


def _goes_on(chunk: Chunk) -> bool:
    """Whether ``chunk`` is the last token of its sequence, all before it being computed."""
    return chunk.samples and chunk.end - chunk.start == 1


def split(chunks: list[Chunk], size: int, num_pages: int) -> list[list[Chunk]]:
    """Parts to take a burst of one after another, so that a cache holds their keys and values.

    Args:
        size: chunks that a part grows by.
        num_pages: how many of those of its chunks a cache holds.
    """
    parts: list[list[Chunk]] = []
    pages: set[int] = set()
    for i in range(0, len(chunks), size):
        more = chunks[i : i + size]
        own = {page for c in more for page in c.sequence.pages}
        pages |= own
        if parts and len(pages) <= num_pages:
            parts[-1] += more
        else:
            parts.append(more)
            pages = own
    return parts


def _last_cache() -> int:
    """Bytes of the processor's third cache; 0 where nobody says so.

    As the kernel tells it: what libc says may be that of a whole machine, of which this is a part.
    """
    try:
        return int(_LAST_CACHE.read_text(encoding="ascii").strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 0


def _flat(chunks: list[Chunk]) -> tuple[Tensor, Tensor, Numbers]:
    """Ids and positions of all tokens, and which of them is the last of each chunk."""
    _, starts, ends = zip(*chunks, strict=True)
    lengths = np.array(ends) - starts
    past = lengths.cumsum()
    positions = np.arange(past[-1]) + np.repeat(starts - past + lengths, lengths)
    ids = [id for sequence, start, end in chunks for id in sequence.ids[start:end]]
    return torch.from_numpy(np.array(ids)), torch.from_numpy(positions), past - 1


def _draw(sequences: list[Sequence], logits_BV: Tensor) -> list[Sampled]:
    """An id for each of ``sequences``."""
    uniforms = [s.next_uniforms(1)[0] for s in sequences]
    drawn = draw(logits_BV, [s.sampling for s in sequences], uniforms)
    return [Sampled(s, [id], [lp]) for s, id, lp in zip(sequences, *drawn, strict=True)]
