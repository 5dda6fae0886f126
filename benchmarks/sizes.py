"""How large the work of a benchmark is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from apr.config import build, check_least, to_json


@dataclass(frozen=True)
class Sizes:
    """Those of ``reference`` are the defaults; ``--size`` names others, ``--set`` changes one."""

    hidden_size: int = 512
    intermediate_size: int = 1408
    num_layers: int = 8
    num_heads: int = 8
    num_kv_heads: int = 8
    vocabulary: int = 512
    context: int = 1024
    requests: int = 16
    """Of the reference work, all at the same time."""
    prompt: int = 200
    """Tokens of each prompt of the reference work."""
    new: int = 200
    """Tokens sampled for each request of the reference work."""
    alone: int = 6
    """Problems solved one after the other."""
    flight: int = 256
    """Problems solved at the same time."""
    parents: int = 64
    children: int = 12
    """Of each parent."""
    prefix: int = 320
    """Tokens that a parent shares with its children."""
    message: int = 16
    """Tokens of each child's own."""
    written: int = 32
    """Tokens that each child samples."""
    threads: int = 1000
    """Threads in flight of the work that costs nothing."""
    queued: int = 10_000

    def __post_init__(self) -> None:
        check_least(1, **to_json(self))

    def changed(self, settings: dict[str, Any]) -> Sizes:
        return build(Sizes, {**to_json(self), **settings})


REFERENCE = Sizes()
SIZES = {
    "reference": REFERENCE,
    # To try the script.
    "small": Sizes(
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        requests=4,
        prompt=20,
        new=20,
        alone=1,
        flight=1,
        parents=2,
        children=3,
        prefix=48,
        message=4,
        written=4,
        threads=11,
        queued=50,
    ),
    # 1.1 billion parameters, for one large GPU.
    "large": replace(
        REFERENCE,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        vocabulary=32_768,
        context=4096,
        requests=256,
        prompt=512,
        new=512,
        flight=2048,
        parents=256,
        threads=4000,
        queued=100_000,
    ),
}
