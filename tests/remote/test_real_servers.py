"""Real servers on the CPU beside the embedded engine. ``make test-engines`` runs this.

Takes some 6 GB of disk for the servers' environments, which are made once, and minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import apr
from apr import api
from apr.countdown.problem import Problem
from apr.errors import ConfigError, EngineError, InputError
from apr.remote import Launch, RemoteConfig, Server, connect, launched, update_weights
from apr.trace import Trace
from apr.types import Completion, FinishReason, Sampling
from tests.remote.environments import FOLDER, interpreter
from tests.remote.real import NUM_PROBLEMS, complete, facts, free_port, logprobs_at_1, prompts_of

pytestmark = [pytest.mark.engines, pytest.mark.timeout(3600)]

START = 1800.0


@dataclass
class Running:
    """A server that a test may stop and start again."""

    launch: Launch
    log: Path

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.context = launched(self.launch, self.log)
        self.process = self.context.__enter__()

    def kill(self) -> None:
        """As the machine's memory running out would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.context.__exit__(None, None, None)

    def engine(self, model: api.Model, **settings: Any) -> Any:
        return connect(self.launch.address, model.codec, RemoteConfig(**settings))


def launch_of(server: Server, checkpoint: Path) -> Launch:
    pool = ("--max-total-tokens", "16384", "--mem-fraction-static", "0.3")
    return Launch(
        server,
        checkpoint,
        interpreter(server),
        port=free_port(),
        cpu=True,
        flags=pool if server is Server.SGLANG else (),
        environment={"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        script=FOLDER / "sglang_cpu.py" if server is Server.SGLANG else None,
        patience=START,
    )


@pytest.fixture(scope="module", params=[Server.VLLM, Server.SGLANG])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    log = tmp_path_factory.mktemp(request.param) / "log.txt"
    server = Running(launch_of(request.param, apr.DEMO), log)
    try:
        yield server
    finally:
        server.stop()


def test_it_says_what_it_is(running: Running, embedded: api.Model) -> None:
    engine = running.engine(embedded)
    assert engine.context == embedded.engine.context
    assert engine.about["server"].startswith(running.launch.server)


def test_greedy_ids_and_logprobs_are_the_embedded_engines(
    running: Running, embedded: api.Model, expected: list[Trace]
) -> None:
    prompts = prompts_of(expected, 30)
    sampling = Sampling(40)
    want = complete(embedded.engine, prompts, sampling)
    for stream in (True, False):
        got = complete(running.engine(embedded, stream=stream), prompts, sampling)
        assert [c.ids for c in got] == [c.ids for c in want]
        for mine, theirs in zip(got, want, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_sampled_logprobs_are_those_at_temperature_1(
    running: Running, embedded: api.Model, expected: list[Trace], temperature: float
) -> None:
    prompts = prompts_of(expected, 8)
    sampling = Sampling(40, temperature, top_p=0.95, top_k=50)
    for prompt, got in zip(
        prompts, complete(running.engine(embedded), prompts, sampling), strict=True
    ):
        assert len(got.ids) == len(got.logprobs) == 40
        want = logprobs_at_1(embedded, prompt, got.ids)
        assert got.logprobs == pytest.approx(want, abs=1e-3)


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


def test_ids_are_heard_one_by_one_and_a_cancelled_request_ends(
    running: Running, embedded: api.Model, expected: list[Trace]
) -> None:
    engine = running.engine(embedded)
    prompt = min(prompts_of(expected, 30), key=len)
    heard: list[int] = []

    async def cancel() -> None:
        def hear(ids: Sequence[int]) -> None:
            heard.extend(ids)
            # From here, and not by somebody who looks now and then: on a busy machine the rest
            # would have come by then.
            if len(heard) >= 5:
                task.cancel()

        task = asyncio.create_task(engine.generate(prompt, Sampling(300), hear))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert len(heard) < 250
    deadline = time.monotonic() + 60
    while num_running(running.launch) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert num_running(running.launch) == 0
    (done,) = complete(engine, [prompt], Sampling(len(heard)))
    assert done.ids == tuple(heard)


def num_running(launch: Launch) -> float:
    """Requests that the server works on, as it says itself."""
    url = f"http://{launch.host}:{launch.port}"
    if launch.server is Server.SGLANG:
        return float(
            httpx.get(f"{url}/v1/loads", timeout=60).json()["loads"][0]["num_running_reqs"]
        )
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:num_requests_running"))


def test_what_it_refuses_is_said_in_its_words(running: Running, embedded: api.Model) -> None:
    engine = running.engine(embedded)
    with pytest.raises(InputError, match=f"{running.launch.server} at http.* refuses"):
        complete(engine, [(2, 3)], Sampling(5, 1.0, top_p=2.0))
    with pytest.raises(ConfigError, match="is not free"), launched(running.launch, running.log):
        pass


def test_it_is_an_openai_endpoint_too(
    running: Running, embedded: api.Model, expected: list[Trace]
) -> None:
    context = embedded.engine.context
    address = f"openai://127.0.0.1:{running.launch.port}?context={context}"
    engine = connect(address, embedded.codec)
    assert engine.about["tells_ids"]
    prompts = prompts_of(expected, 8)
    stops = tuple(i for i in (embedded.codec.eos_id,) if i is not None)
    sampling = Sampling(60, stop_ids=stops)
    want = complete(embedded.engine, prompts, sampling)
    got = complete(engine, prompts, sampling)
    assert [c.ids for c in got] == [c.ids for c in want]
    for mine, theirs in zip(got, want, strict=True):
        if mine.logprobs:
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


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
    for i, trace in enumerate(first):
        if i in lost:
            assert trace.grade is None
            assert str(running.launch.port) in str(trace.error)
        else:
            assert facts(trace) == facts(expected[i])
    with pytest.raises(EngineError, match="does not answer"):
        running.engine(embedded)
    running.start()
    again = api.evaluate(model, [problems[i] for i in lost], concurrency=NUM_PROBLEMS)
    assert [facts(t) for t in again] == [facts(expected[i]) for i in lost]


def test_new_weights_are_sampled_from(
    running: Running, embedded: api.Model, expected: list[Trace], tmp_path: Path
) -> None:
    engine = running.engine(embedded)
    if running.launch.server is not Server.SGLANG:
        with pytest.raises(ConfigError, match="SGLang"):
            update_weights(engine, apr.DEMO)
        return
    other = tmp_path / "other"
    shutil.copytree(apr.DEMO, other)
    change_weights(other)
    prompts = prompts_of(expected, 8)
    want = complete(api.load(other).engine, prompts, Sampling(30))
    before = complete(engine, prompts, Sampling(30))
    update_weights(engine, other)
    after = complete(engine, prompts, Sampling(30))
    assert [c.ids for c in after] == [c.ids for c in want]
    assert [c.ids for c in after] != [c.ids for c in before]
    with pytest.raises((InputError, EngineError), match="sglang at"):
        update_weights(engine, tmp_path / "nothing")
    update_weights(engine, apr.DEMO)
    back = complete(engine, prompts, Sampling(30))
    assert [c.ids for c in back] == [c.ids for c in before]


def change_weights(checkpoint: Path) -> None:
    """Enough that other ids are likeliest."""
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if "mlp" in name:
            weights[name] = weight + 0.05 * torch.randn(weight.shape, generator=generator)
    save_file(weights, path)


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    pytest.fail(f"processes of group {group} are still there")


def test_it_stops_with_all_that_it_started(
    tmp_path: Path, running: Running, embedded: api.Model
) -> None:
    running.stop()
    wait_until_gone(running.process.pid)
    with pytest.raises(EngineError):
        running.engine(embedded)
    broken = tmp_path / "broken"
    broken.mkdir()
    config = json.loads((apr.DEMO / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "no such thing"}))
    with (
        pytest.raises(EngineError, match="ended with status"),
        launched(replace(running.launch, checkpoint=broken), tmp_path / "log"),
    ):
        pass
