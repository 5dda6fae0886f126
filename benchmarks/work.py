"""What engines are asked to do: the reference work, and shapes of trees of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from apr import api
from apr.countdown.problem import Split
from apr.errors import EngineError
from apr.interfaces import Engine
from apr.models.llama import Llama, LlamaConfig
from apr.types import Ids, Sampling
from benchmarks.sizes import Sizes

Generate = Callable[[int], list[list[int]]]
"""Does the work of a round and returns the ids of each request.

Each round has work of its own, so that none finds what the last has left in a cache.
"""


def reference_shape(sizes: Sizes) -> LlamaConfig:
    """That of the Llama of the reference work."""
    return LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        head_dim=sizes.hidden_size // sizes.num_heads,
        max_position_embeddings=sizes.context,
    )


def reference_network(sizes: Sizes) -> Llama:
    """The Llama of the reference work, of random weights."""
    model = Llama(reference_shape(sizes))
    model.init_weights(seed=0)
    return model.eval()


def random_ids(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (count, length), generator=generator).tolist()


def reference(engine: Engine, sizes: Sizes) -> Generate:
    """All requests at once, greedily and without stops."""

    async def run(n: int) -> list[list[int]]:
        prompts = random_ids(sizes.requests, sizes.prompt, sizes.vocabulary, n)
        asked = (engine.generate(p, Sampling(sizes.new)) for p in prompts)
        return [list(c.ids) for c in await asyncio.gather(*asked)]

    return lambda n: asyncio.run(run(n))


def token_seconds(engine: Engine, prompts: Sequence[Ids], num_new: int) -> float:
    """Seconds of each token of ``prompts``, all decoded at once; what comes before the first aside.

    Tokens may be heard several in a row, so whole calls are compared: a long one and a short one.
    """

    async def run(count: int) -> float:
        start = perf_counter()
        await asyncio.gather(*(engine.generate(p, Sampling(count)) for p in prompts))
        return perf_counter() - start

    asyncio.run(run(1))  # Now the prompts are in the cache.
    short, long = asyncio.run(run(1)), asyncio.run(run(num_new))
    return (long - short) / (num_new - 1)


def flight(model: api.Model, sizes: Sizes) -> Generate:
    """Problems solved at the same time; the ids of a request are all those of a trace."""
    count = sizes.flight

    def run(n: int) -> list[list[int]]:
        problems = api.pose(model.recipe, Split.TEST, (n + 1) * count)[n * count :]
        traces = api.evaluate(model, problems, concurrency=count)
        failed = [trace.error for trace in traces if trace.error is not None]
        if failed:
            raise EngineError(failed[0])
        return [[id for t in trace.threads for c in t.calls for id in c.ids] for trace in traces]

    return run


def forks(engine: Engine, vocabulary: int, sizes: Sizes) -> Generate:
    """Parents that sample a message, then children that go on from all their parent saw.

    The ids of a request are those of a parent and its children.
    """
    own = random_ids(sizes.children, sizes.message, vocabulary, seed=-1)

    async def family(prefix: list[int]) -> list[int]:
        spawn = await engine.generate(prefix, Sampling(sizes.message))
        shared = [*prefix, *spawn.ids]
        asked = (engine.generate(shared + ids, Sampling(sizes.written)) for ids in own)
        return [id for c in [spawn, *await asyncio.gather(*asked)] for id in c.ids]

    async def run(n: int) -> list[list[int]]:
        prefixes = random_ids(sizes.parents, sizes.prefix - sizes.message, vocabulary, n)
        return await asyncio.gather(*map(family, prefixes))

    return lambda n: asyncio.run(run(n))
