"""One trace alone: its wall clock beside that of its critical path, token by token.

What siblings cost depends on the network. Where a token alone takes as long as reading the weights,
those of its siblings come nearly for nothing; where the weights lie in a cache, each has its price.
So there are two traces: real ones of a checkpoint, and one that a network of any shape replays.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from apr import api
from apr.countdown.problem import Split
from apr.engine import EmbeddedEngine, EngineConfig
from apr.interfaces import Engine
from apr.models.llama import Llama, LlamaConfig
from apr.trace import Trace
from benchmarks.overhead import CHILDREN, Replay, Trees
from benchmarks.sizes import Sizes
from benchmarks.work import token_seconds

_NEW = 200
"""Tokens to time one by, at most."""


class Alone(NamedTuple):
    """Traces run one at a time, beside the least that their critical path must take."""

    wall: float  # seconds
    sequential_tokens: int
    token: float  # seconds of one token of one request alone
    token_in_company: float  # the same beside as many others as a trace has children

    @property
    def ratio(self) -> float:
        return self.wall / (self.sequential_tokens * self.token)


def alone(model: api.Model, sizes: Sizes, n: int) -> Alone:
    """Solve problems of round ``n`` one after the other; those count whose traces have children."""
    wall, sequential = 0.0, 0
    tokens: list[tuple[float, float]] = []
    pool = 100 * sizes.alone
    for posed in api.pose(model.recipe, Split.TEST, (n + 1) * pool)[n * pool :]:
        trace = api.solve(model, posed)
        if len(trace.threads) < 2:
            continue
        wall += trace.wall_clock
        sequential += trace.sequential_tokens
        tokens.append(_token_seconds_of(model.engine, trace))
        if len(tokens) == sizes.alone:
            break
    return Alone(wall, sequential, *map(statistics.median, zip(*tokens, strict=True)))


def replayed(shape: LlamaConfig, config: EngineConfig) -> Alone:
    """One tree with ``CHILDREN`` children, its tokens written by a network of random weights."""
    tree = Trees(CHILDREN)
    network = Replay(shape, tree.expected(), real=True).eval()
    tree.run(EmbeddedEngine(network, config))  # Compiles, and warms up.
    (trace,) = tree.run(EmbeddedEngine(network, config))
    plain = Llama(shape)
    plain.init_weights(seed=0)
    tokens = _token_seconds_of(EmbeddedEngine(plain.eval(), config), trace)
    return Alone(trace.wall_clock, trace.sequential_tokens, *tokens)


def _token_seconds_of(engine: Engine, trace: Trace) -> tuple[float, float]:
    """Seconds of a token after the prompt of ``trace``: alone, and beside as many as children."""
    prompt = trace.root.calls[0].prompt_ids
    num_new = min(_NEW, engine.context - len(prompt))
    company = [prompt] * (len(trace.threads) - 1)
    return token_seconds(engine, [prompt], num_new), token_seconds(engine, company, num_new)
