"""From addresses to an engine: ``sglang://host:port``, ``vllm://``, ``llamacpp://``, ``openai://``.

And ``openvino://FOLDER``, which is no server: OpenVINO runs a checkpoint in this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from apr.errors import ConfigError
from apr.interfaces import Codec
from apr.remote import llamacpp, openai, openvino, sglang
from apr.remote.engine import Api, RemoteEngine
from apr.remote.http import KEY, Http, RemoteConfig
from apr.remote.openvino import OpenVINOEngine
from apr.remote.replicas import Replicas


class Server(StrEnum):
    """Kinds of servers, which are the schemes of their addresses."""

    SGLANG = "sglang"
    """SGLang, native API."""
    VLLM = "vllm"
    """vLLM, completions with ids."""
    LLAMACPP = "llamacpp"
    """llama.cpp's server, native API."""
    OPENAI = "openai"
    """Any OpenAI-compatible endpoint for completions."""


_PORTS = {
    Server.SGLANG: sglang.PORT,
    Server.VLLM: openai.VLLM_PORT,
    Server.LLAMACPP: llamacpp.PORT,
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and what must be told of it."""

    server: Server
    url: str
    model: str | None = None
    """Which of several models it is to use."""
    context: int | None = None
    """Its context, where it does not tell."""
    in_text: bool = False
    """Ask an endpoint in text though it takes ids, since its tokenizer is not at hand."""


def read_address(text: str) -> Address:
    """An address such as ``vllm://10.0.0.7:8000`` or ``openai+https://host/v1?model=m&context=4096``.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urlsplit(text)
        kind, _, transport = parts.scheme.partition("+")
        server, port, told = Server(kind), parts.port, dict(parse_qsl(parts.query))
        context = int(told.pop("context")) if "context" in told else None
    except ValueError as e:
        raise ConfigError(f"{text!r} is no address of a server ({e}): {_EXAMPLES}") from e
    model = told.pop("model", None)
    in_text = server is Server.OPENAI and told.get("text") == "true"
    if in_text:
        del told["text"]
    if transport not in ("", "http", "https") or not parts.hostname or told:
        raise ConfigError(f"{text!r} is no address of a server: {_EXAMPLES}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = port or (None if transport == "https" else _PORTS.get(server))
    path = parts.path.rstrip("/") or ("/v1" if server is Server.OPENAI else "")
    url = f"{transport or 'http'}://{host}{f':{port}' if port else ''}{path}"
    return Address(server, url, model, context, in_text)


def connect(
    addresses: str, codec: Codec | None = None, config: RemoteConfig | None = None
) -> RemoteEngine | Replicas | OpenVINOEngine:
    """An engine over the server, or over the replicas, at ``addresses``.

    Asks each server at once what it serves. May be called within an event loop, which waits.

    Args:
        addresses: one, or several with commas between them.
        codec: needed for stop strings, and for endpoints that tell text only.

    Raises:
        ConfigError: something is no address, or the server needs to be told more.
        EngineError: a server does not answer, or not as it should.
    """
    if addresses.startswith(openvino.SCHEME):
        return openvino.open_address(addresses, codec)
    config = config or RemoteConfig()
    engines = [_connect(read_address(a.strip()), codec, config) for a in addresses.split(",")]
    return engines[0] if len(engines) == 1 else Replicas(engines)


def update_weights(engine: RemoteEngine | Replicas | OpenVINOEngine, checkpoint: Path) -> None:
    """Have every server behind ``engine`` take its weights from a folder that it can read.

    Call it between requests.

    Raises:
        ConfigError: a server is of a kind that cannot.
        InputError: a server refuses, for instance weights of another shape.
        EngineError: a server failed.
    """
    if isinstance(engine, OpenVINOEngine):
        raise ConfigError("OpenVINO cannot take new weights: use SGLang")
    for each in engine.engines if isinstance(engine, Replicas) else (engine,):
        if not isinstance(each.api, sglang.SGLang):
            raise ConfigError(f"{each.http.name} cannot take new weights: use SGLang")
        sglang.update_weights(each.http, checkpoint)


def _connect(address: Address, codec: Codec | None, config: RemoteConfig) -> RemoteEngine:
    http = Http(address.server, address.url, config, os.environ.get(KEY, "").strip())
    api, about = _READERS[address.server](http, address, codec)
    if address.model not in (None, about["model"]):
        raise ConfigError(
            f"{http.name} serves {about['model']!r} and no {address.model!r}: leave ?model= out"
        )
    if address.context is not None and address.context > api.context:
        raise ConfigError(
            f"{http.name} has a context of {api.context}, not {address.context}: ask for no more"
        )
    return RemoteEngine(http, api, codec, {"url": address.url, **about}, address.context)


_EXAMPLES = "write sglang://host:port, vllm://host:port, llamacpp://host:port or openai://host:port"
_READERS: dict[Server, Callable[[Http, Address, Codec | None], tuple[Api, dict[str, Any]]]] = {
    Server.SGLANG: lambda http, address, codec: sglang.read_server(http),
    Server.VLLM: lambda http, address, codec: openai.read_vllm(http, address.model),
    Server.LLAMACPP: lambda http, address, codec: llamacpp.read_server(http),
    Server.OPENAI: lambda http, address, codec: openai.read_endpoint(
        http, address.model, address.context, codec, address.in_text
    ),
}
