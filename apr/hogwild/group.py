"""One request of the Hogwild! engine: workers on one prompt, and how far each has come."""

from __future__ import annotations

from asyncio import CancelledError, Future
from collections.abc import Callable
from dataclasses import dataclass, field

from apr.engine.sequence import Sequence as Worker
from apr.engine.sequence import fail
from apr.hogwild.views import Token, shifts, view
from apr.types import Completion, FinishReason

OnEnd = Callable[[int, Completion], bool]


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
        except (Exception, CancelledError) as e:
            fail(self.future, e)  # A listener's fault: its own request fails, nobody else's.
        if self.future.done():
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
