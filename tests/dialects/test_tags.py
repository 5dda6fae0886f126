from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.dialects.tags import TAGS, Tags
from apr.dialects.tags import messages as messages_of
from apr.interfaces import Join, Malformed, Spawn

tags = Tags()
# Pieces of tags are in it, so that near misses come up; whole tags are not.
pieces = st.sampled_from(["<", ">", "/", "<spawn", "thread>", "</", "join", "\n", " ", "é", "x"])
texts = st.lists(pieces | st.characters(exclude_categories=["Cs"])).map("".join)
messages = texts.filter(lambda text: not any(tag in text for tag in TAGS))
hostile = st.lists(st.sampled_from(TAGS) | pieces, max_size=20).map("".join)


@given(messages, st.lists(messages, min_size=1, max_size=5))
def test_a_spawn_is_read_back_to_the_letter(before: str, spawned: list[str]) -> None:
    written = before + "<spawn>" + "".join(map(tags.child_prompt, spawned)) + "</spawn>"
    assert tags.read("any prompt", written) == Spawn(tuple(spawned))


@given(messages, messages)
def test_a_join_is_read_back_to_the_letter(before: str, message: str) -> None:
    operation = tags.read("any prompt", f"{before}<join>{message}</join>")
    assert operation == Join(message, success=bool(message.strip()))


@given(messages)
def test_text_without_tags_joins_with_itself(text: str) -> None:
    assert tags.read("any prompt", text) == Join(text, success=bool(text.strip()))


@given(hostile, hostile)
def test_no_text_makes_it_raise_and_no_message_carries_a_tag(prompt: str, sampled: str) -> None:
    match tags.read(prompt, sampled):
        case Spawn(spawned):
            carried = spawned
        case Join(message):
            carried = (message,)
        case Malformed(reason):
            assert reason
            return
    assert not any(tag in message for tag in TAGS for message in carried)


@pytest.mark.parametrize(
    ("sampled", "reason"),
    [
        ("<spawn></spawn>", "A spawn holds no <thread>."),
        ("<spawn>go</spawn>", "A spawn holds no <thread>."),
        ("<spawn>so <thread>a</thread></spawn>", "A spawn holds text outside of its threads."),
        ("<spawn><thread>a</thread></join>", "A <spawn> was closed by </join>."),
        ("<join>a</spawn>", "A <join> was closed by </spawn>."),
        ("<spawn><thread>a</thread>", "A message holds the tag <spawn>."),
        ("<join>a<joined></join>", "A message holds the tag <joined>."),
        ("<spawn><thread>a<thread>b</thread></spawn>", "A message holds the tag <thread>."),
    ],
)
def test_malformed_text_is_told_in_a_sentence(sampled: str, reason: str) -> None:
    assert tags.read("any prompt", sampled) == Malformed(reason)


def test_what_follows_the_first_operation_does_not_count() -> None:
    assert tags.read("any prompt", "<join>a</join> <join>b</join>") == Join("a", success=True)


def test_a_parent_hears_every_child_in_order_and_a_failure_as_nothing() -> None:
    joins = [Join("first", True), Malformed("It failed."), Join("", False), Join("last", True)]
    assert tags.resume("any prompt", "any text", joins).text == (
        "<joined><thread>first</thread><thread></thread><thread></thread>"
        "<thread>last</thread></joined>"
    )


OPERATION = re.compile(r"<(spawn|join)>(.*?)</(spawn|join)>", re.DOTALL)
THREAD = re.compile(r"<thread>(.*?)</thread>", re.DOTALL)


@given(hostile)
def test_the_first_operation_that_was_closed_is_read(sampled: str) -> None:
    found = OPERATION.search(sampled)
    operation = tags.read("", sampled)
    if found is None:
        assert not isinstance(operation, Spawn)
    elif found[1] != found[3]:
        assert operation == Malformed(f"A <{found[1]}> was closed by </{found[3]}>.")
    elif isinstance(operation, Spawn):
        assert list(operation.messages) == THREAD.findall(found[2])
    elif isinstance(operation, Join):
        assert operation.message == found[2]
    assert messages_of(sampled) == THREAD.findall(sampled)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_that_is_repeated_holds_nobody_up(tag: str) -> None:
    """Each opening tag that looked for its end by itself would take hours here."""
    many = 300_000 * tag
    for text in (many, f"<spawn>{many}</spawn>", f"<join>{many}</join>", f"<spawn>{many}"):
        assert not isinstance(tags.read("", text), Spawn)
