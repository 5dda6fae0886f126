"""Events as servers send them, cut anywhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from apr.remote.wire import complaint, event_data

# To some programs these end a line; to events they do not, and JSON may hold them.
TEXT = "a\u2028b\u2029c\x85d\x0be é🙂"
EVENT = json.dumps({"text": TEXT}, ensure_ascii=False)


async def _heard(pieces: list[bytes]) -> list[str]:
    async def arrive() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [data async for data in event_data(arrive())]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_those_lines_however_they_arrive(end: str, size: int) -> None:
    lines = [": hello", f"data: {EVENT}", "", f"data:{EVENT}", "id: 3", "error: it is down", ""]
    whole = end.join([*lines, "data: [DONE]", "", "data: last"]).encode()
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    want = [EVENT, EVENT, json.dumps({"error": "it is down"}), "last"]
    assert asyncio.run(_heard(pieces)) == want
    assert json.loads(want[0])["text"] == TEXT


def test_what_is_wrong_is_found_wherever_it_is_said() -> None:
    said = [{"error": {"message": "full"}}, {"detail": "full"}, {"message": "full"}]
    assert {complaint(json.dumps(each)) for each in said} == {"full"}
    assert complaint("[" * 100_000) == "[" * 300
