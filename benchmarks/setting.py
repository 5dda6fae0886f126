"""What to measure, and how: the command line, read."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from apr import api
from apr.config import build, to_json
from apr.engine import EmbeddedEngine, EngineConfig
from apr.models.checkpoint import load_checkpoint, read_config
from apr.models.llama import LlamaConfig
from benchmarks.machine import Ceilings, ceilings
from benchmarks.sizes import SIZES, Sizes
from benchmarks.work import Generate
from benchmarks.worker import checkout

OURS = "apr"
"""What the embedded engine is called among its peers."""


@dataclass(frozen=True)
class Setting:
    """As the flags of ``benchmarks.engine`` say."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype
    rounds: int
    checkpoint: Path
    """Of the works that solve problems."""
    peers: list[str]
    """Names of libraries and addresses of servers."""
    configs: dict[str, EngineConfig]
    """Settings of the embedded engine; ``OURS`` first, then those to measure beside it."""
    before: Path | None
    """Another checkout of the package, to measure beside this one."""

    @cached_property
    def ceilings(self) -> Ceilings:
        return ceilings(self.device, self.dtype)

    @cached_property
    def shape(self) -> LlamaConfig:
        return read_config(self.checkpoint)

    @cached_property
    def model(self) -> api.Model:
        return api.load(self.checkpoint)

    def engine(self, config: EngineConfig | None = None) -> EmbeddedEngine:
        """A new one of the checkpoint."""
        network = load_checkpoint(self.checkpoint, self.device, self.dtype)
        return EmbeddedEngine(network, config or self.configs[OURS], self.model.codec)

    def works_before(self, name: str, checkpoint: Path, stack: ExitStack) -> dict[str, Generate]:
        """The work ``name`` by the checkout ``before``, if there is one, until ``stack`` ends."""
        if self.before is None:
            return {}
        dtype = str(self.dtype).removeprefix("torch.")
        other = checkout(self.before, name, checkpoint, self.sizes, self.device, dtype)
        return {f"{OURS} before": stack.enter_context(other)}


def read_setting(args: Namespace) -> Setting:
    """Raises ConfigError where a value is none."""
    ours = _changed(EngineConfig(), args.engine)
    return Setting(
        SIZES[args.size].changed(dict(map(_read, args.set))),
        torch.device(args.device),
        getattr(torch, args.dtype),
        args.rounds,
        args.checkpoint,
        [*(args.peers.split(",") if args.peers else []), *args.peer],
        {OURS: ours, **{f"{OURS} {text}": _changed(ours, text) for text in args.variant}},
        args.before,
    )


def _changed(config: EngineConfig, text: str) -> EngineConfig:
    settings = dict(map(_read, text.split(","))) if text else {}
    return build(EngineConfig, {**to_json(config), **settings})


def _read(setting: str) -> tuple[str, Any]:
    key, _, value = setting.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
