"""Several servers as one: a trace stays with one, traces are spread, the dead are avoided."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from apr.dialects.tags import Tags
from apr.errors import ConfigError, EngineError
from apr.remote import RemoteConfig, Replicas, connect, pinned
from apr.remote.http import Http
from apr.runtime import Runtime
from apr.testing import ByteCodec
from apr.types import Sampling
from tests.remote.conftest import Start, codec, says
from tests.remote.fakes import Fake, FakeSGLang, FakeVLLM, Fault

PROMPT = codec.encode("go on: ")
SOON = RemoteConfig(patience=0.3)


def together(servers: Sequence[Fake]) -> Replicas:
    engine = connect(",".join(s.address for s in servers), codec, SOON)
    assert isinstance(engine, Replicas)
    return engine


def spawner(prompt: tuple[int, ...]) -> tuple[int, ...]:
    """A root spawns three children, and joins when it hears of them."""
    text = codec.decode(prompt)
    if text.startswith("<thread>") or "<joined>" in text:
        return codec.encode(f"<join>{text[8:12]}</join>")
    children = "".join(f"<thread>{text}.{i}</thread>" for i in range(3))
    return codec.encode(f"<spawn>{children}</spawn>")


def roots(server: Fake) -> set[str]:
    """The problems that a server saw anything of."""
    texts = [codec.decode(body["prompt"]) for body in server.bodies]
    return {text.removeprefix("<thread>")[:3] for text in texts}


def test_all_calls_of_a_trace_go_to_one_server(start: Start) -> None:
    servers = [start(FakeVLLM, spawner, delay=0.001) for _ in range(3)]
    runtime = Runtime(together(servers), codec, Tags(), Sampling(200))

    async def many() -> list[bool]:
        traces = await asyncio.gather(*(runtime.run(f"p{i:02}") for i in range(12)))
        return [t.error is None and t.num_children == 3 for t in traces]

    assert all(asyncio.run(many()))
    seen = [roots(s) for s in servers]
    assert sorted(root for each in seen for root in each) == [f"p{i:02}" for i in range(12)]
    assert [len(s.bodies) for s in servers] == [4 * 5] * 3


def test_a_trace_id_names_a_server(start: Start) -> None:
    servers = [start(FakeVLLM, says("x")) for _ in range(3)]
    engine, again = together(servers), together(servers)

    async def ask(trace_id: str) -> None:
        with pinned(trace_id):
            calls = [e.generate(PROMPT, Sampling(1)) for e in (engine, again, engine)]
            await asyncio.gather(*calls)

    async def many() -> None:
        for i in range(20):
            await ask(f"trace {i}")

    asyncio.run(many())
    assert sum(len(s.bodies) for s in servers) == 60
    assert all(len(s.bodies) % 3 == 0 for s in servers)
    assert all(s.bodies for s in servers)


def test_a_trace_moves_when_its_server_dies(start: Start) -> None:
    servers = [start(FakeVLLM, says("x")) for _ in range(2)]
    engine = together(servers)

    async def trace() -> list[int]:
        await engine.generate(PROMPT, Sampling(1))
        first = servers.index(next(s for s in servers if s.bodies))
        await asyncio.to_thread(servers[first].die)
        for _ in range(3):
            await engine.generate(PROMPT, Sampling(1))
        return [first, len(servers[first].bodies), len(servers[1 - first].bodies)]

    first, num_there, num_elsewhere = asyncio.run(trace())
    assert (num_there, num_elsewhere) == (1, 3)
    servers[1 - first].die()
    with pytest.raises(EngineError, match="does not answer"):
        asyncio.run(engine.generate(PROMPT, Sampling(1)))


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_trace_moves_when_nothing_is_behind_its_gateway(start: Start, status: int) -> None:
    servers = [start(FakeVLLM, says("x")) for _ in range(2)]
    engine = together(servers)
    servers[0].faults.extend([Fault(status=status)] * 1000)
    assert asyncio.run(engine.generate(PROMPT, Sampling(1))).ids == codec.encode("x")
    assert (bool(servers[0].bodies), len(servers[1].bodies)) == (True, 1)


def test_a_trace_that_was_heard_does_not_move(start: Start) -> None:
    servers = [start(FakeVLLM, says("abcdef")) for _ in range(2)]
    engine = together(servers)
    for server in servers:
        server.faults.append(Fault(after=2))
    heard: list[int] = []
    with pytest.raises(EngineError, match="broke off"):
        asyncio.run(engine.generate(PROMPT, Sampling(6), heard.extend))
    assert sum(len(s.bodies) for s in servers) == 1


def test_replicas_serve_one_model_and_the_shortest_context(start: Start) -> None:
    long, short = start(FakeVLLM, says("x"), context=64), start(FakeVLLM, says("x"), context=32)
    assert together([long, short]).context == 32
    assert together([long, short]).about["url"] == [
        f"http://127.0.0.1:{s.port}" for s in (long, short)
    ]

    class Other(FakeSGLang):
        def other(self, path: str, body: object) -> tuple[int, object] | None:
            found = super().other(path, None)
            return found and (200, found[1] | {"served_model_name": "another"})

    with pytest.raises(ConfigError, match="another"):
        together([long, start(Other, says("x"), codec=ByteCodec())])


def test_new_traces_avoid_a_server_that_is_down(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [start(FakeVLLM, says("x")) for _ in range(2)]
    engine = together(servers)
    down = engine.engines[0].http
    monkeypatch.setattr(Http, "is_down", property(lambda http: http is down))
    for _ in range(3):
        asyncio.run(engine.generate(PROMPT, Sampling(1)))
    assert [len(s.bodies) for s in servers] == [0, 3]
