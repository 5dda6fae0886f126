"""What servers send: events, and what they say is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

# No others, such as U+2028, which JSON may hold; of a piece's last byte it is not known yet.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


async def event_data(pieces: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The data of server-sent events, one line each. Read to the end, or the connection is lost."""
    rest = b""
    async for piece in pieces:
        *lines, rest = _LINE_END.split(rest + piece)
        for line in lines:
            if data := _data(line.decode(errors="replace")):
                yield data
    if data := _data(rest.decode(errors="replace")):
        yield data


def _data(line: str) -> str:
    """What ``line`` brings; nothing, where it brings none."""
    kind, _, data = line.partition(":")
    if kind not in ("data", "error") or data.strip() == "[DONE]":
        return ""
    return data.strip() if kind == "data" else json.dumps({"error": data.strip()})


def complaint(text: str) -> str:
    """What a server says is wrong, in whichever of the usual places."""
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return " ".join(text.split())[:300]
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(key):
            said = said[key]
    return said[:600] if isinstance(said, str) else json.dumps(said)[:600]
