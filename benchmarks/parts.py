"""Where the time of the embedded engine goes: its parts, each without those that it calls."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

from apr.engine import EmbeddedEngine
from apr.engine.sampler import draw
from apr.engine.steps import StepsInTorch
from apr.models.llama import Attend, Llama
from benchmarks.work import Generate

NETWORK = "rest of the network"

P = ParamSpec("P")
R = TypeVar("R")


class Clock:
    """Seconds by part. A part stands still while one that it calls runs."""

    def __init__(self, outside: str, wait: Callable[[], None]) -> None:
        """
        Args:
            outside: name of what is in no part.
            wait: for the device to be done.
        """
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running = [outside]
        self._wait = wait
        self._since = time.perf_counter()

    def timed(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            self.settle()
            self._running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.settle()
                self._running.pop()

        return run

    def settle(self) -> None:
        """Note the time that has passed for the part that runs."""
        self._wait()
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


def where_time_goes(ours: EmbeddedEngine, work: Generate) -> dict[str, float]:
    """Seconds of one run of ``work`` by ``ours``, which cannot be used for anything else then."""
    if isinstance(ours.steps, StepsInTorch):
        ours.steps.graphs = None  # A graph is one launch, into which no clock looks.
    work(0)
    cuda = ours.model.embed_tokens.weight.is_cuda
    clock = Clock("scheduler, cache, asyncio", torch.cuda.synchronize if cuda else lambda: None)
    compiled = ours.model.compiled
    _watch(ours.model, clock)
    if compiled is not None:
        compiled.decode = clock.timed(NETWORK, compiled.decode)  # type: ignore[method-assign]
    with patch("apr.engine.steps.draw", clock.timed("sampler", draw)):
        clock.settle()
        clock.seconds.clear()
        before = {} if compiled is None else compiled.seconds()
        work(1)
        clock.settle()
        for part, spent in {} if compiled is None else compiled.seconds().items():
            clock.seconds[part] += spent - before[part]
            clock.seconds[NETWORK] -= spent - before[part]
    return dict(sorted(clock.seconds.items(), key=lambda part: -part[1]))


def _watch(network: Llama, clock: Clock) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.forward = clock.timed("matrix products", module.forward)
    forward = network.forward

    def watched(ids_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        return forward(ids_N, positions_N, clock.timed("attention", attend))

    network.forward = clock.timed(NETWORK, watched)  # type: ignore[method-assign]
