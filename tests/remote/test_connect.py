"""Addresses, and servers that are not what the address says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apr.errors import ConfigError, EngineError
from apr.remote import RemoteConfig, Replicas, Server, connect
from apr.remote.connect import Address, read_address
from tests.remote.conftest import Start, codec, says
from tests.remote.fakes import Fake, FakeLlamaCpp, FakeOpenAI, FakeSGLang, FakeVLLM


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("sglang://gpu7:30001", Address(Server.SGLANG, "http://gpu7:30001")),
        ("sglang://gpu7", Address(Server.SGLANG, "http://gpu7:30000")),
        ("vllm://[::1]:8001/", Address(Server.VLLM, "http://[::1]:8001")),
        ("vllm+https://host/a/b", Address(Server.VLLM, "https://host/a/b")),
        ("llamacpp://10.0.0.7", Address(Server.LLAMACPP, "http://10.0.0.7:8080")),
        ("openai://host:9", Address(Server.OPENAI, "http://host:9/v1")),
        (
            "openai+https://host/api/v2?model=a/b&context=4096",
            Address(Server.OPENAI, "https://host/api/v2", "a/b", 4096),
        ),
        (
            "openai://host?context=9&text=true",
            Address(Server.OPENAI, "http://host/v1", None, 9, in_text=True),
        ),
        (
            "vllm://host?patience=60&model=7&stream=false",
            Address(
                Server.VLLM,
                "http://host:8000",
                "7",
                config=RemoteConfig(patience=60.0, stream=False),
            ),
        ),
    ],
)
def test_an_address_says_what_and_where(text: str, address: Address) -> None:
    assert read_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://host",
        "tgi://host",
        "vllm",
        "vllm://",
        "vllm+ftp://host",
        "vllm://[::1",
        "vllm://host:many",
        "vllm://host?context=long",
        "vllm://host?contxt=9",
        "vllm://host?context=",
        "vllm://host?patience=-1",
        "vllm://host?stream=perhaps",
        "vllm://host?text=true",
        "openai://host?text=yes",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="write sglang://host:port"):
        read_address(text)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown key 'patince': did you mean 'patience'"):
        read_address("vllm://host?patince=9")


def test_each_server_is_dealt_with_as_its_address_says(start: Start) -> None:
    server = start(FakeVLLM, says("x"))
    soon = RemoteConfig(patience=0.5)
    engine = connect(f"{server.address}?stream=false,{server.address}?patience=3", config=soon)
    assert isinstance(engine, Replicas)
    configs = [each.http.config for each in engine.engines]
    assert configs == [replace(soon, stream=False), replace(soon, patience=3.0)]


def test_a_server_of_another_kind_is_found_out(start: Start, kind: type[Fake]) -> None:
    server = start(FakeOpenAI if kind is FakeSGLang else FakeSGLang, says("x"))
    with pytest.raises((EngineError, ConfigError), match=kind.scheme):
        connect(f"{kind.scheme}://127.0.0.1:{server.port}", codec)


def test_a_context_may_be_told_but_not_stretched(start: Start) -> None:
    server = start(FakeVLLM, says("x"), context=64)
    with pytest.raises(ConfigError, match="64, not 65"):
        connect(f"{server.address}?context=65")
    assert connect(f"{server.address}?context=32").context == 32
    with pytest.raises(ConfigError, match="serves m and no 'other'"):
        connect(f"{server.address}?model=other")


@pytest.mark.parametrize("kind", [FakeSGLang, FakeLlamaCpp])
def test_a_server_that_serves_another_model_is_refused(kind: type[Fake], start: Start) -> None:
    server = start(kind, says("x"))
    served = connect(server.address).about["model"]
    assert connect(f"{server.address}?model={served}").about["model"] == served
    with pytest.raises(ConfigError, match="and no 'other'"):
        connect(f"{server.address}?model=other")


def test_traces_note_where_they_come_from(start: Start) -> None:
    server = start(FakeVLLM, says("x"))
    assert connect(server.address).about == {
        "url": f"http://127.0.0.1:{server.port}",
        "model": "m",
        "server": "vllm 0.32.0",
    }
