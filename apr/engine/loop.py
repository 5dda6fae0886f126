"""What lets an engine work inside of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from apr.errors import EngineError


class Loop:
    """Steps while there is anything to do; between two steps the event loop runs everybody else."""

    def __init__(self, step: Callable[[], bool], fail: Callable[[EngineError], None]) -> None:
        """
        Args:
            step: returns whether there was anything to do.
            fail: ends every request, since a step has raised.
        """
        self.step, self.fail = step, fail
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is something to do, on the event loop that runs now."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self.step():
                await asyncio.sleep(0)
        except Exception as e:
            self.fail(EngineError(f"the embedded engine failed: {type(e).__name__}: {e}"))
