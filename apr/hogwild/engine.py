"""Workers that see each other's tokens as they are written, on one cache of keys and values
(Hogwild! inference, Rodionov et al., 2504.06261; ``apr.hogwild.views`` says what each sees).

Nothing goes through the network twice. So keys and values stay what they were in the view of the
moment at which they were written, and what n workers write is not what a network would make of
their final texts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import index

import torch
from torch import Tensor

from apr.engine import EmbeddedEngine
from apr.engine.attention import PagedKV, page_bytes
from apr.engine.pages import PagePool
from apr.engine.sampler import draw
from apr.engine.sequence import Sequence as Worker
from apr.engine.sequence import fail, sequence_of
from apr.errors import ConfigError, ContextError, EngineError
from apr.hogwild.group import Group, OnEnd
from apr.hogwild.views import SharedAttend
from apr.loop import Loop
from apr.types import Completion, Sampling


class HogwildEngine:
    """Implements ``apr.interfaces.SharedEngine`` beside an embedded engine, over its network.

    It decodes groups of workers, all workers of all groups at the same time. A group is admitted
    when there are pages for its blocks. A page holds a whole context, but on a CPU takes up memory
    only as far as it has been written.
    """

    def __init__(self, engine: EmbeddedEngine) -> None:
        """
        Args:
            engine: does what takes no company. Of its settings ``max_batch``, ``products`` and
                ``kv_gib`` hold here, too, the last for memory beside its own.
        """
        self.engine = engine
        self.model, self.context = engine.model, engine.context
        config, weight = self.model.config, self.model.embed_tokens.weight
        affordable = int(engine.config.kv_gib * 2**30) // page_bytes(
            config, self.context, weight.dtype
        )
        # A group of n has n + 1 blocks.
        num_pages = min(affordable, 2 * engine.config.max_batch)
        self.pool = PagePool(num_pages)
        self.kv = PagedKV(config, num_pages, self.context, weight.device, weight.dtype)
        self.waiting: deque[Group] = deque()
        self.running: list[Group] = []
        self._loop = Loop(self._step, self._fail)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> Completion:
        """As ``apr.interfaces.Engine.generate``."""
        return await self.engine.generate(prompt_ids, sampling, on_tokens)

    async def generate_together(
        self,
        prompt_ids: Sequence[int],
        openings: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        context: int | None = None,
        on_tokens: Callable[[int, Sequence[int]], None] | None = None,
        on_end: OnEnd | None = None,
    ) -> list[Completion | None]:
        """As ``apr.interfaces.SharedEngine.generate_together``."""
        context = min(context or self.context, self.context)
        self._check(prompt_ids, openings, samplings, context)
        workers = [
            sequence_of(opening, sampling, None if on_tokens is None else partial(on_tokens, i))
            for i, (opening, sampling) in enumerate(zip(openings, samplings, strict=True))
        ]
        future = asyncio.get_running_loop().create_future()
        group = Group(list(map(index, prompt_ids)), workers, context, on_end or _goes_on, future)
        self._loop.wake()
        self.waiting.append(group)
        try:
            return await group.future
        finally:
            self._remove(group)

    @property
    def max_workers(self) -> int:
        """Most workers of one group."""
        return max(0, min(self.pool.num_pages - 1, self.engine.config.max_batch))

    def _check(
        self,
        prompt_ids: Sequence[int],
        openings: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        context: int,
    ) -> None:
        for opening, sampling in zip(openings, samplings, strict=True):
            self.engine.check([*prompt_ids, *opening], sampling)
        if not prompt_ids or not openings:
            raise ContextError("give a prompt of at least one token, and at least one worker")
        num_ids = len(prompt_ids) + sum(map(len, openings))
        if num_ids + len(openings) > context:
            raise ContextError(
                f"{num_ids} tokens of prompt and openings leave no room for one of each of "
                f"{len(openings)} workers in a context of {context}"
            )
        if len(openings) > self.max_workers:
            raise ConfigError(
                f"{len(openings)} workers on one cache are more than the engine holds, which is "
                f"{self.max_workers}: raise kv_gib or max_batch, or ask for fewer"
            )

    def _remove(self, group: Group) -> None:
        """Let go of ``group``, wherever it is, and of its pages at once."""
        if group in self.running:
            self.running.remove(group)
            self.pool.release(group.pages)
        elif group in self.waiting:
            self.waiting.remove(group)

    def _step(self) -> bool:
        """A token more of each worker; returns whether there was anything to do.

        One newcomer a step: what it begins with goes through the network by itself, since it would
        have everybody else padded to its length.
        """
        running = list(self.running)
        for groups in (self._admit(), running):
            if groups:
                self._forward(groups)
        return bool(self.running or self.waiting)

    def _fail(self, error: EngineError) -> None:
        """End every group with ``error``."""
        for group in [*self.running, *self.waiting]:
            fail(group.future, error)
            self._remove(group)

    def _admit(self) -> list[Group]:
        rows = sum(len(g.workers) for g in self.running)
        if not self.waiting or rows + len(self.waiting[0].workers) > self.engine.config.max_batch:
            return []
        num_blocks = 1 + len(self.waiting[0].workers)
        if num_blocks > self.pool.num_free:
            return []
        group = self.waiting.popleft()
        group.pages = self.pool.allocate(num_blocks)
        group.num_computed = [0] * num_blocks
        self.running.append(group)
        return [group]

    @torch.inference_mode()
    def _forward(self, groups: Sequence[Group]) -> None:
        tokens_GR = [group.pending(self.context) for group in groups]
        attend = SharedAttend(self.model, self.kv, tokens_GR, [group.pages for group in groups])
        device = self.kv.k.device
        ids_N = torch.tensor([t.id for tokens in tokens_GR for t in tokens], device=device)
        places_N = torch.tensor([t.place for tokens in tokens_GR for t in tokens], device=device)
        hidden_ND = self.model(ids_N, places_N, attend)
        self._sample(groups, hidden_ND)
        for group in groups:
            group.settle()
            if group.future.done():
                self._remove(group)

    def _sample(self, groups: Sequence[Group], hidden_ND: Tensor) -> None:
        rows: list[int] = []
        chosen: list[tuple[Group, Worker]] = []
        first = 0
        for group in groups:
            before = sum(group.num_computed)
            for i, row in group.commit().items():
                rows.append(first + row)
                chosen.append((group, group.workers[i]))
            first += sum(group.num_computed) - before
        if not rows:
            return
        logits_BV = self.model.logits(hidden_ND[torch.tensor(rows, device=hidden_ND.device)])
        samplings = [worker.sampling for _, worker in chosen]
        drawn = draw(logits_BV, samplings, [worker.next_uniforms(1)[0] for _, worker in chosen])
        codec = self.engine.codec
        decode = codec.decode if codec else None
        for (group, worker), id, logprob in zip(chosen, *drawn, strict=True):
            # Whoever was cancelled since the step began hears nothing more.
            if not group.future.done():
                worker.extend([id], [logprob], decode)


def _goes_on(worker: int, completion: Completion) -> bool:
    return True
