"""The page of a trace: all that was written, each token once, and none of it as markup."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from html import unescape

from apr.dialects.tags import Tags
from apr.runtime import Runtime
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import Trace
from apr.types import Grade, Sampling
from apr.viewer import page
from apr.viewer.page import pieces

CODEC = ByteCodec()
SCRIPT = {
    "<thread>root</thread>": "a & b<spawn><thread>one</thread><thread>two</thread></spawn>",
    "<thread>one</thread>": "<join>1 < 2</join>",
    "<thread>two</thread>": "<script>alert('two')</script>",
}


def run() -> Trace:
    def reply(prompt: str) -> str:
        return "on<join>done</join>" if "<joined>" in prompt else SCRIPT[prompt]

    engine = ScriptedEngine(reply, CODEC, 10_000)
    return asyncio.run(Runtime(engine, CODEC, Tags(), Sampling(100)).run("<thread>root</thread>"))


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_each_thread_is_there_with_all_that_it_read_and_wrote() -> None:
    trace = replace(run(), grade=Grade(True, "correct"))
    html = page(trace, CODEC.decode, "1 + 2 = 3")
    assert "1 + 2 = 3 (correct)" in html
    written = [text_of(pre) for pre in re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)]
    contexts = [CODEC.decode((*t.calls[-1].prompt_ids, *t.calls[-1].ids)) for t in trace.threads]
    assert written == contexts
    assert [f'id="thread-{i}"' in html for i in range(3)] == [True] * 3
    assert html.count('href="#thread-') == 3


def test_nothing_that_a_model_writes_is_markup() -> None:
    assert "<script" not in page(run(), CODEC.decode)


def test_a_prompt_that_was_rewritten_stands_whole() -> None:
    first = run().root.calls[0]
    rewritten = replace(first, prompt_ids=(1, 2, 3))
    thread = replace(run().root, calls=(first, rewritten))
    assert [(p.ids, p.sampled) for p in pieces(thread)][2] == ((1, 2, 3), False)


def test_tokens_that_were_unlikely_are_marked() -> None:
    trace = run()
    call = trace.root.calls[0]
    logprobs = (-2.0, *(0.0 for _ in call.ids[1:]))
    calls = (replace(call, logprobs=logprobs), *trace.root.calls[1:])
    marked = replace(trace, threads=(replace(trace.root, calls=calls), *trace.threads[1:]))
    assert '<mark title="14%">a</mark>' in page(marked, CODEC.decode)


def test_without_a_tokenizer_there_are_messages() -> None:
    html = page(run(), None)
    assert "messages only" in html
    assert "1 &lt; 2" in html


def test_what_failed_is_said() -> None:
    failed = replace(run(), error="EngineError: it is down")
    assert "Failed: EngineError: it is down" in page(failed, CODEC.decode)
