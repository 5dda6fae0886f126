"""What the tests of real servers compare with: the embedded engine, and plain forward passes."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence
from typing import Any

import torch

from apr import api
from apr.interfaces import Engine
from apr.trace import Trace
from apr.train.attention import causal_reference
from apr.types import Completion, Sampling

NUM_PROBLEMS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def prompts_of(traces: Sequence[Trace], count: int) -> list[tuple[int, ...]]:
    """Prompts of roots and of children, and of roots that go on."""
    found = sorted({c.prompt_ids for t in traces for h in t.threads for c in h.calls})
    return random.Random(0).sample(found, count)


def complete(
    engine: Engine, prompts: Sequence[tuple[int, ...]], sampling: Sampling
) -> list[Completion]:
    async def run() -> list[Completion]:
        return await asyncio.gather(*(engine.generate(p, sampling) for p in prompts))

    return asyncio.run(run())


def logprobs_at_1(model: api.Model, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
    """By a plain forward pass."""
    network = model.engine.model  # type: ignore[attr-defined]
    everything = torch.tensor([*prompt, *ids])
    with torch.no_grad():
        hidden = network(everything, torch.arange(len(everything)), causal_reference)
        logprobs = network.logits(hidden).log_softmax(-1)[len(prompt) - 1 : -1]
    return logprobs.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist()


def facts(trace: Trace) -> list[Any]:
    """All of a trace but when it happened and the logprobs."""
    calls = [
        [(c.prompt_ids, c.ids, c.finish_reason) for c in t.calls]
        + [t.parent, t.message, t.end, t.join, t.success, t.notes]
        for t in trace.threads
    ]
    return [trace.problem, trace.answer, trace.grade, trace.error, calls]
