"""What lets an engine of this process work inside of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock

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
        self._waking = Lock()

    def wake(self) -> None:
        """There is about to be something to do, on the event loop that runs now.

        Raises:
            EngineError: another event loop is at work, in a thread of its own.
        """
        loop = asyncio.get_running_loop()
        with self._waking:
            if self._task is not None and not self._task.done():
                other = self._task.get_loop()
                if other is loop:
                    return
                if other.is_running():
                    raise EngineError(
                        "the engine is at work in another thread's event loop: give it all "
                        "requests from one, or make an engine for each thread"
                    )
            self._task = loop.create_task(self._work())
            self._task.add_done_callback(self._ended)

    async def _work(self) -> None:
        while self.step():
            await asyncio.sleep(0)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whatever it ended by, cancelled before it began included, nobody is left waiting."""
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self.fail(EngineError(f"the engine failed: {type(error).__name__}: {error}"))
