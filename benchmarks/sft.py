"""Supervised training: tokens and floating-point operations a second, by attention kernel.

Trains for some steps as `apr sft` does, once with each kernel, on demonstrations of the recipe.
Tokens are those of sequences, not of padding; operations are those of matrix products and of
attention that they need, forward and backward. The device's peak is a large product of two matrices
in the same run.

    python -m benchmarks.sft [recipes/four.toml] [--attention varlen flex] [--set sft.rows=32]

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from apr import api, config
from apr.api.training import batches_of, network_of
from apr.countdown.problem import Split
from apr.data.packing import PackedBatches
from apr.models.checkpoint import default_device
from apr.models.llama import Linear, Llama
from apr.train.attention import Kernel, kernel_of
from apr.train.compute import Compute, compute_on
from apr.train.sft import train_sft

WARMUP = 10
"""Steps that are not measured: they compile."""


def training_flops(network: Llama, lengths: list[int]) -> float:
    """Operations to train on sequences of these lengths once.

    Two for each weight of a projection and each token, and causal attention's two products over
    half of all pairs; the backward pass takes twice as many as the forward pass.
    """
    c = network.config
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, Linear))
    width = c.num_hidden_layers * c.num_attention_heads * c.head_dim
    return sum(3 * (2 * weights * n + 2 * width * n * n) for n in lengths)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large product of dense matrices."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def measure(
    recipe: api.Recipe, data: PackedBatches, held_out: PackedBatches, compute: Compute, steps: int
) -> dict[str, Any]:
    """Speed over ``steps`` steps after ``WARMUP``."""
    network = network_of(recipe)
    network.to(compute.device)
    sft = replace(recipe.sft, steps=WARMUP + steps, eval_batches=1, eval_every=10**9)
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        train_sft(network, data, held_out, sft, run, {}, progress=False, compute=compute)
        metrics, timings = (_lines(run / name) for name in ("metrics.jsonl", "timings.jsonl"))
    learnt = [0, *(line["tokens"] for line in metrics)]
    seconds = [
        (now - before) / line["tokens_per_second"]
        for before, now, line in zip(learnt, learnt[1:], timings, strict=False)
    ]
    first = WARMUP * sft.accumulate
    lengths = [
        length
        for number in range(first, first + steps * sft.accumulate)
        for length in _lengths(data, number)
    ]
    took = sum(seconds[WARMUP:])
    counters = torch._dynamo.utils.counters
    return {
        "tokens_per_second": round(sum(lengths) / took),
        "tflops": round(training_flops(network, lengths) / took / 1e12, 3),
        "ms_per_step": round(1e3 * took / steps, 2),
        "filled": round(sum(lengths) / (steps * sft.accumulate * sft.rows * sft.row_length), 3),
        "warmup_seconds": round(sum(seconds[:WARMUP]), 1),
        "programs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "peak_memory_gib": _peak_memory(compute.device),
        "loss": metrics[-1]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("recipes/four.toml"))
    parser.add_argument("--attention", nargs="+", type=Kernel, choices=list(Kernel))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--demonstrations", type=int, default=2_000)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    args = parser.parse_args()
    count = [f"count={args.demonstrations}", "held_out=20"]
    recipe = config.load(args.recipe, api.Recipe, [*args.changes, *count])
    compute = compute_on(default_device(), recipe.sft.precision.dtype)
    if args.eager:
        compute = replace(compute, compiled=False)
    with tempfile.TemporaryDirectory() as folder:
        api.make_data(recipe, Path(folder), workers=1, progress=False)
        data, held_out = (batches_of(recipe, Path(folder) / s) for s in (Split.TRAIN, Split.VALID))
    peak = peak_flops(compute.device, compute.dtype or torch.float32) / 1e12
    results: dict[str, dict[str, Any]] = {}
    for kernel in args.attention or [kernel_of(compute.device)]:
        try:
            # The others change with every batch, or are no program of torch.
            compiled = compute.compiled and kernel in (Kernel.VARLEN, Kernel.FLEX)
            how = replace(compute, kernel=kernel, compiled=compiled)
            result = measure(recipe, data, held_out, how, args.steps)
            results[kernel] = result | {"share_of_peak": round(result["tflops"] / peak, 3)}
        # One kernel that this device or this torch lacks is no reason to lose the others' figures.
        except Exception as e:
            results[kernel] = {"error": f"{type(e).__name__}: {e}"[:500]}
        print(kernel, results[kernel], flush=True)
    ran = {name: r["tokens_per_second"] for name, r in results.items() if "error" not in r}
    print(json.dumps({
        "best": max(ran, key=lambda name: ran[name]) if ran else None,
        "attention": results,
        "peak_tflops": round(peak, 3),
        "parameters": network_of(recipe).num_parameters,
        "tokens_per_step": recipe.sft.rows * recipe.sft.row_length * recipe.sft.accumulate,
        "compiled": compute.compiled,
        "dtype": str(compute.dtype or torch.float32).removeprefix("torch."),
        "device": _name(compute.device),
        "torch": torch.__version__,
        "recipe": str(args.recipe),
        "changes": args.changes,
    }))  # fmt: skip
    if not ran:
        raise SystemExit("no kernel ran")


def _lengths(data: PackedBatches, number: int) -> list[int]:
    """Of the sequences of a batch."""
    segments_BT = data.batch(number).segments_BT
    return [n for row in segments_BT for n in torch.bincount(row[row >= 0]).tolist()]


def _lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()


if __name__ == "__main__":
    main()
