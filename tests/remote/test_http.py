"""Servers that die, stall, refuse and recover; who is asked again, and who is told."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from math import nan
from pathlib import Path
from types import SimpleNamespace

import pytest

from apr.errors import ConfigError, EngineError, EngineTimeout, InputError
from apr.remote import RemoteConfig, RemoteEngine, Replicas, connect
from apr.remote.http import Http
from apr.remote.session import trusted
from apr.types import Completion, Sampling
from tests.remote.conftest import Start, codec, says
from tests.remote.fakes import Fake, FakeVLLM, Fault

PROMPT = codec.encode("go on: ")
TEXT = codec.encode("12 + 3")
SOON = RemoteConfig(patience=0.5)


def engine_of(server: Fake, config: RemoteConfig = SOON) -> RemoteEngine:
    engine = connect(server.address, codec, config)
    assert isinstance(engine, RemoteEngine)
    return engine


async def ask(engine: RemoteEngine, **settings: int) -> Completion:
    return await engine.generate(PROMPT, Sampling(6, **settings))


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Fails where connections are left to the garbage collector."""
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(warning.message) for warning in seen] == []


def test_connections_are_reused_and_their_number_is_bounded(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"), delay=0.002)
    engine = engine_of(server, RemoteConfig(concurrency=4))
    before = server.num_connections

    async def many() -> list[Completion]:
        return await asyncio.gather(*(ask(engine) for _ in range(40)))

    assert {c.ids for c in asyncio.run(many())} == {TEXT}
    assert server.most_active == 4
    assert server.num_connections - before <= 4


def test_an_engine_outlives_an_event_loop(start: Start) -> None:
    engine = engine_of(start(FakeVLLM, says("12 + 3")))
    assert [asyncio.run(ask(engine)).ids for _ in range(3)] == [TEXT] * 3


def test_two_event_loops_at_once_use_one_engine(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"), delay=0.01)
    engine = engine_of(server)
    before = server.num_connections
    both = threading.Barrier(2)

    async def one_after_the_other() -> list[Completion]:
        return [await ask(engine) for _ in range(4)]

    def work(_: int) -> list[Completion]:
        both.wait(30)
        return asyncio.run(one_after_the_other())

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(work, range(2)))
    assert [c.ids for each in told for c in each] == [TEXT] * 8
    assert server.num_connections - before == 2, "each keeps its own"
    assert not engine.http._sessions._held


def test_who_asks_while_connections_close_gets_new_ones(start: Start) -> None:
    engine = engine_of(start(FakeVLLM, says("12 + 3")))

    async def close_and_ask() -> Completion:
        await ask(engine)
        asked = asyncio.create_task(ask(engine))
        await engine.close()
        return await asked

    assert asyncio.run(close_and_ask()).ids == TEXT


PASSING = (Fault(after=0), *(Fault(status=s) for s in (408, 429, 502, 503, 504)))


@pytest.mark.parametrize("fault", [*PASSING, Fault(status=200, code=429)])
def test_a_busy_or_broken_server_is_asked_again(
    kind: type[Fake], start: Start, fault: Fault
) -> None:
    server = start(kind, says("12 + 3"))
    engine = connect(server.address, codec, SOON)
    server.faults.extend([fault] * 2)
    heard: list[int] = []
    got = asyncio.run(engine.generate(PROMPT, Sampling(6), heard.extend))
    assert got.ids == tuple(heard) == TEXT
    assert not server.faults


def test_what_was_heard_is_never_heard_again(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server)
    server.faults.append(Fault(after=3))
    heard: list[int] = []
    with pytest.raises(EngineError, match="broke off"):
        asyncio.run(engine.generate(PROMPT, Sampling(6), heard.extend))
    assert tuple(heard) == TEXT[: len(heard)]
    assert len(server.bodies) == 1


def test_an_error_that_may_pass_is_not_asked_about_again_once_something_was_heard(
    start: Start,
) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server)
    server.faults.append(Fault(error="slow down", code=429))
    heard: list[int] = []
    with pytest.raises(EngineError, match="status 429: slow down"):
        asyncio.run(engine.generate(PROMPT, Sampling(6), heard.extend))
    assert tuple(heard) == TEXT[:1]
    assert len(server.bodies) == 1


def test_a_server_that_stays_busy_is_not_said_to_be_down(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server)
    server.faults.extend([Fault(status=503)] * 1000)
    with pytest.raises(EngineError, match=r"is too busy.*\(status 503: as the test wants it\)"):
        asyncio.run(ask(engine))
    server.faults = deque([Fault(status=429)])
    with pytest.raises(EngineError, match="is too busy"):
        engine.http.ask(server.completion_path, {})


def test_a_refusal_is_told_at_once_and_names_the_server(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server)
    server.faults.append(Fault(status=404))
    with pytest.raises(InputError, match=rf"vllm at http://127.0.0.1:{server.port} .*as the test"):
        asyncio.run(ask(engine))
    server.faults.append(Fault(status=500))
    with pytest.raises(EngineError, match="status 500: as the test"):
        asyncio.run(ask(engine))
    assert len(server.bodies) == 2


def test_a_dead_server_is_one_clear_error(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server)
    server.die()

    async def many() -> list[object]:
        return await asyncio.gather(*(ask(engine) for _ in range(20)), return_exceptions=True)

    for error in asyncio.run(many()):
        assert isinstance(error, EngineError)
        assert f"vllm at http://127.0.0.1:{server.port} does not answer" in str(error)
    with pytest.raises(EngineError, match="does not answer"):
        connect(server.address)


def test_only_the_first_requests_wait_for_a_dead_server(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server, RemoteConfig(patience=3))
    server.faults.extend([Fault(after=0)] * 1000)

    async def one_after_the_other() -> list[int]:
        num_attempts = []
        for _ in range(3):
            with pytest.raises(EngineError):
                await ask(engine)
            num_attempts.append(len(server.bodies))
        return num_attempts

    first, second, third = asyncio.run(one_after_the_other())
    assert first > 3
    assert (second, third) == (first + 1, first + 2)


def test_a_long_wait_is_not_the_end_of_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last wait may be longer than all of the patience that it is to use up."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("apr.remote.http.time", clock)
    http = Http("vllm", "http://127.0.0.1:1", RemoteConfig(patience=3))
    # The last comes long after the others, and belongs to another outage.
    for now, again in ((100, True), (102.8, True), (105.9, False), (109, False), (200, True)):
        clock.now = float(now)
        assert http._may_try_again() is again, now


def test_a_server_that_begins_and_never_says_anything_is_not_waited_for(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = connect(server.address, codec, RemoteConfig(patience=0.5, seconds=60))
    server.faults.extend([Fault(after=0)] * 1_000)
    with pytest.raises(EngineError, match="does not answer"):
        asyncio.run(ask(engine))
    assert len(server.faults) > 900


def test_a_server_that_comes_back_in_time_loses_nothing(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"), delay=0.01)
    engine = engine_of(server, RemoteConfig(patience=20))

    async def many() -> list[Completion]:
        asked = [asyncio.create_task(ask(engine)) for _ in range(20)]
        await asyncio.sleep(0.03)
        await asyncio.to_thread(server.die)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.revive)
        return await asyncio.gather(*asked)

    assert [c.ids for c in asyncio.run(many())] == [TEXT] * 20


def test_a_stalled_server_is_a_timeout(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"), delay=30)
    engine = engine_of(server, RemoteConfig(seconds=0.3))
    with pytest.raises(EngineTimeout, match=r"0\.3 s"):
        asyncio.run(ask(engine))


def test_no_attempt_is_made_beyond_the_deadline(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server, RemoteConfig(seconds=0.5, patience=60))
    server.faults.extend([Fault(status=503)] * 1000)
    with pytest.raises(EngineTimeout):
        asyncio.run(ask(engine))


@pytest.mark.parametrize("stream", [True, False])
def test_cancelling_hangs_up(kind: type[Fake], start: Start, stream: bool) -> None:
    server = start(kind, says(100 * "12 + 3"))
    engine = connect(server.address, codec, RemoteConfig(stream=stream))
    server.delay = 0.01
    num_probes = len(server.bodies)

    async def cancel() -> None:
        task = asyncio.create_task(engine.generate(PROMPT, Sampling(600), lambda id: None))
        while len(server.bodies) == num_probes:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not server.num_hung_up:
            await asyncio.sleep(0.01)

    asyncio.run(cancel())


def test_a_request_cancelled_at_any_moment_leaves_no_connection_open(start: Start) -> None:
    """Not even those to a server that died while they were idle, which it begins by closing."""
    server = start(FakeVLLM, says("12 + 3"), delay=0.001)
    engine = engine_of(server)

    async def cancel_after(num_turns: int) -> None:
        await asyncio.gather(*(ask(engine) for _ in range(10)))
        await asyncio.to_thread(server.die)
        task = asyncio.create_task(ask(engine))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for num_turns in range(0, 30, 3):
        with nothing_left_open():
            asyncio.run(cancel_after(num_turns))
        server.revive()


SERVER = """
import threading
from apr.testing import ByteCodec
from tests.remote.fakes import FakeVLLM

answer = ByteCodec().encode(100 * "12 + 3")
with FakeVLLM(lambda prompt: answer, delay=0.005) as server:
    print(server.address, flush=True)
    threading.Event().wait()
"""


def test_a_killed_server_leaves_no_connection_open() -> None:
    """Kept connections, halves of answers, and siblings that are cancelled for a failed one."""
    root = Path(__file__).parents[2]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=root, stdout=subprocess.PIPE, text=True
    )
    heard: list[int] = []

    def kill_in_the_middle(ids: Sequence[int]) -> None:
        heard.extend(ids)
        if len(heard) == 50:
            server.kill()

    async def tree(engine: RemoteEngine | Replicas) -> None:
        async with asyncio.TaskGroup() as threads:
            for on_tokens in (kill_in_the_middle, None, kill_in_the_middle, None):
                threads.create_task(engine.generate(PROMPT, Sampling(500), on_tokens))

    async def forest(engine: RemoteEngine | Replicas) -> list[object]:
        await asyncio.gather(*(engine.generate(PROMPT, Sampling(6)) for _ in range(40)))
        return await asyncio.gather(*(tree(engine) for _ in range(5)), return_exceptions=True)

    with server, nothing_left_open():
        try:
            assert server.stdout is not None
            engine = connect(server.stdout.readline().strip(), codec, RemoteConfig(patience=0.2))
            failures = asyncio.run(forest(engine))
        finally:
            server.kill()
    for failure in failures:
        assert isinstance(failure, ExceptionGroup)
        assert failure.subgroup(EngineError) is not None


def test_a_listener_that_raises_fails_its_own_request_only(start: Start) -> None:
    engine = engine_of(start(FakeVLLM, says("12 + 3")))

    def listener(ids: Sequence[int]) -> None:
        raise KeyError("listener")

    async def both() -> list[object]:
        bad = engine.generate(PROMPT, Sampling(6), listener)
        return await asyncio.gather(bad, ask(engine), return_exceptions=True)

    bad, good = asyncio.run(both())
    assert isinstance(bad, KeyError)
    assert isinstance(good, Completion)


def test_a_key_is_sent_where_one_is_set(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(FakeVLLM, says("12 + 3"), key="s3cret")
    with pytest.raises(InputError, match="no key"):
        connect(server.address)
    monkeypatch.setenv("APR_ENGINE_KEY", "s3cret\r\n")  # As it comes out of many a file.
    assert asyncio.run(ask(engine_of(server))).ids == TEXT


def test_settings_without_sense_are_refused() -> None:
    for name, value in (
        *(("concurrency", 0), ("seconds", 0), ("connect_seconds", 0), ("patience", -1)),
        *((name, nan) for name in ("seconds", "connect_seconds", "patience")),
    ):
        with pytest.raises(ConfigError, match=f"{name} is {value}"):
            RemoteConfig(**{name: value})


def test_a_garbled_body_is_one_clear_error(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server)
    server.faults.append(Fault(garbled=True))
    with pytest.raises(EngineError, match="answers in a way that vllm does not"):
        asyncio.run(ask(engine))
    server.faults.append(Fault(garbled=True))
    with pytest.raises(EngineError, match="answers in a way that vllm does not"):
        engine.http.ask(server.completion_path, {})


def test_json_nested_without_end_is_one_clear_error(start: Start) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server)
    deep = b"[" * 100_000
    server.faults.extend([Fault(body=deep)] * 2 + [Fault(status=500, body=deep)])
    with pytest.raises(EngineError, match="answers in a way that vllm does not"):
        asyncio.run(ask(engine))
    with pytest.raises(EngineError, match="answers in a way that vllm does not"):
        engine.http.ask(server.completion_path, {})
    with pytest.raises(EngineError, match="failed with status 500"):
        asyncio.run(ask(engine))


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "magic://127.0.0.1:9"), ("SSL_CERT_FILE", "/nope")],
)
def test_an_environment_that_allows_no_connection_is_one_clear_error(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    engine = engine_of(server)
    trusted.cache_clear()
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ConfigError, match=rf"cannot make connections .*{name}"):
        connect(server.address, codec)
    with pytest.raises(ConfigError, match=rf"cannot make connections .*{name}"):
        asyncio.run(ask(engine))


@pytest.mark.skipif(find_spec("socksio") is not None, reason="httpx can use such a proxy")
def test_a_proxy_that_needs_a_package_is_one_clear_error(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(FakeVLLM, says("12 + 3"))
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ConfigError, match="socksio"):
        connect(server.address, codec)
