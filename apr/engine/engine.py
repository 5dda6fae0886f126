"""The engine itself: requests in, completions out, one step of the network after another.

A step runs to its end on the event loop's own thread, and between two steps the loop runs everybody
else. So a cancelled request is gone before the next step, and nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from math import inf

from apr.config import check_drawing, check_least
from apr.engine.attention import PagedKV, page_bytes
from apr.engine.graphs import DecodeGraphs
from apr.engine.kernel import CompiledKV, attention_library, compiled_page_bytes
from apr.engine.pages import PagePool
from apr.engine.scheduler import Chunk, Scheduler
from apr.engine.sequence import fail, sequence_of
from apr.engine.steps import Steps, StepsInC, StepsInTorch
from apr.errors import ConfigError, EngineError
from apr.interfaces import Codec, check_request
from apr.loop import Loop
from apr.models.llama import Llama, LlamaConfig
from apr.models.precision import Precision
from apr.types import Completion, Sampling

_CACHED_BATCHES = 4
"""Full batches of whole contexts that the page pool holds at most; all but one serve the cache."""


_MOST_OF_A_PAGE = 1024
"""Tokens: attention in C has the scores of a page on its stack."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of the embedded engine."""

    max_batch: int = 256
    """Most sequences in one step."""
    max_batch_tokens: int = 2048
    """Most tokens in one step; longer prompts go through in chunks."""
    kv_gib: float = 1.0
    """Most memory for keys and values, in GiB; taken up as it is used."""
    page_size: int = 16
    """Tokens of one page."""
    kv_precision: Precision = Precision.MODEL
    """What keys and values are stored as; all but ``model`` shift logprobs a little."""
    products: Precision = Precision.MODEL
    """What both sides of a product are rounded to: of a network of float32, in C.

    On processors that multiply so, half the time of a product in bfloat16 and a quarter in int8,
    and as much less to read of the weights; logprobs shift, by int8 most."""
    burst: int = 32
    """Most ids in a row that a sequence is given before the others are heard, in C; 1 is none."""
    cuda_graphs: bool = True
    """Whether a GPU decodes by graphs captured once for each size of batch."""
    prefix_cache: bool = True
    """Keep pages of finished sequences for those that begin alike."""

    def __post_init__(self) -> None:
        check_least(
            1,
            max_batch=self.max_batch,
            max_batch_tokens=self.max_batch_tokens,
            page_size=self.page_size,
            burst=self.burst,
        )
        if self.page_size > _MOST_OF_A_PAGE:
            raise ConfigError(f"page_size is {self.page_size}: give up to {_MOST_OF_A_PAGE}")
        if not 0 < self.kv_gib < inf:
            raise ConfigError(f"kv_gib is {self.kv_gib}: give a number of GiB above 0")


class EmbeddedEngine:
    """Implements ``apr.interfaces.Engine`` over a network in this process.

    The weights are the caller's: training them in place changes what is sampled next. Call
    ``weights_changed`` then, so that nothing of the old weights is met again.
    """

    def __init__(
        self, model: Llama, config: EngineConfig | None = None, codec: Codec | None = None
    ) -> None:
        """
        Args:
            codec: needed for stop strings only.

        Raises:
            ConfigError: the memory for keys and values does not hold one page; there are no such
                products for this network here, or another engine over it has others.
        """
        self.model = model
        self.config = config = config or EngineConfig()
        model.pack(config.products)
        self.codec = codec
        self.device = model.embed_tokens.weight.device
        self.kv = _kv(model, config)
        num_pages = self.kv.num_pages
        self.scheduler = Scheduler(
            PagePool(num_pages),
            config.page_size,
            config.max_batch,
            config.max_batch_tokens,
            config.prefix_cache,
        )
        self.steps = self._steps()
        self.context = min(model.config.max_position_embeddings, num_pages * config.page_size)
        self._loop = Loop(self._step, self._fail)

    async def generate(
        self,
        prompt_ids: Ids[int],
        sampling: Sampling,
        on_tokens: Callable[[Ids[int]], None] | None = None,
    ) -> Completion:
        """As ``apr.interfaces.Engine.generate``."""
        self.check(prompt_ids, sampling)
        sequence = sequence_of(prompt_ids, sampling, on_tokens)
        self._loop.wake()
        self.scheduler.add(sequence)
        try:
            return await sequence.future
        except asyncio.CancelledError:  # All other ends come from a step, which has let go of it.
            self.scheduler.remove(sequence)
            raise

    def weights_changed(self) -> None:
        """Forget all that was derived from the old weights; between requests only."""
        self.model.pack(self.config.products)
        self.scheduler.cache.clear()

    def _steps(self) -> Steps:
        if isinstance(self.kv, CompiledKV):
            return StepsInC(self.model, self.kv, self.scheduler, self.config.burst)
        graphs = self.config.cuda_graphs and self.device.type == "cuda"
        return StepsInTorch(
            self.model, self.kv, DecodeGraphs(self.model, self.kv) if graphs else None
        )

    def check(self, prompt_ids: Ids[int], sampling: Sampling) -> None:
        """Raise what ``generate`` raises of a request that cannot be met."""
        vocabulary = self.model.config.vocab_size
        check_request(prompt_ids, sampling, self.context, self.codec, vocabulary)
        check_drawing(sampling.temperature, sampling.top_p, sampling.top_k)

    def _step(self) -> bool:
        """One step of whatever there is to do; returns whether there was anything."""
        chunks = self.scheduler.schedule()
        if chunks:
            self.step(chunks)
        return bool(chunks)

    def _fail(self, error: EngineError) -> None:
        """End every request with ``error``."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            fail(sequence.future, error)
            self.scheduler.remove(sequence)

    def step(self, chunks: list[Chunk]) -> None:
        """Run ``chunks`` through the network and hand out what was sampled."""
        sampled = self.steps(chunks)
        self.scheduler.commit(chunks)
        decode = self.codec.decode if self.codec else None
        for sequence, ids, logprobs in sampled:
            sequence.num_computed += len(ids) - 1
            sequence.extend(ids, logprobs, decode)
            if sequence.future.done():
                self.scheduler.remove(sequence)


def _kv(model: Llama, config: EngineConfig) -> CompiledKV | PagedKV:
    """Where keys and values live: in what is compiled, if it can be."""
    weight, size, precision = model.embed_tokens.weight, config.page_size, config.kv_precision
    library = None
    if model.compiled is not None:
        library = attention_library(model.config, size, weight.dtype, precision)
    if library is not None:
        num_pages = _num_pages(model.config, config, compiled_page_bytes(library, model.config))
        return CompiledKV(library, model.config, num_pages, weight.dtype)
    num_pages = _num_pages(model.config, config, page_bytes(model.config, size, weight.dtype))
    return PagedKV(model.config, num_pages, size, weight.device, weight.dtype, precision)


def _num_pages(model: LlamaConfig, config: EngineConfig, each: int) -> int:
    """Pages of ``each`` bytes that memory allows, but no more than can ever be of use."""
    affordable = int(config.kv_gib * 2**30) // each
    if affordable < 1:
        raise ConfigError(
            f"kv_gib = {config.kv_gib} does not hold one page of {each} bytes: raise it"
        )
    whole_context = -(-model.max_position_embeddings // config.page_size)
    return min(affordable, _CACHED_BATCHES * config.max_batch * whole_context)
