"""Connections to a server, kept and reused within an event loop and closed when the loop ends."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from ssl import SSLContext
from typing import Any

import anyio
import httpx

from apr.errors import ConfigError

_KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: uvicorn, under vLLM and SGLang, hangs up after 5."""


@cache
def trusted() -> SSLContext:
    """Certificates to trust; reading them takes longer than most requests."""
    return httpx.create_ssl_context()


@contextmanager
def setting_up() -> Iterator[None]:
    """Make a client in the body, which reads the environment.

    Raises:
        ConfigError: it names a proxy or certificates that cannot be used.
    """
    try:
        yield
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as e:
        raise ConfigError(
            f"cannot make connections ({e}): mend the proxies and certificates in the environment, "
            "such as ALL_PROXY and SSL_CERT_FILE"
        ) from e


async def tidily(request: Coroutine[Any, Any, None]) -> None:
    """Await ``request``; when cancelled, cancel it and wait until it has closed its connection.

    httpcore closes connections within shields of anyio, which ``Task.cancel`` of asyncio breaks
    through: it would forget, still open, all others that it was about to close, such as the idle
    ones of a server that died. So a request is a task that nobody but a scope of anyio cancels.
    """
    scope = anyio.CancelScope()

    async def scoped() -> None:
        with scope:
            await request

    task = asyncio.create_task(scoped())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        scope.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise


class Session:
    """What belongs to one event loop: the connections, and the places for requests."""

    def __init__(self, client: httpx.AsyncClient, places: int) -> None:
        self.client = client
        self.gate = asyncio.Semaphore(places)


class Sessions:
    """A session for each event loop that runs, be it in threads of their own at the same time."""

    def __init__(
        self, url: str, headers: dict[str, str], places: int, connect_seconds: float
    ) -> None:
        self.url = url
        self.headers = headers
        self.places = places
        self.connect_seconds = connect_seconds
        # No lock: a loop looks at its own entry only.
        self._held: dict[AbstractEventLoop, tuple[AsyncGenerator[Session, None], Session]] = {}

    async def here(self) -> Session:
        """That of the running event loop.

        An async generator holds it, since those are what a loop closes when it ends.
        """
        loop = asyncio.get_running_loop()
        if loop not in self._held:
            holder = self._hold(loop)
            self._held[loop] = holder, await anext(holder)
        return self._held[loop][1]

    async def close(self) -> None:
        """Close the connections of the running event loop now."""
        held = self._held.get(asyncio.get_running_loop())
        if held is not None:
            await held[0].aclose()

    async def _hold(self, loop: AbstractEventLoop) -> AsyncGenerator[Session, None]:
        with setting_up():
            made = httpx.AsyncClient(
                base_url=self.url,
                headers=self.headers,
                timeout=httpx.Timeout(None, connect=self.connect_seconds),
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=self.places,
                    keepalive_expiry=_KEEP_ALIVE,
                ),
                verify=trusted(),
            )
        async with made as client:
            try:
                yield Session(client, self.places)
            finally:
                # Before the client closes, so that nobody is given it any more.
                del self._held[loop]
