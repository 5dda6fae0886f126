"""llama.cpp's server on the CPU beside the embedded engine. ``make test-engines`` runs this."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import apr
from apr import api
from apr.countdown.problem import Problem
from apr.errors import ConfigError, EngineError
from apr.models.gguf import save_gguf
from apr.remote import RemoteConfig, connect, update_weights
from apr.trace import Trace
from apr.types import Completion, FinishReason, Sampling
from tests.remote.environments import llama_server
from tests.remote.real import NUM_PROBLEMS, complete, facts, free_port, logprobs_at_1, prompts_of

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        shutil.which("c++") is None,
        reason="llama.cpp is built from source, and there is no C++ compiler (c++)",
    ),
]


@dataclass
class Running:
    """A server that a test may kill and start again."""

    program: Path
    weights: Path
    context: int
    log: Path

    def __post_init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        slots = ["--parallel", str(NUM_PROBLEMS), "--ctx-size", str(NUM_PROBLEMS * self.context)]
        # In full precision, as the embedded engine computes there.
        exact = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        command = [self.program, "--model", self.weights, *slots, *exact, *where]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            with suppress(httpx.TransportError):
                if self.ask("/health").status_code == 200:
                    return
            time.sleep(0.1)
        pytest.fail(f"not ready: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=60)

    def engine(self, model: api.Model, **settings: Any) -> Any:
        address = f"llamacpp://127.0.0.1:{self.port}"
        return connect(address, model.codec, RemoteConfig(**settings))


@pytest.fixture(scope="module")
def running(embedded: api.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("llamacpp")
    save_gguf(apr.DEMO, folder / "demo.gguf")
    context = embedded.engine.context
    server = Running(llama_server(), folder / "demo.gguf", context, folder / "log.txt")
    try:
        yield server
    finally:
        server.kill()


def test_it_says_what_it_is(running: Running, embedded: api.Model) -> None:
    engine = running.engine(embedded)
    assert engine.context == embedded.engine.context
    assert engine.about["server"].startswith("llama.cpp ")
    with pytest.raises(ConfigError, match="SGLang"):
        update_weights(engine, apr.DEMO)


def test_greedy_ids_and_logprobs_are_the_embedded_engines(
    running: Running, embedded: api.Model, expected: list[Trace]
) -> None:
    prompts = prompts_of(expected, 30)
    sampling = Sampling(40)
    want = complete(embedded.engine, prompts, sampling)
    got = complete(running.engine(embedded), prompts, sampling)
    assert [c.ids for c in got] == [c.ids for c in want]
    for mine, theirs in zip(got, want, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_sampled_logprobs_are_those_at_temperature_1(
    running: Running, embedded: api.Model, expected: list[Trace], temperature: float
) -> None:
    prompts = prompts_of(expected, 8)
    sampling = Sampling(40, temperature, top_p=0.95, top_k=50)
    got = complete(running.engine(embedded), prompts, sampling)
    for prompt, each in zip(prompts, got, strict=True):
        assert len(each.ids) == len(each.logprobs)
        assert each.logprobs == pytest.approx(logprobs_at_1(embedded, prompt, each.ids), abs=1e-3)


def test_a_seed_makes_sampling_repeat(
    running: Running, embedded: api.Model, expected: list[Trace]
) -> None:
    engine = running.engine(embedded)
    (prompt,) = prompts_of(expected, 1)
    same, again, other = (
        complete(engine, [prompt], Sampling(40, 1.5, seed=seed))[0].ids for seed in (1, 1, 2)
    )
    assert same == again != other


def test_stops_end_a_completion_and_are_kept(
    running: Running, embedded: api.Model, expected: list[Trace]
) -> None:
    engine = running.engine(embedded)
    (prompt,) = prompts_of(expected, 1)
    (free,) = complete(engine, [prompt], Sampling(40))
    stop = free.ids[7]
    cut = free.ids[: free.ids.index(stop) + 1]
    (by_id,) = complete(engine, [prompt], Sampling(40, stop_ids=(stop,)))
    assert by_id == Completion(cut, by_id.logprobs, FinishReason.STOP)
    text = embedded.codec.decode(free.ids[6:8])
    (want,) = complete(embedded.engine, [prompt], Sampling(40, stop_strings=(text,)))
    (by_text,) = complete(engine, [prompt], Sampling(40, stop_strings=(text,)))
    assert by_text.ids == want.ids
    assert by_text.finish_reason is FinishReason.STOP
    assert by_text.logprobs == pytest.approx(want.logprobs, abs=1e-3)


def test_the_whole_context_can_be_used(running: Running, embedded: api.Model) -> None:
    engine = running.engine(embedded)
    prompt = (30,) * (engine.context - 3)
    (got,) = complete(engine, [prompt], Sampling(3))
    assert len(got.ids) == 3
    assert got.finish_reason is FinishReason.LENGTH
    (want,) = complete(embedded.engine, [prompt], Sampling(3))
    assert got.ids == want.ids


def test_a_cancelled_request_ends(
    running: Running, embedded: api.Model, expected: list[Trace]
) -> None:
    engine = running.engine(embedded)
    prompt = min(prompts_of(expected, 30), key=len)
    heard: list[int] = []

    async def cancel() -> None:
        task = asyncio.create_task(engine.generate(prompt, Sampling(300), heard.extend))
        while len(heard) < 5:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    deadline = time.monotonic() + 60
    while num_running(running) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert num_running(running) == 0


def num_running(running: Running) -> int:
    return sum(slot["is_processing"] for slot in running.ask("/slots").json())


def test_an_evaluation_gives_the_same_traces(
    running: Running, embedded: api.Model, problems: list[Problem], expected: list[Trace]
) -> None:
    model = replace(embedded, engine=running.engine(embedded))
    got = api.evaluate(model, problems, concurrency=NUM_PROBLEMS)
    assert [facts(t) for t in got] == [facts(t) for t in expected]


def test_a_server_killed_and_brought_back_loses_nothing(
    running: Running, embedded: api.Model, problems: list[Problem], expected: list[Trace]
) -> None:
    model = replace(embedded, engine=running.engine(embedded, patience=1.0))
    done: list[Trace] = []

    def kill_after_three(trace: Trace) -> None:
        done.append(trace)
        if len(done) == 3:
            running.kill()

    first = api.evaluate(model, problems, None, NUM_PROBLEMS, kill_after_three)
    lost = [i for i, trace in enumerate(first) if trace.error is not None]
    assert lost
    assert all(first[i].grade is None for i in lost)
    kept = [i for i in range(len(first)) if i not in lost]
    assert [facts(first[i]) for i in kept] == [facts(expected[i]) for i in kept]
    with pytest.raises(EngineError, match="does not answer"):
        running.engine(embedded)
    running.start()
    again = api.evaluate(model, [problems[i] for i in lost], concurrency=NUM_PROBLEMS)
    assert [facts(t) for t in again] == [facts(expected[i]) for i in lost]
