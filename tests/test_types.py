"""Where sampled text ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from apr.types import Sampling


def a_byte_each(ids: Sequence[int]) -> str:
    """As a tokenizer that falls back to bytes decodes: one that is cut spoils its whole run."""
    try:
        return bytes(ids).decode()
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}" * len(ids)


def without_the_first_space(ids: Sequence[int]) -> str:
    return bytes(ids).decode().removeprefix(" ")


@pytest.mark.parametrize("strings", [("END",), ("END", "right"), ("END", "something longer")])
@pytest.mark.parametrize("text", ["café END", "→→ END", "🙂🙂🙂 END", "END"])
def test_a_stop_string_is_seen_as_soon_as_it_is_there(text: str, strings: tuple[str, ...]) -> None:
    sampling = Sampling(99, stop_strings=strings)
    ids = list(text.encode())
    stops = [sampling.stops(ids[:n], a_byte_each) for n in range(1, len(ids) + 1)]
    assert stops == [False] * (len(ids) - 1) + [True]


def test_a_stop_string_may_begin_with_a_space_that_is_not_decoded_in_front() -> None:
    assert Sampling(99, stop_strings=(" END",)).stops(list(b"the END"), without_the_first_space)
    # At the very beginning nobody can tell.
    assert not Sampling(99, stop_strings=(" END",)).stops(list(b" END"), without_the_first_space)


def test_the_prompt_stops_nothing() -> None:
    ids = list("END é and on".encode())
    for start in range(3, len(ids)):
        assert not Sampling(99, stop_strings=("END",)).stops(ids, a_byte_each, start)
