"""Time that passes at once, so that no test waits and none depends on how long a machine takes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingLoop(asyncio.SelectorEventLoop):
    """Never waits: when nothing is left to do, its clock jumps to the next timer. Starts at 0."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready:
            timers = [t.when() for t in self._scheduled if not t.cancelled()]
            self.now = max(self.now, min(timers, default=self.now))
        super()._run_once()


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(coroutine)
