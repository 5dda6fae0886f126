"""What servers send: events, and what they say is wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any


async def event_data(lines: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """The data of server-sent events, one line each. Read to the end, or the connection is lost."""
    async for line in lines:
        kind, _, data = line.partition(":")
        if kind in ("data", "error") and data.strip() != "[DONE]":
            yield data.strip() if kind == "data" else json.dumps({"error": data.strip()})


def complaint(text: str) -> str:
    """What a server says is wrong, in whichever of the usual places."""
    try:
        said: Any = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:300]
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(key):
            said = said[key]
    return said[:600] if isinstance(said, str) else json.dumps(said)[:600]
