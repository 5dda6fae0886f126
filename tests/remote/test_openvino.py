"""OpenVINO beside the embedded engine, for which those under the marker ``engines`` need its extra;
and how it serves an event loop, for which a double stands in.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import apr
from apr import api
from apr.countdown.problem import Split
from apr.engine import EmbeddedEngine
from apr.errors import CheckpointError, ConfigError, ContextError, EngineError, InputError
from apr.interfaces import Engine
from apr.models.checkpoint import load_checkpoint, save_checkpoint
from apr.models.llama import Llama
from apr.remote import connect, update_weights
from apr.remote.openvino import OpenVINOConfig, OpenVINOEngine, open_address
from apr.types import Completion, FinishReason, Sampling
from tests.remote import fake_genai
from tests.tiny import tiny_config, tiny_model

PROMPT = (5, 6, 7, 8, 9, 10)


def complete(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[Completion]:
    async def run() -> list[Completion]:
        return await asyncio.gather(*(engine.generate(p, sampling) for p in prompts))

    return asyncio.run(run())


INSTALLED = importlib.util.find_spec("openvino_genai") is not None


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("kv=u9", "kv is 'u9'"),
        ("kv_gib=0", "kv_gib is 0"),
        ("thread=2", "did you mean 'threads'"),
        ("threads=many", "threads"),
    ],
)
def test_a_setting_that_is_none_is_refused(query: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        connect(f"openvino://{apr.DEMO}?{query}")


@pytest.mark.skipif(INSTALLED, reason="the extra is installed")
def test_without_the_extra_it_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"apr\[openvino\]"):
        connect(f"openvino://{apr.DEMO}")


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OpenVINOEngine:
    """An engine over a pipeline that needs no extra."""
    monkeypatch.setitem(sys.modules, "openvino_genai", fake_genai)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "none")
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 99, "vocab_size": 99}')
    (tmp_path / "openvino_model.xml").touch()
    return OpenVINOEngine(tmp_path)


@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError, None])
@pytest.mark.parametrize("cancels", [False, True])
def test_a_listener_that_gives_up_ends_its_own_request_only(
    double: OpenVINOEngine, cancels: bool, error: type[BaseException] | None
) -> None:
    tasks: list[asyncio.Task[Completion]] = []

    def listener(ids: Sequence[int]) -> None:
        if cancels:
            tasks[0].cancel()
        if error is not None:
            raise error("listener")

    async def run() -> list[object]:
        tasks.append(asyncio.create_task(double.generate(PROMPT, Sampling(5), listener)))
        tasks.append(asyncio.create_task(double.generate(PROMPT, Sampling(9))))
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    given_up, good = asyncio.run(run())
    assert isinstance(given_up, asyncio.CancelledError if cancels else error or Completion)
    assert good == Completion(tuple(range(9)), (-1.0,) * 9, FinishReason.LENGTH)
    assert not double.pipeline.has_non_finished_requests()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_nobody_is_left_waiting_by_whoever_cancels_everything(
    double: OpenVINOEngine, steps: int
) -> None:
    async def run() -> Completion:
        asked = asyncio.create_task(double.generate(PROMPT, Sampling(60)))
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asked, asyncio.current_task()}:
            task.cancel()
        return await asyncio.wait_for(asked, 30)

    with pytest.raises(EngineError, match="CancelledError"):
        asyncio.run(run())
    assert len(complete(double, [PROMPT] * 2, Sampling(5))) == 2


def test_a_failing_pipeline_fails_every_request_and_the_engine_lives_on(
    double: OpenVINOEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("no more memory")

    async def run() -> list[object]:
        asked = [double.generate(PROMPT, Sampling(5)) for _ in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(double.pipeline, "step", broken)
        failed = asyncio.run(run())
    assert all(isinstance(e, EngineError) and "no more memory" in str(e) for e in failed)
    assert len(complete(double, [PROMPT] * 3, Sampling(5))) == 3


def test_one_event_loop_at_a_time_is_served(double: OpenVINOEngine) -> None:
    at_work, refused = threading.Event(), threading.Event()

    def listener(ids: Sequence[int]) -> None:
        at_work.set()
        assert refused.wait(30)

    def other() -> None:
        assert at_work.wait(30)
        try:
            with pytest.raises(EngineError, match="in another thread's event loop"):
                complete(double, [PROMPT], Sampling(5))
        finally:
            refused.set()

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(other)
        done = asyncio.run(double.generate(PROMPT, Sampling(5), listener))
        told.result()
    assert done.ids == tuple(range(5))
    assert len(complete(double, [PROMPT], Sampling(5))) == 1, "its turn has come"


def needs_extra(test: Callable[..., None]) -> Callable[..., None]:
    absent = pytest.mark.skipif(not INSTALLED, reason="needs pip install 'apr[openvino]'")
    return pytest.mark.engines(absent(test))


@pytest.fixture(scope="module")
def embedded() -> api.Model:
    return api.load(apr.DEMO)


@pytest.fixture(scope="module")
def engine(embedded: api.Model) -> OpenVINOEngine:
    return open_address(f"openvino://{apr.DEMO}?threads=1", embedded.codec)


def saved(model: Llama, folder: Path, dtype: torch.dtype | None = None) -> Path:
    save_checkpoint(model, folder, dtype=dtype)
    return folder


@needs_extra
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_greedy_ids_and_logprobs_are_the_embedded_engines(
    tmp_path: Path, tied: bool, num_kv_heads: int
) -> None:
    config = replace(tiny_config(tied, num_kv_heads), eos_token_id=None if tied else 1)
    folder = saved(tiny_model(config), tmp_path / "tiny")
    prompts = [range(1, 1 + n) for n in (1, 2, 3, 17, 20, 30)]
    want = complete(EmbeddedEngine(load_checkpoint(folder)), prompts, Sampling(30))
    got = complete(OpenVINOEngine(folder), prompts, Sampling(30))
    assert [c.ids for c in got] == [c.ids for c in want]
    for mine, theirs in zip(got, want, strict=True):
        assert mine.finish_reason is FinishReason.LENGTH
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@needs_extra
def test_weights_of_16_bits_are_read_as_the_embedded_engine_does(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        folder = saved(tiny_model(), tmp_path / str(dtype), dtype)
        want = complete(EmbeddedEngine(load_checkpoint(folder)), [PROMPT], Sampling(30))
        got = complete(OpenVINOEngine(folder), [PROMPT], Sampling(30))
        assert got[0].ids == want[0].ids


@needs_extra
def test_sampled_logprobs_are_those_at_temperature_1(
    engine: OpenVINOEngine, embedded: api.Model
) -> None:
    sampling = Sampling(40, temperature=0.7, top_p=0.9, top_k=20, seed=3)
    (got,) = complete(engine, [PROMPT], sampling)
    # The embedded engine, made to say the same, tells what each id is worth.
    want = [
        complete(embedded.engine, [PROMPT + got.ids[:i]], Sampling(1))[0]
        for i in range(len(got.ids))
    ]
    likeliest = [w.ids[0] == id for w, id in zip(want, got.ids, strict=True)]
    assert not all(likeliest)
    for same, mine, theirs in zip(likeliest, got.logprobs, want, strict=True):
        if same:
            assert mine == pytest.approx(theirs.logprobs[0], abs=1e-3)
        else:
            assert mine < theirs.logprobs[0]
    again = complete(engine, [PROMPT, PROMPT[::-1], PROMPT], sampling)
    assert again[0].ids == again[2].ids == got.ids
    # Of a model as sure as this one two seeds may well say the same; ten do not.
    others = [complete(engine, [PROMPT], replace(sampling, seed=seed))[0] for seed in range(4, 14)]
    assert any(other.ids != got.ids for other in others)


@contextmanager
def holding(engine: OpenVINOEngine) -> Iterator[None]:
    """Keep the handles of requests, which OpenVINO would end by itself once nobody has them."""
    held: list[Any] = []
    ask = engine._ask

    def keep(*args: Any) -> Any:
        held.append(ask(*args))
        return held[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_ask", keep)
        yield
    assert held


@needs_extra
def test_stops_end_a_completion_and_are_kept(engine: OpenVINOEngine, embedded: api.Model) -> None:
    (free,) = complete(engine, [PROMPT], Sampling(40))
    stop = free.ids[7]
    (by_id,) = complete(engine, [PROMPT], Sampling(40, stop_ids=(stop,)))
    cut = free.ids[: free.ids.index(stop) + 1]
    assert by_id == Completion(cut, free.logprobs[: len(cut)], FinishReason.STOP)
    text = embedded.codec.decode(free.ids[6:8])
    (want,) = complete(embedded.engine, [PROMPT], Sampling(40, stop_strings=(text,)))
    (by_text,) = complete(engine, [PROMPT], Sampling(40, stop_strings=(text,)))
    assert (by_text.ids, by_text.finish_reason) == (want.ids, FinishReason.STOP)
    with holding(engine):
        complete(engine, [PROMPT], Sampling(40, stop_ids=(stop,)))
        complete(engine, [PROMPT], Sampling(1))
        assert not engine.pipeline.has_non_finished_requests(), "it samples on behind our back"


@needs_extra
def test_ids_are_heard_one_by_one_and_what_is_cancelled_frees_its_memory(
    engine: OpenVINOEngine,
) -> None:
    heard: list[int] = []

    async def cancel() -> None:
        task = asyncio.create_task(engine.generate(PROMPT, Sampling(300), heard.extend))
        other = asyncio.create_task(engine.generate(PROMPT[::-1], Sampling(40)))
        while len(heard) < 5:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len((await other).ids) == 40

    with holding(engine):
        asyncio.run(cancel())
        assert not engine.pipeline.has_non_finished_requests()
    assert len(heard) < 10
    (done,) = complete(engine, [PROMPT], Sampling(len(heard)))
    assert done.ids == tuple(heard)


@needs_extra
def test_a_listener_that_fails_or_cancels_harms_no_other(engine: OpenVINOEngine) -> None:
    def fail(ids: Sequence[int]) -> None:
        raise LookupError("the listener's")

    async def run() -> None:
        async with asyncio.timeout(60):
            doomed = asyncio.create_task(engine.generate(PROMPT, Sampling(9), fail))
            leaving = asyncio.create_task(
                engine.generate(PROMPT, Sampling(1), lambda ids: leaving.cancel() and None)
            )
            other = asyncio.create_task(engine.generate(PROMPT, Sampling(20)))
            with pytest.raises(LookupError, match="the listener's"):
                await doomed
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert len((await other).ids) == 20

    asyncio.run(run())


@needs_extra
def test_what_it_cannot_do_is_said(engine: OpenVINOEngine, tmp_path: Path) -> None:
    with pytest.raises(ContextError, match=f"context of {engine.context}"):
        complete(engine, [PROMPT], Sampling(engine.context - 5))
    with pytest.raises(ContextError, match="vocabulary"):
        complete(engine, [(engine.vocabulary,)], Sampling(1))
    with pytest.raises(InputError, match="OpenVINO refuses"):
        complete(engine, [PROMPT], Sampling(5, 1.0, top_p=2.0))
    with pytest.raises(ConfigError, match="new weights"):
        update_weights(engine, apr.DEMO)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        OpenVINOEngine(tmp_path)
    folder = saved(tiny_model(), tmp_path / "tiny")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"silu"', '"gelu"'))
    with pytest.raises(CheckpointError, match=r"gelu.*optimum-cli"):
        OpenVINOEngine(folder)
    (folder / "model.safetensors").write_bytes(b"x")
    config.write_text(config.read_text().replace('"gelu"', '"silu"'))
    with pytest.raises(CheckpointError, match="copy the checkpoint again"):
        OpenVINOEngine(folder)


@needs_extra
def test_no_more_is_taken_on_than_memory_holds(embedded: api.Model) -> None:
    """A thousand requests, of which a few fit at a time, come out as they do alone."""
    few = OpenVINOEngine(apr.DEMO, OpenVINOConfig(max_batch=8, max_batch_tokens=64))
    prompts = [(2 + i % 500, 3 + i // 500, 4) for i in range(1000)]
    got = complete(few, prompts, Sampling(4))
    want = complete(embedded.engine, prompts, Sampling(4))
    assert [c.ids for c in got] == [c.ids for c in want]


@needs_extra
def test_an_evaluation_gives_the_same_traces(engine: OpenVINOEngine, embedded: api.Model) -> None:
    problems = api.pose(embedded.recipe, Split.TEST, 20)
    model = replace(embedded, engine=engine)
    for mine, theirs in zip(
        api.evaluate(model, problems), api.evaluate(embedded, problems), strict=True
    ):
        assert mine.error is None
        assert mine.answer == theirs.answer
        assert mine.grade == theirs.grade
        assert [[c.ids for c in t.calls] for t in mine.threads] == [
            [c.ids for c in t.calls] for t in theirs.threads
        ]
        assert all(c.logprobs for t in mine.threads for c in t.calls)


@needs_extra
def test_8_bits_of_keys_and_values_blur_logprobs(embedded: api.Model) -> None:
    """The reason why they are not the default here."""
    exact, blurred = (
        complete(open_address(f"openvino://{apr.DEMO}?kv={kv}", None), [PROMPT], Sampling(40))[0]
        for kv in ("f32", "u8")
    )
    (want,) = complete(embedded.engine, [PROMPT], Sampling(40))
    same = next((i for i in range(40) if blurred.ids[i] != want.ids[i]), 40)
    assert exact.logprobs == pytest.approx(want.logprobs, abs=1e-3)
    assert same > 5
    errors = [abs(a - b) for a, b in zip(blurred.logprobs[:same], want.logprobs, strict=False)]
    assert 1e-3 < max(errors) < 0.5
