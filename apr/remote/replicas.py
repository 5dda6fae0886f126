"""Several servers of one model as one engine.

All calls of a run go to one server, so that siblings share its prefix cache and a parent finds
its own prefix there again. The ``Engine`` seam says nothing of traces, and need not: a thread's
first call picks a server and notes it in a context variable, and asyncio hands the context of a
task on to the tasks that it starts. So whatever a trace spawns after its first call inherits the
server, and two traces that run as tasks of their own do not hear of each other. ``pinned`` says
outright what belongs together, by the id of a trace, where tasks do not tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from apr.errors import ConfigError, EngineError
from apr.remote.engine import RemoteEngine
from apr.types import Completion, Sampling

_PIN: ContextVar[str | None] = ContextVar("apr_remote_pin", default=None)
_HOME: ContextVar[tuple[object, RemoteEngine] | None] = ContextVar("apr_remote_home", default=None)


@contextmanager
def pinned(trace_id: str) -> Iterator[None]:
    """Calls made within, and in tasks started within, go to the server that ``trace_id`` names.

    The same id names the same server in every process, as long as the servers are the same.
    """
    pin, home = _PIN.set(trace_id), _HOME.set(None)
    try:
        yield
    finally:
        _PIN.reset(pin)
        _HOME.reset(home)


class Replicas:
    """Implements ``apr.interfaces.Engine`` over several servers."""

    def __init__(self, engines: Sequence[RemoteEngine]) -> None:
        """
        Raises:
            ConfigError: there is none, or they serve different models.
        """
        models = {engine.about["model"] for engine in engines}
        if len(models) != 1:
            raise ConfigError(f"replicas serve one model, and not {len(models)}: {sorted(models)}")
        self.engines = tuple(engines)
        self.context = min(engine.context for engine in engines)

    @property
    def about(self) -> dict[str, Any]:
        """What traces note of the servers."""
        return {**self.engines[0].about, "url": [e.about["url"] for e in self.engines]}

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> Completion:
        """As ``apr.interfaces.Engine.generate``.

        A trace whose server is gone moves to another, unless ids of the call were heard already.
        """
        tried: list[RemoteEngine] = []
        heard = False

        def hear(ids: Sequence[int]) -> None:
            nonlocal heard
            heard = True
            if on_tokens is not None:
                on_tokens(ids)

        while True:
            engine = self._home(tried)
            try:
                return await engine.generate(prompt_ids, sampling, on_tokens and hear)
            except EngineError:
                tried.append(engine)
                if heard or len(tried) == len(self.engines) or not engine.http.is_down:
                    raise

    def _home(self, tried: Sequence[RemoteEngine]) -> RemoteEngine:
        """The server of the trace that asks; another one if it was tried in vain."""
        home = _HOME.get()
        if home is not None and home[0] is self and home[1] not in tried:
            return home[1]
        engine = self._choose([e for e in self.engines if e not in tried])
        _HOME.set((self, engine))
        return engine

    def _choose(self, engines: Sequence[RemoteEngine]) -> RemoteEngine:
        engines = [e for e in engines if not e.http.is_down] or engines
        pin = _PIN.get()
        if pin is None:
            return min(engines, key=lambda e: e.http.num_active)
        # The largest of the hashes wins, so that a server that goes moves its own traces only.
        return max(engines, key=lambda e: hashlib.sha256(f"{pin} {e.http.url}".encode()).digest())

    async def close(self) -> None:
        for engine in self.engines:
            await engine.close()
