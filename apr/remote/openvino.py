"""OpenVINO GenAI (extra ``openvino``, checked against 2026.4) as an engine in this process.

Runs a Hugging Face folder of the Llama family as it is, or a folder that ``optimum-cli export
openvino`` wrote, with OpenVINO's own continuous batching, paged keys and values and prefix cache.
It tells the logprob of each sampled id at temperature 1, filters left aside; keys and values of
8 bits, which are its own default, blur them.

What it cannot do: take new weights, share a cache between workers while they write, run where torch
keeps weights on a GPU. A step cannot be interrupted, so a cancelled request leaves before the next.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apr.config import build_query, check_least
from apr.errors import CheckpointError, ConfigError, EngineError, InputError
from apr.interfaces import Codec, check_request
from apr.loop import Loop
from apr.remote.engine import Heard, Piece
from apr.types import Completion, FinishReason, Sampling

SCHEME = "openvino://"
_KV = ("f32", "f16", "bf16", "u8")
_MODEL = "openvino_model.xml"


@dataclass(frozen=True, slots=True)
class OpenVINOConfig:
    """Settings of OpenVINO; those of an address such as ``openvino://FOLDER?kv=u8&threads=2``."""

    kv: str = "f32"
    """Precision of keys and values: f32, f16, bf16 or u8."""
    kv_gib: int = 1
    """Memory for keys and values, in GiB; taken up at once."""
    max_batch: int = 256
    """Most sequences in one step."""
    max_batch_tokens: int = 2048
    """Most tokens in one step; longer prompts go through in chunks."""
    threads: int = 0
    """Threads to compute with; 0 is as many as there are cores."""
    prefix_cache: bool = True
    """Keep keys and values of finished sequences for those that begin alike."""

    def __post_init__(self) -> None:
        check_least(1, kv_gib=self.kv_gib, max_batch=self.max_batch)
        check_least(1, max_batch_tokens=self.max_batch_tokens)
        check_least(0, threads=self.threads)
        if self.kv not in _KV:
            raise ConfigError(f"kv is {self.kv!r}: give one of {', '.join(_KV)}")


@dataclass(eq=False)
class _Request:
    """A completion under way, and who waits for it."""

    handle: Any
    heard: Heard
    future: asyncio.Future[Completion]


class OpenVINOEngine:
    """Implements ``apr.interfaces.Engine`` over OpenVINO GenAI."""

    def __init__(
        self, checkpoint: Path, config: OpenVINOConfig | None = None, codec: Codec | None = None
    ) -> None:
        """
        Args:
            codec: needed for stop strings only.

        Raises:
            ConfigError: OpenVINO GenAI is not installed.
            CheckpointError: the folder is neither a Llama checkpoint nor an export.
        """
        self.genai = _genai()
        self.codec = codec
        self.config = config = config or OpenVINOConfig()
        self.context, self.vocabulary = _read_sizes(checkpoint)
        self.pipeline = self._load(checkpoint)
        version = importlib.metadata.version("openvino-genai")
        self.about = {
            "model": str(checkpoint),
            "server": f"openvino-genai {version}",
            "kv": config.kv,
        }
        """What traces note of it."""
        self._requests: set[_Request] = set()
        self._num_asked = 0
        self._loop = Loop(self._step, self._fail)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> Completion:
        """As ``apr.interfaces.Engine.generate``."""
        check_request(prompt_ids, sampling, self.context, self.codec, self.vocabulary)
        self._loop.wake()
        request = self._ask(prompt_ids, sampling, on_tokens)
        try:
            return await request.future
        finally:
            self._requests.discard(request)
            # Be it at a stop that OpenVINO does not know of; what has ended, stays ended.
            request.handle.cancel()

    def _ask(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        on_tokens: Callable[[Sequence[int]], None] | None,
    ) -> _Request:
        prompt = self.genai.openvino.Tensor(np.array([prompt_ids], np.int64))
        self._num_asked += 1
        try:
            asked = self._generation(sampling)
            handle = self.pipeline.add_request(self._num_asked, prompt, asked)
        except (RuntimeError, TypeError) as e:
            raise InputError(f"OpenVINO refuses the request: {e}") from e
        future = asyncio.get_running_loop().create_future()
        request = _Request(handle, Heard(sampling, self.codec, on_tokens), future)
        self._requests.add(request)
        return request

    def _generation(self, sampling: Sampling) -> Any:
        """The same in OpenVINO's words. Stops are looked for here, in what it tells."""
        asked = self.genai.GenerationConfig()
        asked.max_new_tokens = sampling.max_tokens
        asked.ignore_eos = True
        asked.set_eos_token_id(0)  # Any: a checkpoint may have none, which is refused.
        asked.logprobs = 1
        if sampling.temperature > 0:
            asked.do_sample = True
            asked.temperature = sampling.temperature
            asked.top_p = sampling.top_p
            asked.rng_seed = random.getrandbits(31) if sampling.seed is None else sampling.seed
            if sampling.top_k:
                asked.top_k = sampling.top_k
        return asked

    def _step(self) -> bool:
        """One step, be it to let go of what was cancelled; returns whether there was one to do."""
        if not self.pipeline.has_non_finished_requests():
            return False
        self.pipeline.step()
        for request in list(self._requests):
            self._hear(request)
        return True

    def _fail(self, error: EngineError) -> None:
        """End every request with ``error``."""
        for request in self._requests:
            if not request.future.done():
                request.future.set_exception(error)

    def _hear(self, request: _Request) -> None:
        """Take what a step has sampled; resolves the future at the end of the completion.

        Whoever was cancelled since the step began no longer waits, and hears nothing more.
        """
        handle, future = request.handle, request.future
        try:
            while handle.can_read() and not future.done():
                (told,) = handle.read().values()
                request.heard.take(self._piece(told))
                completion = request.heard.completion()
                if completion is not None and not future.done():
                    future.set_result(completion)
            if handle.get_status() == self.genai.GenerationStatus.IGNORED:
                raise EngineError(
                    f"OpenVINO gave a request up: {self.config.kv_gib} GiB of keys and values do "
                    "not hold it; raise kv_gib"
                )
        # Also the listener's fault: no other request fails of it.
        except (Exception, asyncio.CancelledError) as e:
            if not future.done():
                future.set_exception(e)

    def _piece(self, told: Any) -> Piece:
        ended = told.finish_reason == self.genai.GenerationFinishReason.LENGTH
        reason = FinishReason.LENGTH if ended else None
        return Piece(tuple(told.generated_ids), tuple(told.generated_log_probs), reason)

    def _load(self, checkpoint: Path) -> Any:
        """The pipeline, over a graph made for the purpose where the folder has none."""
        if (checkpoint / _MODEL).is_file():
            return self._pipeline(checkpoint)
        from apr.remote.openvino_graph import write_graph

        with tempfile.TemporaryDirectory() as folder:
            write_graph(checkpoint, Path(folder))
            return self._pipeline(Path(folder))

    def _pipeline(self, folder: Path) -> Any:
        scheduler = self.genai.SchedulerConfig()
        scheduler.cache_size = self.config.kv_gib
        scheduler.max_num_seqs = self.config.max_batch
        scheduler.max_num_batched_tokens = self.config.max_batch_tokens
        scheduler.enable_prefix_caching = self.config.prefix_cache
        properties = {
            "KV_CACHE_PRECISION": self.config.kv,
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.config.threads,
        }
        try:
            return self.genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        except RuntimeError as e:
            raise CheckpointError(f"OpenVINO cannot run what is in {folder}: {e}") from e


def open_address(address: str, codec: Codec | None) -> OpenVINOEngine:
    """The engine of an address such as ``openvino://runs/demo/checkpoint?kv=u8&threads=2``.

    Raises:
        ConfigError: an unknown setting, or a value that is none.
    """
    folder, _, query = address.removeprefix(SCHEME).partition("?")
    return OpenVINOEngine(Path(folder), build_query(OpenVINOConfig, query), codec)


def _genai() -> Any:
    try:
        return importlib.import_module("openvino_genai")
    except ImportError as e:
        raise ConfigError(
            f"OpenVINO GenAI cannot be used ({e}): install it with pip install 'apr[openvino]'"
        ) from e


def _read_sizes(checkpoint: Path) -> tuple[int, int]:
    """Context and number of ids, which both kinds of folder tell alike."""
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return int(config["max_position_embeddings"]), int(config["vocab_size"])
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise CheckpointError(f"no checkpoint at {checkpoint} that can be read: {e}") from e
