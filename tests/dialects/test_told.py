"""Demonstrations are what the runtime would do with a model that has learnt them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr import Runtime
from apr.dialects.tags import TAGS, Tags
from apr.dialects.told import Told, demonstration
from apr.errors import DataError
from apr.interfaces import Append, Join, Malformed
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import Trace
from apr.types import Demonstration, Sampling

CODEC = ByteCodec()
LEAF = Told("2+3?", ["let me see"], "5")
TREE = Told(
    "2+3, then twice that?",
    ["first ", [LEAF, Told("", [], "")], "and now", " ", [Told("5*2?", [], "10")], "so"],
    "10",
)


class Loud(Tags):
    """Another prompt and another way to resume."""

    def child_prompt(self, message: str) -> str:
        return f"HEAR: {super().child_prompt(message)}"

    def resume(self, prompt: str, sampled: str, joins: Sequence[Join | Malformed]) -> Append:
        return Append(super().resume(prompt, sampled, joins).text.upper())


def sequences(told: Demonstration) -> list[str]:
    """Each sequence as text, what the model writes in brackets."""
    return [
        "".join(f"[{text}]" if written else text for pieces, written in s for text in pieces)
        for s in told.sequences
    ]


def replayed(told: Demonstration, root: Told, dialect: Tags) -> Trace:
    """The trace of a model that writes what was demonstrated."""
    script: dict[str, str] = {}
    for sequence in told.sequences:
        before = ""
        for pieces, written in sequence:
            text = "".join(pieces)
            if written:
                script[before] = text
            before += text
    engine = ScriptedEngine(script, CODEC, 100_000)
    runtime = Runtime(engine, CODEC, dialect, Sampling(100_000))
    return asyncio.run(runtime.run(dialect.child_prompt(root.message)))


def test_a_tree_is_written_as_the_dialect_reads_it() -> None:
    told = demonstration(TREE, CODEC)
    assert sequences(told) == [
        "<thread>2+3, then twice that?</thread>"
        "[first <spawn><thread>2+3?</thread><thread></thread></spawn>]"
        "<joined><thread>5</thread><thread></thread></joined>"
        "[and now <spawn><thread>5*2?</thread></spawn>]<joined><thread>10</thread></joined>"
        "[so<join>10</join>]",
        "<thread>2+3?</thread>[let me see<join>5</join>]",
        "<thread></thread>[<join></join>]",
        "<thread>5*2?</thread>[<join>10</join>]",
    ]
    assert told.succeeded == [True, True, False, True]
    assert (told.solved, told.num_children) == (True, 3)


trees = st.deferred(
    lambda: st.builds(
        Told,
        st.text("abcd é", max_size=4),
        st.lists(st.text("xy ", max_size=3) | st.lists(trees, min_size=1, max_size=2), max_size=3),
        st.text("12 ", max_size=2),
    )
)


@pytest.mark.parametrize("dialect", [Tags(), Loud()])
@settings(max_examples=40)
@given(root=trees)
def test_it_is_what_a_model_would_do_and_costs_what_it_would_cost(
    dialect: Tags, root: Told
) -> None:
    told = demonstration(root, CODEC, dialect)
    prompts = ["".join(s[0].pieces) for s in told.sequences]
    if len(set(prompts)) < len(prompts):
        return  # The model cannot tell threads apart that are asked the same.
    trace = replayed(told, root, dialect)
    assert [dialect.child_prompt(t.message) for t in trace.threads[1:]] == prompts[1:]
    assert [t.join for t in trace.threads] == [r.join for r in _all(root)]
    assert [t.success for t in trace.threads] == told.succeeded
    assert trace.num_children == told.num_children
    assert trace.total_tokens == told.total_tokens
    assert trace.sequential_tokens == told.sequential_tokens


def _all(root: Told) -> list[Told]:
    return [root, *(t for spawn in root.spawns for child in spawn for t in _all(child))]


@pytest.mark.parametrize(
    "root",
    [
        Told("go", [], "a<join>b"),
        Told("go", ["so <join>5</join>"], "6"),
        Told("go", [[]], "6"),
        Told("go", [[Told("<thread>", [], "")]], "6"),
        Told("go", [[Told("deeper", ["</spawn>"], "")]], "6"),
    ],
)
def test_what_would_be_read_otherwise_is_refused(root: Told) -> None:
    with pytest.raises(DataError, match="would be read as"):
        demonstration(root, CODEC)


def test_tags_are_the_only_texts_that_are_refused() -> None:
    for tag in TAGS:
        with pytest.raises(DataError, match="would be read as"):
            demonstration(Told("go", [], f"a{tag}b"), CODEC)
    assert demonstration(Told("go <thread", ["<spawn"], "a>b"), CODEC).solved
