"""One HTTP server as the engines here see it: a question in JSON, a reply in one piece or many.

Knows when it is safe to ask again, and nothing of what is asked. A completion has no side effect,
so asking again is safe until the first piece of a reply has been handed on; after that, another
reply could contradict what the caller heard.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import anyio
import httpx

from apr.config import check_least
from apr.errors import AprError, EngineError, EngineTimeout, InputError
from apr.remote.session import Sessions, setting_up, tidily, trusted
from apr.remote.wire import complaint, event_data

Json = dict[str, Any]

KEY = "APR_ENGINE_KEY"
"""Environment variable with the key that is sent to servers, where they want one."""

_BUSY = {408, 429, 502, 503, 504}
"""Statuses by which a server, or a gateway before it, asks to be asked again later."""
_LONGEST_WAIT = 5.0
_SHORTEST = 0.001
"""Seconds: a time limit below this is a mistake."""


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """How to deal with a server."""

    concurrency: int = 256
    """Most requests of an event loop under way at the same time; the others wait here."""
    seconds: float = 600.0
    """Longest that one request may take, attempts and waits between them included."""
    connect_seconds: float = 5.0
    """Longest to wait for a connection."""
    patience: float = 15.0
    """How long an unreachable or overloaded server is asked again before that is an error."""
    stream: bool = True
    """Hear ids as they are sampled. Off is cheaper, and a call cut short then has none of them."""

    def __post_init__(self) -> None:
        check_least(1, concurrency=self.concurrency)
        check_least(_SHORTEST, seconds=self.seconds, connect_seconds=self.connect_seconds)
        check_least(0, patience=self.patience)


class _Unanswered(Exception):
    """An attempt that came to nothing and may be made again."""

    def __init__(self, error: AprError, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error  # for when it is not made again
        self.wait = wait  # seconds the server asked for


class Http:
    """A server that answers in JSON.

    Connections are kept and reused within an event loop, and closed when the loop ends.
    """

    def __init__(
        self, server: str, url: str, config: RemoteConfig, api_key: str | None = None
    ) -> None:
        """
        Args:
            server: what kind it is, for messages.
            url: what every path is appended to.
        """
        self.server = server
        self.url = url.rstrip("/")
        self.config = config
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.num_active = 0
        """Requests under way or waiting for a place."""
        self._sessions = Sessions(
            self.url, self.headers, config.concurrency, config.connect_seconds
        )
        self._down_since = self._failed_at = -1e9

    @property
    def name(self) -> str:
        return f"{self.server} at {self.url}"

    @property
    def is_down(self) -> bool:
        """Whether it has not answered since it failed a moment ago."""
        return time.monotonic() - self._failed_at < max(1.0, self.config.patience)

    def ask(self, path: str, body: Json | None = None, seconds: float = 10.0) -> Any:
        """Ask once and block until the reply; not for use while problems are being solved.

        Raises:
            EngineError: no reply, or none that can be understood.
            InputError: the server refuses the question, or the environment allows no connection.
        """
        timeout = httpx.Timeout(seconds, connect=self.config.connect_seconds)
        with setting_up():
            made = httpx.Client(headers=self.headers, timeout=timeout, verify=trusted())
        try:
            with made as client:
                method = "GET" if body is None else "POST"
                response = client.request(method, self.url + path, json=body)
        except httpx.TimeoutException as e:
            raise EngineTimeout(f"{self.name} did not answer {path} in {seconds:g} s") from e
        except (httpx.TransportError, httpx.InvalidURL) as e:
            raise self.unreachable(str(e)) from e
        except httpx.DecodingError as e:
            raise self.misread(str(e)) from e
        if response.status_code == 404:
            raise self.misread(f"there is no {path}")
        if response.status_code != 200:
            raise self._failure(response.status_code, response.text)
        try:
            return response.json()
        except (ValueError, RecursionError) as e:
            raise self.misread(f"{path} is not JSON") from e

    async def post(self, path: str, body: Json, hear: Callable[[Json], bool]) -> None:
        """Ask, and hand on each piece of the reply; a plain reply is a single piece.

        Cancelling hangs up, by which servers know to stop sampling.

        Args:
            hear: returns True when it has heard enough.

        Raises:
            EngineError: no reply within the patience, a broken one, or an error in it.
            EngineTimeout: no whole reply within ``seconds``.
            InputError: the server refuses the question, or the environment allows no connection.
        """
        self.num_active += 1
        try:
            session = await self._sessions.here()
            async with session.gate:
                await tidily(self._post_in_time(session.client, path, body, hear))
        finally:
            self.num_active -= 1

    async def close(self) -> None:
        """Close the connections of the running event loop, which otherwise does so at its end."""
        await self._sessions.close()

    def unreachable(self, reason: str) -> EngineError:
        return EngineError(
            f"{self.name} does not answer ({reason or 'no reason given'}): "
            "start it, or name another server"
        )

    def misread(self, reason: str) -> EngineError:
        return EngineError(
            f"{self.name} answers in a way that {self.server} does not ({reason}): "
            "is it another kind or version of server?"
        )

    async def _post_in_time(
        self, client: httpx.AsyncClient, path: str, body: Json, hear: Callable[[Json], bool]
    ) -> None:
        with anyio.move_on_after(self.config.seconds) as timer:
            await self._persist(client, path, body, hear)
        if timer.cancelled_caught:
            raise EngineTimeout(f"{self.name} gave no whole reply in {self.config.seconds:g} s")

    async def _persist(
        self, client: httpx.AsyncClient, path: str, body: Json, hear: Callable[[Json], bool]
    ) -> None:
        """Attempt until there is a reply or the patience is over."""
        wait = 0.0
        while True:
            try:
                return await self._attempt(client, path, body, hear)
            except _Unanswered as e:
                if not self._may_try_again():
                    raise e.error from e.__cause__
                await asyncio.sleep(max(e.wait, wait * random.uniform(0.5, 1.0)))
                # The first is at once: a kept connection may have been closed in the meantime.
                wait = min(_LONGEST_WAIT, 2 * wait or 0.1)

    async def _attempt(
        self, client: httpx.AsyncClient, path: str, body: Json, hear: Callable[[Json], bool]
    ) -> None:
        heard = False
        try:
            async with client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    await self._turned_away(response)
                async with aclosing(self._pieces(response)) as pieces:
                    async for piece in pieces:
                        heard, self._failed_at = True, -1e9
                        if hear(piece):
                            return
        except httpx.DecodingError as e:
            raise self.misread(str(e)) from e
        except _Unanswered as e:
            if heard:
                self._may_try_again()
                raise e.error from e
            raise
        except httpx.TransportError as e:
            reason = str(e) or type(e).__name__
            if heard:
                self._may_try_again()
                raise EngineError(f"{self.name} broke off within a reply ({reason})") from e
            raise _Unanswered(self.unreachable(reason)) from e

    def _may_try_again(self) -> bool:
        """Note a failure; whether the outage it belongs to is still within the patience.

        All requests share one outage, so that of a dead server only the first ones wait.
        """
        now = time.monotonic()
        # Longer than any request waits between two attempts, and for the second: were a wait taken
        # for the end of the outage, patience would begin anew with each.
        silence = max(1.0, self.config.patience) + _LONGEST_WAIT + self.config.connect_seconds
        if now - self._failed_at >= silence:
            self._down_since = now
        self._failed_at = now
        return now - self._down_since < self.config.patience

    async def _turned_away(self, response: httpx.Response) -> NoReturn:
        text = (await response.aread()).decode(errors="replace")
        asked = response.headers.get("Retry-After", "")
        wait = min(_LONGEST_WAIT, float(asked)) if asked.isdecimal() else 0.0
        self._fail(response.status_code, text, wait)

    def _fail(self, status: int, text: str, wait: float = 0.0) -> NoReturn:
        """Raise what ``status`` means, which is _Unanswered where it may pass."""
        error = self._failure(status, text)
        raise _Unanswered(error, wait) if status in _BUSY else error

    def _failure(self, status: int, text: str) -> AprError:
        said = f"status {status}: {complaint(text) or 'no reason given'}"
        if status in _BUSY:
            return EngineError(
                f"{self.name} is too busy, or not up ({said}): "
                "give it time, or fewer requests at once"
            )
        if status in (401, 403):
            said += f" (a key is read from the environment variable {KEY})"
        if 400 <= status < 500:
            return InputError(f"{self.name} refuses the request: {said}")
        return EngineError(f"{self.name} failed with {said}")

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[Json, None]:
        """The events of a stream, or the whole of a plain reply."""
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            yield self._parsed((await response.aread()).decode(errors="replace"))
            return
        async with aclosing(event_data(response.aiter_bytes())) as data:
            async for text in data:
                yield self._parsed(text)

    def _parsed(self, text: str) -> Json:
        try:
            piece = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise self.misread(f"not JSON: {text[:80]!r}") from e
        if not isinstance(piece, dict):
            raise self.misread(f"no object: {text[:80]!r}")
        if piece.get("error"):
            code = piece["error"].get("code") if isinstance(piece["error"], dict) else None
            self._fail(code if isinstance(code, int) else 500, text)
        return piece
