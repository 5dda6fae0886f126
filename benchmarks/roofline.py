"""The least time that the reference work can take on a machine, part by part.

Each part takes at least its floating-point operations at the machine's best matrix product, and at
least its bytes at the machine's best reading speed, whichever is longer. Weights are read once a
step, keys and values once for each token sampled.
"""

from __future__ import annotations

from typing import NamedTuple

from apr.models.llama import Llama
from benchmarks.machine import Ceilings
from benchmarks.sizes import Sizes


class Part(NamedTuple):
    """One part of the work."""

    gflop: float
    gb: float  # read from memory

    def seconds(self, machine: Ceilings) -> float:
        return max(self.gflop / machine.matmul_gflops, self.gb / machine.memory_read_gbs)


def parts(network: Llama, sizes: Sizes, itemsize: int) -> dict[str, Part]:
    """What the reference work cannot do without.

    Args:
        itemsize: bytes of a weight, and of a number of keys and values.
    """
    c = network.config
    matrices = sum(p.numel() for p in network.parameters() if p.dim() == 2)
    weights = matrices - network.embed_tokens.weight.numel()
    head = c.vocab_size * c.hidden_size
    prompts = sizes.requests * sizes.prompt
    steps = sizes.new - 1  # the first token of each request comes from its prompt
    seen = sum(range(sizes.prompt + 1, sizes.prompt + sizes.new)) * sizes.requests
    width = c.num_hidden_layers * c.head_dim
    kv_bytes = 2 * width * c.num_key_value_heads * itemsize
    scores = 4 * width * c.num_attention_heads
    causal = sizes.requests * sizes.prompt * (sizes.prompt + 1) / 2
    return {
        "prompts, matrix products": _part(
            2 * (weights - head) * prompts + 2 * head * sizes.requests, weights * itemsize
        ),
        "prompts, attention": _part(scores * causal, kv_bytes * prompts),
        "decoding, matrix products": _part(
            2 * weights * sizes.requests * steps, weights * itemsize * steps
        ),
        "decoding, attention": _part(scores * seen, kv_bytes * seen),
    }


def _part(flop: float, num_bytes: float) -> Part:
    return Part(flop / 1e9, num_bytes / 1e9)


def share(
    network: Llama, sizes: Sizes, itemsize: int, machine: Ceilings, seconds: float
) -> dict[str, float]:
    """Seconds that each part takes at least, their sum as a share of ``seconds``, and the rest."""
    least = {k: p.seconds(machine) for k, p in parts(network, sizes, itemsize).items()}
    total = sum(least.values())
    return {
        **{k: round(v, 3) for k, v in least.items()},
        "seconds": round(seconds, 3),
        "share": round(total / seconds, 3),
        "rest": round(seconds - total, 3),
    }
