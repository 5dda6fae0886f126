"""From addresses to an engine: ``sglang://host:port``, ``vllm://``, ``llamacpp://``, ``openai://``.

And ``openvino://FOLDER``, which is no server: OpenVINO runs a checkpoint in this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from apr.config import build_query
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
    config: RemoteConfig = field(default_factory=RemoteConfig)
    """How to deal with it."""


def read_address(text: str, config: RemoteConfig | None = None) -> Address:
    """An address such as ``vllm://10.0.0.7:8000`` or ``openai+https://host/v1?model=m&context=4096``.

    Args:
        config: those of its settings that the address leaves out, as in ``vllm://host?patience=60``.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urlsplit(text)
        kind, _, transport = parts.scheme.partition("+")
        server, port = Server(kind), parts.port
        told = dict(parse_qsl(parts.query, keep_blank_values=True))
        model = told.pop("model", None)
        context = int(told.pop("context")) if "context" in told else None
        in_text = server is Server.OPENAI and told.get("text") == "true"
        if in_text:
            del told["text"]
        config = _changed(config or RemoteConfig(), told)
    except ValueError as e:
        raise ConfigError(f"{text!r} is no address of a server ({e}): {_EXAMPLES}") from e
    if transport not in ("", "http", "https") or not parts.hostname:
        raise ConfigError(f"{text!r} is no address of a server: {_EXAMPLES}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = port or (None if transport == "https" else _PORTS.get(server))
    path = parts.path.rstrip("/") or ("/v1" if server is Server.OPENAI else "")
    url = f"{transport or 'http'}://{host}{f':{port}' if port else ''}{path}"
    return Address(server, url, model, context, in_text, config)


def connect(
    addresses: str, codec: Codec | None = None, config: RemoteConfig | None = None
) -> RemoteEngine | Replicas | OpenVINOEngine:
    """An engine over the server, or over the replicas, at ``addresses``.

    Asks each server at once what it serves. May be called within an event loop, which waits.

    Args:
        addresses: one, or several with commas between them.
        codec: needed for stop strings, and for endpoints that tell text only.
        config: how to deal with the servers, where their addresses do not say.

    Raises:
        ConfigError: something is no address, or the server needs to be told more.
        EngineError: a server does not answer, or not as it should.
    """
    if addresses.startswith(openvino.SCHEME):
        return openvino.open_address(addresses, codec)
    engines = [_connect(read_address(a.strip(), config), codec) for a in addresses.split(",")]
    return engines[0] if len(engines) == 1 else Replicas(engines)


def update_weights(engine: RemoteEngine | Replicas | OpenVINOEngine, checkpoint: Path) -> None:
    """Have every server behind ``engine`` take its weights from a folder that it can read.

    Call it between requests. They take them one after another: where one refuses or fails, those
    before it have the new weights, and those behind it the old ones.

    Raises:
        ConfigError: a server is of a kind that cannot; none has taken them then.
        InputError: a server refuses, for instance weights of another shape.
        EngineError: a server failed.
    """
    if isinstance(engine, OpenVINOEngine):
        raise ConfigError("OpenVINO cannot take new weights: use SGLang")
    engines = engine.engines if isinstance(engine, Replicas) else (engine,)
    for each in engines:
        if not isinstance(each.api, sglang.SGLang):
            raise ConfigError(f"{each.http.name} cannot take new weights: use SGLang")
    for each in engines:
        sglang.update_weights(each.http, checkpoint)


def _changed(config: RemoteConfig, told: dict[str, str]) -> RemoteConfig:
    """``config`` but for the settings that an address tells."""
    found = build_query(RemoteConfig, urlencode(told))
    return replace(config, **{name: getattr(found, name) for name in told})


def _connect(address: Address, codec: Codec | None) -> RemoteEngine:
    http = Http(address.server, address.url, address.config, os.environ.get(KEY, "").strip())
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


_EXAMPLES = (
    "write sglang://host:port, vllm://host:port, llamacpp://host:port or openai://host:port, "
    "and behind it, if need be, ?model=m&context=4096"
)
_READERS: dict[Server, Callable[[Http, Address, Codec | None], tuple[Api, dict[str, Any]]]] = {
    Server.SGLANG: lambda http, address, codec: sglang.read_server(http),
    Server.VLLM: lambda http, address, codec: openai.read_vllm(http, address.model),
    Server.LLAMACPP: lambda http, address, codec: llamacpp.read_server(http),
    Server.OPENAI: lambda http, address, codec: openai.read_endpoint(
        http, address.model, address.context, codec, address.in_text
    ),
}
