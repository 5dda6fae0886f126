from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.dialects.tags import TAGS
from apr.errors import ContextError
from apr.testing import ByteCodec, Reply, Script, ScriptedEngine
from apr.types import Completion, FinishReason, Sampling

CODEC = ByteCodec()
SAMPLING = Sampling(max_tokens=50, stop_ids=(CODEC.specials["<|end|>"], CODEC.specials["</join>"]))


def generate(script: Script, prompt: str = "go", sampling: Sampling = SAMPLING) -> Completion:
    return asyncio.run(ScriptedEngine(script, CODEC).generate(CODEC.encode(prompt), sampling))


def text(completion: Completion) -> str:
    return CODEC.decode(completion.ids)


@given(st.lists(st.sampled_from([*TAGS, "<|end|>", "<thre"]) | st.text(max_size=5)).map("".join))
def test_any_text_survives_the_byte_codec_with_one_token_to_a_special_text(text: str) -> None:
    ids = CODEC.encode(text)
    assert CODEC.decode(ids) == text
    for special, id in CODEC.specials.items():
        assert ids.count(id) == text.count(special)
    plain = ByteCodec(specials=(), eos=None)
    assert plain.encode(text) == tuple(text.encode())
    assert plain.decode(plain.encode(text)) == text


def test_bytes_that_are_no_text_decode_to_a_mark() -> None:
    assert CODEC.decode([0x61, 0xFF, 0x62]) == "a\ufffdb"


def test_a_reply_ends_at_the_first_stop_and_else_at_the_codecs_end() -> None:
    assert text(generate(["a</join>b</join>"])) == "a</join>"
    assert text(generate(["abc"])) == "abc<|end|>"
    by_string = replace(SAMPLING, stop_strings=("bc",))
    assert text(generate(["abcd"], sampling=by_string)) == "abc"
    endless = replace(SAMPLING, stop_ids=())
    assert generate(["abc"], sampling=endless).finish_reason is FinishReason.STOP


def test_a_stop_string_is_found_across_special_tokens_and_letters_of_many_bytes() -> None:
    stop = replace(SAMPLING, stop_ids=(), stop_strings=("<thread>é",))
    assert text(generate(["x<thread>éy"], sampling=stop)) == "x<thread>é"


def test_a_reply_is_cut_at_max_tokens() -> None:
    completion = generate(["abc"], sampling=replace(SAMPLING, max_tokens=2))
    assert (text(completion), completion.finish_reason) == ("ab", FinishReason.LENGTH)
    assert completion.logprobs == tuple(map(ScriptedEngine.logprob, completion.ids))
    exact = generate(["a</join>"], sampling=replace(SAMPLING, max_tokens=2))
    assert exact.finish_reason is FinishReason.STOP


def test_a_script_is_a_mapping_a_list_or_a_function() -> None:
    for script in ({"go": "ok"}, ["ok"], lambda prompt: {"go": "ok"}[prompt]):
        engine = ScriptedEngine(script, CODEC)
        assert text(asyncio.run(engine.generate(CODEC.encode("go"), SAMPLING))) == "ok<|end|>"
        with pytest.raises(LookupError, match="no reply is scripted for the prompt 'no'"):
            asyncio.run(engine.generate(CODEC.encode("no"), SAMPLING))


def test_a_request_beyond_the_context_is_refused() -> None:
    engine = ScriptedEngine(["ok"], CODEC, context=10)
    for max_tokens in (9, 0):
        with pytest.raises(ContextError, match=f"2 tokens of prompt and {max_tokens} to sample"):
            asyncio.run(
                engine.generate(CODEC.encode("go"), replace(SAMPLING, max_tokens=max_tokens))
            )
    assert engine.requests == []


def test_an_error_comes_after_the_text_and_tokens_are_heard_one_by_one() -> None:
    heard: list[int] = []
    engine = ScriptedEngine([Reply("ab", error=OSError("down"))], CODEC)
    with pytest.raises(OSError, match="down"):
        asyncio.run(engine.generate(CODEC.encode("go"), SAMPLING, heard.extend))
    assert CODEC.decode(heard) == "ab"
    assert engine.num_active == 0


def test_a_cancelled_call_is_counted_and_over() -> None:
    engine = ScriptedEngine([Reply("ab", delay=60.0)], CODEC)

    async def cancel() -> None:
        task = asyncio.create_task(engine.generate(CODEC.encode("go"), SAMPLING))
        await asyncio.sleep(0)
        assert engine.num_active == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert (engine.num_active, engine.num_cancelled) == (0, 1)
