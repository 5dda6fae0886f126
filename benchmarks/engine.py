"""Decoding throughput: the embedded engine and `transformers` on one static batch, side by side.

The work: a Llama of 26.2M parameters in fp32, 16 requests at the same time, prompts of 200 tokens,
200 new tokens each, no early stop. Both decode the same weights and must sample the same ids. The
two take turns, so that a noisy machine slows both; the figure is the median of the rounds.

    python benchmarks/engine.py [--rounds 3] [--threads 2] [--small]

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from apr.engine import EmbeddedEngine, EngineConfig
from apr.models.checkpoint import load_checkpoint, save_checkpoint
from apr.models.llama import Llama, LlamaConfig
from apr.types import Sampling

REQUESTS, PROMPT, NEW = 16, 200, 200
Generate = Callable[[], list[list[int]]]


def reference_network(small: bool) -> Llama:
    """The Llama that every engine here decodes; ``small`` is for trying the script."""
    width, layers = (64, 2) if small else (512, 8)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=128 if small else 1408,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=width // 8,
        max_position_embeddings=1024,
    )
    model = Llama(config)
    model.init_weights(seed=0)
    return model.eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(512, (REQUESTS, PROMPT), generator=generator).tolist()


def embedded(checkpoint: Path) -> Generate:
    engine = EmbeddedEngine(
        load_checkpoint(checkpoint, "cpu"), EngineConfig(prefix_cache=False, kv_gib=0.5)
    )

    async def run() -> list[list[int]]:
        done = await asyncio.gather(*(engine.generate(p, Sampling(NEW)) for p in prompts()))
        return [list(c.ids) for c in done]

    return lambda: asyncio.run(run())


def transformers(checkpoint: Path) -> Generate:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor(prompts())

    def run() -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=NEW,
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )
        return out[:, PROMPT:].tolist()

    return run


def ceilings() -> dict[str, float]:
    """What the machine can do at most: fp32 matrix product, reading memory."""
    a = torch.randn(2048, 2048)
    big = torch.randn(1 << 26)
    return {
        "matmul_gflops": 2 * 2048**3 / _best(lambda: a @ a) / 1e9,
        "memory_read_gbs": big.numel() * 4 / _best(big.sum) / 1e9,
    }


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(engines: dict[str, Generate], rounds: int) -> dict[str, float]:
    """Tokens per second of each engine, the median of ``rounds``; the first round warms up."""
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for n in range(rounds + 1):
        answers = []
        for name, generate in engines.items():
            start = time.perf_counter()
            answers.append(generate())
            rate = REQUESTS * NEW / (time.perf_counter() - start)
            print(f"round {n} {name}: {rate:.0f} tokens/s" + (" (warm-up)" if n == 0 else ""))
            if n:
                rates[name].append(rate)
        same = sum(a == b for a, b in zip(*answers, strict=True))
        print(f"round {n}: {same} of {REQUESTS} requests got the same ids from both")
    return {name: round(statistics.median(r), 1) for name, r in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true", help="a toy network, to try the script")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "reference"
        network = reference_network(args.small)
        save_checkpoint(network, checkpoint)
        rates = measure(
            {"apr": embedded(checkpoint), "transformers": transformers(checkpoint)}, args.rounds
        )
    result = {
        "parameters": network.num_parameters,
        "tokens_per_second": rates,
        "ratio": round(rates["apr"] / rates["transformers"], 2),
        **{k: round(v, 1) for k, v in ceilings().items()},
        "threads": args.threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    print(json.dumps(result))


def _commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    main()
