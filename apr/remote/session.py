"""Connections to a server, kept and reused within an event loop and closed when the loop ends."""

from __future__ import annotations

import asyncio
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
        self.loop = asyncio.get_running_loop()
        self.client = client
        self.gate = asyncio.Semaphore(places)


class Sessions:
    """The session of whichever event loop is running."""

    def __init__(
        self, url: str, headers: dict[str, str], places: int, connect_seconds: float
    ) -> None:
        self.url = url
        self.headers = headers
        self.places = places
        self.connect_seconds = connect_seconds
        self._session: Session | None = None
        self._holder: AsyncGenerator[Session, None] | None = None

    async def here(self) -> Session:
        """An async generator holds it, since those are what a loop closes when it ends."""
        if self._session is None or self._session.loop is not asyncio.get_running_loop():
            self._holder = self._hold()
            self._session = await anext(self._holder)
        return self._session

    async def close(self) -> None:
        """Close the connections now."""
        holder, self._holder, self._session = self._holder, None, None
        if holder is not None:
            await holder.aclose()

    async def _hold(self) -> AsyncGenerator[Session, None]:
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
            yield Session(client, self.places)
