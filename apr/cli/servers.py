"""Verbs of ``apr engine``: real servers that run a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from apr.cli.flags import output
from apr.errors import ConfigError


def launch(
    server: Annotated[str, typer.Argument(metavar="sglang|vllm", help="What to start.")],
    model: Annotated[
        Path, typer.Argument(help="A folder whose config.json states max_position_embeddings.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    python: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Interpreter of the environment that has the server."),
    ] = None,
    log: Annotated[Path, output(metavar="FILE", help="What the server prints.")] = Path(
        "runs", "engine.log"
    ),
    flags: Annotated[
        list[str] | None, typer.Argument(help="Flags of the server's own, after --.")
    ] = None,
) -> None:
    """Start SGLang or vLLM with the flags that trees of threads want; Ctrl-C stops it.

    apr engine launch vllm runs/mini/checkpoint --python ~/vllm/bin/python
    """
    from apr.remote import Launch, Server, serve

    try:
        kind = Server(server)
    except ValueError:
        raise ConfigError(f"no server {server!r}: apr starts sglang and vllm") from None
    interpreter = python or Path(sys.executable)
    start = Launch(kind, model, interpreter, host=host, port=port, flags=tuple(flags or ()))
    serve(
        start,
        log,
        on_ready=lambda address: typer.echo(f"ready: --engine {address}"),
        on_start=lambda: typer.echo(f"starting {kind}; what it prints is in {log}", err=True),
    )


def gguf(
    model: Annotated[Path, typer.Argument(help="Checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="For instance mini.gguf.")],
) -> None:
    """Write a checkpoint as llama.cpp reads it, in float32 (extra `llamacpp`).

    apr engine gguf runs/mini/checkpoint mini.gguf
    """
    from apr.models.gguf import save_gguf

    save_gguf(model, out)
    typer.echo(
        f"serve it with: llama-server --model {out}, then --engine llamacpp://127.0.0.1:8080"
    )
