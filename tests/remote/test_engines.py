"""What every kind of server must give through the seam, and where they differ."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from math import nan
from typing import Any

import pytest

from apr.dialects.tags import Tags
from apr.errors import ConfigError, ContextError, EngineError, InputError
from apr.interfaces import Engine
from apr.remote import RemoteConfig, connect, update_weights
from apr.runtime import Runtime
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import Trace
from apr.types import Completion, FinishReason, Sampling
from tests.remote.conftest import Start, codec, says
from tests.remote.fakes import Asked, Fake, FakeLlamaCpp, FakeOpenAI, FakeSGLang, FakeVLLM, Fault

PROMPT = codec.encode("go on: ")
EOS = codec.eos_id
CLOSE = codec.token_id("</spawn>")
assert EOS is not None
assert CLOSE is not None


def run(work: Coroutine[Any, Any, Completion]) -> Completion:
    return asyncio.run(work)


def logprobs(ids: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(map(ScriptedEngine.logprob, ids))


@pytest.mark.parametrize("stream", [True, False])
def test_ids_logprobs_and_the_end_of_sequence(kind: type[Fake], start: Start, stream: bool) -> None:
    server = start(kind, says("12 + 3"))
    engine = connect(server.address, codec, RemoteConfig(stream=stream))
    heard: list[int] = []
    got = run(engine.generate(PROMPT, Sampling(50, stop_ids=(EOS,)), heard.extend))
    assert got.ids == (*codec.encode("12 + 3"), EOS)
    assert got.finish_reason is FinishReason.STOP
    assert tuple(heard) == got.ids
    # That endpoint says neither the end nor its logprob.
    assert got.logprobs == (() if kind is FakeOpenAI else logprobs(got.ids))


def test_a_completion_cut_by_its_length(kind: type[Fake], start: Start) -> None:
    engine = connect(start(kind, says("12 + 3")).address, codec)
    got = run(engine.generate(PROMPT, Sampling(4, stop_ids=(EOS,))))
    assert got == Completion(codec.encode("12 +"), logprobs(codec.encode("12 +")), "length")


def test_a_stop_id_ends_a_completion_and_is_kept(kind: type[Fake], start: Start) -> None:
    server = start(kind, says("<spawn>a</spawn>" + 100 * "and so on"), delay=0.001)
    engine = connect(server.address, codec)
    got = run(engine.generate(PROMPT, Sampling(900, stop_ids=(EOS, CLOSE))))
    assert got.ids == codec.encode("<spawn>a</spawn>")
    assert got.logprobs == logprobs(got.ids)
    assert got.finish_reason is FinishReason.STOP


def test_a_stop_string_ends_a_completion_and_is_kept(kind: type[Fake], start: Start) -> None:
    server = start(kind, says("so 7 + 5 = 12. " + 100 * "and so on"), delay=0.001)
    engine = connect(server.address, codec)
    got = run(engine.generate(PROMPT, Sampling(900, stop_strings=("= 12", "on"))))
    assert got.ids == codec.encode("so 7 + 5 = 12")
    assert got.logprobs == logprobs(got.ids)
    assert got.finish_reason is FinishReason.STOP


def test_what_is_asked_is_what_the_sampling_says(kind: type[Fake], start: Start) -> None:
    server = start(kind, says("x"))
    engine = connect(server.address, codec)
    top_k = 0 if kind is FakeOpenAI else 5
    run(engine.generate(PROMPT, Sampling(9, 0.7, top_p=0.9, top_k=top_k, seed=11)))
    body = server.bodies[-1]
    asked = body.get("sampling_params", body)
    assert (asked["temperature"], asked["top_p"]) == (0.7, 0.9)
    assert asked.get("top_k", 0) == top_k
    assert (asked.get("sampling_seed") or asked["seed"]) == 11


def test_what_does_not_fit_is_never_asked(kind: type[Fake], start: Start) -> None:
    server = start(kind, says("x"), context=32)
    engine = connect(server.address, codec)
    asked = len(server.bodies)
    assert engine.context == 32
    for prompt, num in (((), 1), (PROMPT, 0), (PROMPT, 33 - len(PROMPT))):
        with pytest.raises(ContextError):
            run(engine.generate(prompt, Sampling(num)))
    assert len(server.bodies) == asked
    assert run(engine.generate(PROMPT, Sampling(32 - len(PROMPT)))).ids


def test_stop_strings_need_a_codec(start: Start) -> None:
    engine = connect(start(FakeVLLM, says("x")).address)
    with pytest.raises(ConfigError, match="codec"):
        run(engine.generate(PROMPT, Sampling(9, stop_strings=("x",))))


SCRIPT = {
    "2+3 and 4*5?": "<spawn><thread>2+3?</thread><thread>4*5?</thread></spawn>",
    "<thread>2+3?</thread>": "let me see <join>5</join>",
    "<thread>4*5?</thread>": "that is <join>20</join>",
}
RESUMED = "<joined><thread>5</thread><thread>20</thread></joined>"
SCRIPT["2+3 and 4*5?" + SCRIPT["2+3 and 4*5?"] + RESUMED] = "<join>5 and 20</join>"


def solved(engine: Engine) -> Trace:
    return asyncio.run(Runtime(engine, codec, Tags(), Sampling(100)).run("2+3 and 4*5?"))


def calls(trace: Trace) -> list[tuple[object, ...]]:
    return [
        (c.prompt_ids, c.ids, c.logprobs, c.finish_reason) for t in trace.threads for c in t.calls
    ]


def test_a_tree_of_threads_is_the_same_through_every_server(kind: type[Fake], start: Start) -> None:
    def sample(prompt: tuple[int, ...]) -> list[int]:
        return [*codec.encode(SCRIPT.get(codec.decode(prompt), "?")), EOS]

    want = solved(ScriptedEngine(SCRIPT, codec))
    got = solved(connect(start(kind, sample).address, codec))
    assert got.root.join == "5 and 20"
    assert calls(got) == calls(want)


GIVES_UP = {"abort": Fault(reason="abort"), "in the answer": Fault(error="CUDA ran out of memory")}


@pytest.mark.parametrize("error", GIVES_UP)
def test_a_server_that_gives_up_is_an_error(kind: type[Fake], start: Start, error: str) -> None:
    server = start(kind, says("12 + 3"))
    engine = connect(server.address, codec)
    server.faults.append(GIVES_UP[error])
    with pytest.raises(EngineError, match=r"ran out of memory|abort"):
        run(engine.generate(PROMPT, Sampling(50), lambda id: None))


@pytest.mark.parametrize("kind", [FakeSGLang, FakeVLLM, FakeLlamaCpp])
def test_a_completion_cut_before_its_length_is_an_error(kind: type[Fake], start: Start) -> None:
    server = start(kind, says("12 + 3"))
    engine = connect(server.address, codec)
    server.faults.append(Fault(reason="length"))
    with pytest.raises(EngineError, match="stopped after 7 of 50 tokens"):
        run(engine.generate(PROMPT, Sampling(50)))


def test_sglang_leaves_logprobs_of_other_temperatures_out(start: Start) -> None:
    server = start(FakeSGLang, says("abc"))
    server.original = False
    engine = connect(server.address, codec)
    for temperature, known in ((0.0, True), (1.0, True), (0.5, False)):
        got = run(engine.generate(PROMPT, Sampling(3, temperature)))
        assert got.logprobs == (logprobs(got.ids) if known else ())
    server.original = True
    engine = connect(server.address, codec)
    assert run(engine.generate(PROMPT, Sampling(3, 0.5))).logprobs == logprobs(codec.encode("abc"))


def test_sglang_may_stream_increments(start: Start) -> None:
    server = start(FakeSGLang, says("12 + 3"))
    server.incremental = True
    heard: list[int] = []
    got = run(connect(server.address).generate(PROMPT, Sampling(50), heard.extend))
    assert tuple(heard) == got.ids == (*codec.encode("12 + 3"), EOS)
    assert got.logprobs == logprobs(got.ids)


def test_sglang_takes_new_weights(start: Start, tmp_path: Any) -> None:
    servers = [start(FakeSGLang, says("x")) for _ in range(2)]
    engine = connect(",".join(s.address for s in servers))
    update_weights(engine, tmp_path)
    assert [s.updates[0]["model_path"] for s in servers] == [str(tmp_path)] * 2
    servers[1].weights = (400, {"success": False, "message": "shape mismatch of lm_head"})
    with pytest.raises(InputError, match="shape mismatch"):
        update_weights(engine, tmp_path)
    servers[1].weights = (200, {"success": False, "message": "busy"})
    with pytest.raises(EngineError, match="busy"):
        update_weights(engine, tmp_path)
    with pytest.raises(ConfigError, match="SGLang"):
        update_weights(connect(start(FakeVLLM, says("x")).address), tmp_path)


def test_no_server_takes_weights_that_another_cannot_take(start: Start, tmp_path: Any) -> None:
    able, unable = start(FakeSGLang, says("x")), start(FakeVLLM, says("x"))
    engine = connect(f"{able.address},{unable.address}")
    with pytest.raises(ConfigError, match=r"vllm at .* cannot take new weights"):
        update_weights(engine, tmp_path)
    assert able.updates == ()


def test_a_vllm_without_ids_is_too_old(start: Start) -> None:
    server = start(FakeVLLM, says("x"))
    server.tells_ids = False
    with pytest.raises(EngineError, match="token_ids"):
        run(connect(server.address).generate(PROMPT, Sampling(4)))


def test_llamacpp_that_hides_an_id_is_an_error_and_no_answer(start: Start) -> None:
    server = start(FakeLlamaCpp, says("a€b"))
    server.hides = frozenset({0xE2, 0x82})
    with pytest.raises(EngineError, match="some tokens only"):
        run(connect(server.address).generate(PROMPT, Sampling(50)))


def test_an_endpoint_is_asked_for_no_more_than_it_can(start: Start) -> None:
    server = start(FakeOpenAI, says("12<join>3</join>"))
    server.takes_ids, server.tells_logprobs = False, False
    engine = connect(server.address, codec)
    got = run(engine.generate(PROMPT, Sampling(50, stop_ids=(EOS,))))
    assert got.ids == (*codec.encode("12<join>3</join>"), EOS)
    assert got.logprobs == ()
    assert server.bodies[-1]["prompt"] == "go on: "
    with pytest.raises(ConfigError, match="top_k"):
        run(engine.generate(PROMPT, Sampling(50, 1.0, top_k=4)))


@pytest.mark.parametrize("extensions", [False, True])
def test_an_endpoint_of_another_tokenizer_is_asked_in_text(start: Start, extensions: bool) -> None:
    server = start(FakeOpenAI, says("12<join>3</join>4"))
    server.takes_extensions = server.tells_ids = extensions
    own = ByteCodec(["</join>"], bos="<|begin|>")
    engine = connect(server.address + "&text=true", own)
    prompt_ids = (own.bos_id, *own.encode("go on: "))
    got = run(engine.generate(prompt_ids, Sampling(50, stop_ids=(own.token_id("</join>"),))))
    assert got.ids == own.encode("12<join>3</join>")
    assert [type(body["prompt"]) for body in server.bodies] == [str] * len(server.bodies)
    assert server.bodies[-1]["prompt"] == "go on: ", "the endpoint begins a sequence itself"
    assert engine.about["tells_ids"] is False


def test_an_endpoint_that_cuts_text_elsewhere_gives_no_logprobs(start: Start) -> None:
    server = start(FakeOpenAI, lambda prompt: codec.encode("abcd"))
    server.split = lambda text: [text + " "]
    got = run(connect(server.address, codec).generate(PROMPT, Sampling(4)))
    assert got.ids == codec.encode("abcd")
    assert got.logprobs == ()


def test_an_endpoint_that_tells_text_needs_a_codec_and_a_context(start: Start) -> None:
    server = start(FakeOpenAI, says("x"))
    with pytest.raises(ConfigError, match="codec"):
        connect(server.address)
    with pytest.raises(ConfigError, match="context"):
        connect(server.address.partition("?")[0], codec)
    with pytest.raises(ConfigError, match="m, n and no 'o'"):
        connect(server.address + "&model=o", codec)
    assert connect(server.address + "&model=n", codec).about["model"] == "n"


@pytest.mark.parametrize(
    "choice",
    [
        {"token_ids": ["a"]},
        {"token_ids": [-1]},
        {"token_ids": [None]},
        {"token_ids": 5},
        {"token_ids": [5], "logprobs": {"token_logprobs": [None]}},
        {"token_ids": [5], "logprobs": [-1.0]},
        {"token_ids": [5], "logprobs": {"token_logprobs": [nan]}},
        pytest.param({"token_ids": [5], "logprobs": {"token_logprobs": [10**400]}}, id="huge"),
        {"token_ids": [5] * 5},
        {"token_ids": [9999]},
        "text",
    ],
    ids=str,
)
def test_what_are_no_numbers_is_an_error_and_no_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    server = start(FakeVLLM, says("x"))
    engine = connect(server.address, codec)
    if isinstance(choice, dict):
        choice = {"finish_reason": "stop", **choice}
    monkeypatch.setattr(server, "whole", lambda *_: {"choices": [choice]})
    with pytest.raises(EngineError, match="answers in a way that vllm does not"):
        run(engine.generate(PROMPT, Sampling(4)))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", [FakeSGLang, FakeVLLM, FakeLlamaCpp])
def test_more_tokens_than_were_asked_for_is_an_error_and_no_answer(
    kind: type[Fake], start: Start, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    server = start(kind, says("12 + 3"))
    engine = connect(server.address, codec, RemoteConfig(stream=stream))
    read = server.read

    def generously(body: Any) -> Asked:
        asked = read(body)
        return replace(asked, max_tokens=asked.max_tokens + 1)

    monkeypatch.setattr(server, "read", generously)
    with pytest.raises(EngineError, match="5 of 4 tokens"):
        run(engine.generate(PROMPT, Sampling(4), lambda ids: None))


def test_an_endpoint_without_some_logprobs_gives_none(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(FakeOpenAI, lambda prompt: codec.encode("abcd"))
    monkeypatch.setattr(ScriptedEngine, "logprob", lambda id: None)
    got = run(connect(server.address, codec).generate(PROMPT, Sampling(4)))
    assert (got.ids, got.logprobs) == (codec.encode("abcd"), ())
