"""Workers that see each other's tokens as they are written, on one cache of keys and values
(Hogwild! inference, Rodionov et al., 2504.06261; ``apr.engine.views`` says what each sees).

Nothing goes through the network twice. So keys and values stay what they were in the view of the
moment at which they were written, and what n workers write is not what a network would make of
their final texts.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from apr.engine.attention import PagedKV, page_bytes
from apr.engine.pages import PagePool
from apr.engine.sampler import draw
from apr.engine.sequence import Sequence as Worker
from apr.engine.views import SharedAttend, Token, shifts, view
from apr.models.llama import Llama
from apr.types import Completion, FinishReason

OnEnd = Callable[[int, Completion], bool]
Decode = Callable[[Sequence[int]], str]


@dataclass(eq=False, slots=True)
class Group:
    """Workers on one prompt."""

    prompt: list[int]
    workers: list[Worker]
    """Ids of each are its opening and what it sampled."""
    context: int
    """Most tokens of all blocks together."""
    on_end: OnEnd
    future: Future[list[Completion | None]]
    pages: list[int] = field(default_factory=list)
    """One for each block: the prompt's, then the workers'."""
    num_computed: list[int] = field(default_factory=list)
    """Of each block."""
    told: set[int] = field(default_factory=set)
    """Workers whose end ``on_end`` has heard of."""

    @property
    def blocks(self) -> list[list[int]]:
        return [self.prompt, *(w.ids for w in self.workers)]

    @property
    def live(self) -> list[int]:
        """Numbers of the workers that go on; nobody once the request is over."""
        if self.future.done():
            return []
        return [i for i, w in enumerate(self.workers) if not w.future.done()]

    def pending(self, page_size: int) -> list[Token]:
        """Ids that have not gone through the network, block by block.

        All of them go at once: each sees what the others write in the same step.
        """
        lengths = [len(ids) for ids in self.blocks]
        tokens = []
        for block, ids in enumerate(self.blocks):
            seen = set(view(block, len(lengths)))
            shift_B = shifts(block, lengths)
            for place in range(self.num_computed[block], len(ids)):
                reach_B = [n if b in seen else 0 for b, n in enumerate(lengths)]
                reach_B[block] = place + 1
                slot = self.pages[block] * page_size + place
                tokens.append(Token(ids[place], place, slot, reach_B, shift_B))
        return tokens

    def commit(self) -> dict[int, int]:
        """All that was pending is computed; returns for each live worker the row to sample from.

        Rows are counted from the group's first. A worker without an opening begins where the prompt
        ends.
        """
        ends: dict[int, int] = {}
        row = -1
        for block, ids in enumerate(self.blocks):
            if len(ids) > self.num_computed[block]:
                row += len(ids) - self.num_computed[block]
                ends[block] = row
                self.num_computed[block] = len(ids)
        return {i: ends[1 + i if 1 + i in ends else 0] for i in self.live}

    def settle(self) -> None:
        """End what is over, and resolve ``future`` where nobody goes on."""
        if self.future.done():
            return
        if sum(map(len, self.blocks)) + len(self.live) > self.context:
            for i in self.live:
                self.workers[i].finish(FinishReason.LENGTH)
        try:
            goes_on = [self.on_end(*end) for end in self.ended()]
        except Exception as e:  # A listener's fault: its own request fails, nobody else's.
            self.future.set_exception(e)
            return
        if not self.live or not all(goes_on):
            ends = [w.future.result() if w.future.done() else None for w in self.workers]
            self.future.set_result(ends)

    def ended(self) -> list[tuple[int, Completion]]:
        """Workers that have ended since this was last asked. Raises what a listener raised."""
        over = (i for i, w in enumerate(self.workers) if w.future.done())
        fresh = [i for i in over if i not in self.told]
        self.told.update(fresh)
        return [(i, self.workers[i].future.result()) for i in fresh]


class Hogwild:
    """Decodes groups of workers, all workers of all groups at the same time.

    A group is admitted when there are pages for its blocks. A page holds a whole context, but on a
    CPU takes up memory only as far as it has been written.
    """

    def __init__(
        self, model: Llama, context: int, max_batch: int, kv_gib: float, decode: Decode | None
    ) -> None:
        self.model = model
        self.context = context
        self.max_batch = max_batch
        self.decode = decode
        each = page_bytes(model.config, context, model.embed_tokens.weight.dtype)
        # A group of n has n + 1 blocks.
        self.pool = PagePool(min(int(kv_gib * 2**30) // each, 2 * max_batch))
        self.waiting: deque[Group] = deque()
        self.running: list[Group] = []

    @cached_property
    def kv(self) -> PagedKV:
        """Taken at the first request: most engines never have any."""
        weight = self.model.embed_tokens.weight
        pages, size = self.pool.num_pages, self.context
        return PagedKV(self.model.config, pages, size, weight.device, weight.dtype)

    @property
    def max_workers(self) -> int:
        """Most workers of one group."""
        return min(self.pool.num_pages - 1, self.max_batch)

    def add(self, group: Group) -> None:
        self.waiting.append(group)

    def remove(self, group: Group) -> None:
        """Let go of ``group``, wherever it is, and of its pages at once."""
        if group in self.running:
            self.running.remove(group)
            self.pool.release(group.pages)
        elif group in self.waiting:
            self.waiting.remove(group)

    def step(self) -> bool:
        """A token more of each worker; returns whether there was anything to do.

        One newcomer a step: what it begins with goes through the network by itself, since it would
        have everybody else padded to its length.
        """
        running = list(self.running)
        for groups in (self._admit(), running):
            if groups:
                self._forward(groups)
        return bool(self.running or self.waiting)

    def fail(self, error: Exception) -> None:
        """End every group with ``error``."""
        for group in [*self.running, *self.waiting]:
            if not group.future.done():
                group.future.set_exception(error)
            self.remove(group)

    def _admit(self) -> list[Group]:
        rows = sum(len(g.workers) for g in self.running)
        if not self.waiting or rows + len(self.waiting[0].workers) > self.max_batch:
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
                self.remove(group)

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
        for (group, worker), id, logprob in zip(chosen, *drawn, strict=True):
            # Whoever was cancelled since the step began hears nothing more.
            if not group.future.done():
                worker.extend([id], [logprob], self.decode)
