"""What a token costs outside of the network and the sampler: a network that costs nothing.

It writes again what a trace says: which id follows is looked up by the id before and its position.
So a runtime over it runs whole trees of threads, and what the clock shows beside the lookups and
the sampler is the scheduler, the cache, asyncio, the runtime and the trace. The same work over a
real network of the same shape says what share of a step that is.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apr.dialects.tags import Tags
from apr.engine import EmbeddedEngine, EngineConfig
from apr.engine.sampler import draw
from apr.models.llama import Attend, Llama, LlamaConfig
from apr.models.native import CompiledAttend, CompiledLlama, Wanted
from apr.models.precision import Precision
from apr.runtime import Runtime
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import Trace
from apr.types import Sampling
from benchmarks.machine import best

CHILDREN = 11
_CODEC = ByteCodec()
_PROMPT = "r" * 40


class Replay(Llama):
    """A network that writes what ``trace`` says; ``real`` computes all the same, for its cost."""

    following: Tensor
    certain: Tensor

    def __init__(self, config: LlamaConfig, trace: Trace, real: bool) -> None:
        super().__init__(config)
        self.init_weights(seed=0)
        self.real = real
        self.seconds = 0.0
        """Spent in here."""
        self.num_rows: Counter[int] = Counter()
        """How often torch sampled from how many rows."""
        self.largest_batch = 0
        self.register_buffer("following", _following(config, trace), persistent=False)
        self.register_buffer("certain", 100 * torch.eye(config.vocab_size), persistent=False)

    def pack(self, products: Precision = Precision.MODEL) -> None:
        super().pack(products)
        if self.compiled is not None:
            self.compiled = ReplayInC(self)

    def forward(self, ids_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        """Hidden states of which the first number is the id that follows."""
        start = time.perf_counter()
        if self.real:
            hidden_ND = super().forward(ids_N, positions_N, attend).clone()
        else:
            hidden_ND = self.embed_tokens.weight.new_empty(len(ids_N), self.config.hidden_size)
        hidden_ND[:, 0] = self.following[ids_N, positions_N]
        self.seconds += time.perf_counter() - start
        return hidden_ND

    def logits(self, hidden_ND: Tensor) -> Tensor:
        start = time.perf_counter()
        self.num_rows[len(hidden_ND)] += 1
        self.largest_batch = max(self.largest_batch, len(hidden_ND))
        if self.real:
            super().logits(hidden_ND)
        logits_NV = self.certain[hidden_ND[:, 0].long()]
        self.seconds += time.perf_counter() - start
        return logits_NV


class ReplayInC(CompiledLlama):
    """The same, where C samples, too: as many ids in a row as it would."""

    def __init__(self, replay: Replay) -> None:
        super().__init__(replay)
        self.replay, self.following = replay, replay.following.long().numpy()

    def decode(
        self, ids_N: Tensor, positions_N: Tensor, attend: CompiledAttend, wanted: Wanted
    ) -> list[tuple[list[int], list[float]]]:
        start = time.perf_counter()
        last = wanted.last_R
        told = self.told(ids_N.numpy()[last], positions_N.numpy()[last], wanted)
        if self.replay.real:
            # The same rows in each of its steps, whatever it samples.
            limits = np.array([len(ids) for ids in told])
            free = wanted._replace(limits_R=limits, stops=[()] * len(told))
            super().decode(ids_N, positions_N, attend, free)
        self.replay.largest_batch = max(self.replay.largest_batch, len(last))
        self.replay.seconds += time.perf_counter() - start
        return [(ids, [0.0] * len(ids)) for ids in told]

    def told(
        self, ids: NDArray[np.int64], places: NDArray[np.int64], wanted: Wanted
    ) -> list[list[int]]:
        """What ``decode`` of C makes of rows that stand at ``ids`` and ``places``."""
        num_rows, most = wanted.uniforms_RS.shape
        told: list[list[int]] = [[] for _ in range(num_rows)]
        going, stops = np.arange(num_rows), wanted.stops[0]  # Of all, in these trees.
        for step in range(most):
            ids = self.following[ids, places]
            for row, id in zip(going.tolist(), ids.tolist(), strict=True):
                told[row].append(id)
            goes_on = ~np.isin(ids, list(stops)) & (step + 1 < wanted.limits_R[going])
            going, ids, places = going[goes_on], ids[goes_on], places[goes_on] + 1
            if len(going) == 0 or (num_rows - len(going)) * wanted.patience > num_rows:
                break
        return told


def _following(config: LlamaConfig, trace: Trace) -> Tensor:
    """(vocabulary, context): the id that follows an id at a position, in every call alike."""
    table = torch.full((config.vocab_size, config.max_position_embeddings), -1.0)
    for call in [c for thread in trace.threads for c in thread.calls]:
        ids = [*call.prompt_ids, *call.ids]
        for position in range(len(call.prompt_ids) - 1, len(ids) - 1):
            known = table[ids[position], position]
            assert known in (-1, ids[position + 1]), "two threads go on differently from here"
            table[ids[position], position] = ids[position + 1]
    return table


def script(prompt: str) -> str:
    """What a thread writes: a root spawns children, each of which writes a letter of its own.

    A message's length names its letter, so that id and position tell all threads apart.
    """
    if prompt == _PROMPT:
        messages = ("A" * (12 + k) for k in range(CHILDREN))
        return f"<spawn>{''.join(f'<thread>{m}</thread>' for m in messages)}</spawn>"
    if prompt.startswith(_PROMPT):
        return "z" * 30 + "<join>.</join>"
    child = prompt.count("A") - 12
    return chr(ord("a") + child) * (80 + 12 * child) + "<join>.</join>"


@dataclass(frozen=True)
class Trees:
    """As many trees as have ``num_threads`` children together, all at the same time."""

    num_threads: int

    def expected(self) -> Trace:
        return asyncio.run(_runtime(ScriptedEngine(script, _CODEC)).run(_PROMPT))

    def run(self, engine: EmbeddedEngine) -> list[Trace]:
        runtime = _runtime(engine)
        num_trees = -(-self.num_threads // CHILDREN)

        async def run() -> list[Trace]:
            return await asyncio.gather(*(runtime.run(_PROMPT) for _ in range(num_trees)))

        return asyncio.run(run())


def _runtime(engine: ScriptedEngine | EmbeddedEngine) -> Runtime:
    return Runtime(engine, _CODEC, Tags(), Sampling(max_tokens=400))


class Overhead(NamedTuple):
    """Microseconds of each sampled token."""

    outside: float  # of network and sampler
    sampler: float
    step: float  # all of it, where the network is real
    num_tokens: int
    largest_batch: int

    @property
    def share(self) -> float:
        """Of a real step's time."""
        return self.outside / self.step


def overhead(shape: LlamaConfig, num_threads: int, rounds: int) -> Overhead:
    """Measure with networks of the given shape; figures are medians of ``rounds``."""
    trees = Trees(num_threads)
    expected = trees.expected()
    free, step = [], []
    for _ in range(rounds):
        network, seconds, num_tokens = _run(shape, trees, expected, real=False)
        free.append(seconds - network.seconds)
        real, seconds, _ = _run(shape, trees, expected, real=True)
        step.append(seconds)
    by_torch = _sampler_seconds(network)
    by_c = 0.0 if real.compiled is None else real.compiled.seconds()["sampler"]
    each = 1e6 / num_tokens
    return Overhead(
        (statistics.median(free) - by_torch) * each,
        (by_torch + by_c) * each,
        statistics.median(step) * each,
        num_tokens,
        network.largest_batch,
    )


def _run(
    shape: LlamaConfig, trees: Trees, expected: Trace, real: bool
) -> tuple[Replay, float, int]:
    """Seconds of one run, the first of its engine, and the tokens sampled in it."""
    network = Replay(shape, expected, real).eval()
    engine = EmbeddedEngine(network, EngineConfig(max_batch=1024, kv_gib=2.0), _CODEC)
    start = time.perf_counter()
    traces = trees.run(engine)
    seconds = time.perf_counter() - start
    for trace in traces:
        assert trace.error is None, trace.error
        assert [[c.ids for c in t.calls] for t in trace.threads] == [
            [c.ids for c in t.calls] for t in expected.threads
        ], "the double did not write what the trace says"
    return network, seconds, sum(t.total_tokens for t in traces)


def _sampler_seconds(network: Replay) -> float:
    """What sampling in torch takes of one run: each size of batch again by itself."""

    def once(num_rows: int) -> float:
        logits = torch.randn(num_rows, network.config.vocab_size)
        return best(lambda: draw(logits, [Sampling(1)] * num_rows, [0.5] * num_rows), 3)

    return sum(times * once(num_rows) for num_rows, times in network.num_rows.items())
